#include "cuda.h"

#include <utility>

#include "engines.h"

namespace gamma_edge::cuda {

Failure::Failure(cudaError_t code, const std::string& what)
    : Error(Exit::environment, what + ": " + cudaGetErrorString(code) + " (" + cudaGetErrorName(code) + ")",
            code == cudaErrorMemoryAllocation ? "close other programs, or export with a smaller --batch"
                                              : "restart this process; check nvidia-smi and the system log"),
      code_(code) {}

void check(cudaError_t code, const char* what) {
    if (code == cudaSuccess) return;
    (void)cudaGetLastError();  // forgotten: the next call must not stumble over it
    throw Failure(code, what);
}

Stream make_stream() {
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    return Stream(stream);
}

Event make_event() {
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
    return Event(event);
}

Buffer::Buffer(std::size_t bytes, bool integrated) : bytes_(bytes), shared_(integrated) {
    check(cudaHostAlloc(&host_, bytes, shared_ ? cudaHostAllocMapped : cudaHostAllocDefault), "cudaHostAlloc");
    const cudaError_t code = shared_ ? cudaHostGetDevicePointer(&device_, host_, 0) : cudaMalloc(&device_, bytes);
    if (code != cudaSuccess) {
        cudaFreeHost(host_);
        check(code, shared_ ? "cudaHostGetDevicePointer" : "cudaMalloc");
    }
}

Buffer::Buffer(Buffer&& other) noexcept
    : host_(std::exchange(other.host_, nullptr)),
      device_(std::exchange(other.device_, nullptr)),
      bytes_(other.bytes_),
      shared_(other.shared_) {}

Buffer::~Buffer() {
    if (device_ && !shared_) cudaFree(device_);
    if (host_) cudaFreeHost(host_);
}

void Buffer::upload(std::size_t bytes, cudaStream_t stream) const {
    if (!shared_) check(cudaMemcpyAsync(device_, host_, bytes, cudaMemcpyHostToDevice, stream), "upload");
}

void Buffer::download(std::size_t bytes, cudaStream_t stream) const {
    if (!shared_) check(cudaMemcpyAsync(host_, device_, bytes, cudaMemcpyDeviceToHost, stream), "download");
}

}  // namespace gamma_edge::cuda

namespace gamma_edge {

std::optional<std::string> gpu_problem() {
    int devices = 0;
    const cudaError_t code = cudaGetDeviceCount(&devices);
    if (code == cudaSuccess && devices > 0) return std::nullopt;
    (void)cudaGetLastError();
    if (code == cudaSuccess || code == cudaErrorNoDevice) return "CUDA sees no GPU";
    return std::string("CUDA does not start: ") + cudaGetErrorString(code) + " (" + cudaGetErrorName(code) + ")";
}

Device this_device() {
    if (const auto problem = gpu_problem())
        throw Error(Exit::environment, "TensorRT needs a GPU here: " + *problem,
                    "check with nvidia-smi that the driver sees the GPU, or score with --backend openvino");
    int major = 0, minor = 0;
    cuda::check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "cudaDeviceGetAttribute");
    cuda::check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "cudaDeviceGetAttribute");
    return {engine_flavour(), engine_version(), std::to_string(major) + "." + std::to_string(minor), host_os()};
}

std::optional<std::uint64_t> free_gpu_memory() {
    std::size_t free = 0, total = 0;
    if (gpu_problem() || cudaMemGetInfo(&free, &total) != cudaSuccess) return std::nullopt;
    return free;
}

}  // namespace gamma_edge
