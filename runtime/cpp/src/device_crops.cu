// Crops of a frame that lies in the GPU's memory: the bytes that the CPU would cut.
#include "area_pixel.h"
#include "cuda.h"
#include "device_crops.h"

namespace gamma_edge {
namespace {

using cuda::check;

struct Job {
    Raster frame;
    const Span* columns;
    const Span* rows;
    const int* corners;  // top and left of each window
    WholeFactor factor;  // of the reduction; 1 and 1 where there is none
    int width, height;   // of a window
    std::uint8_t* out;
};

__global__ void cut(Job job) {
    const int x = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), y = static_cast<int>(blockIdx.y);
    if (x >= job.width) return;
    const int window = static_cast<int>(blockIdx.z);
    const int row = job.corners[2 * window] + y, column = job.corners[2 * window + 1] + x;
    const std::size_t pixel =
        (static_cast<std::size_t>(window) * static_cast<std::size_t>(job.height) + static_cast<std::size_t>(y)) *
            static_cast<std::size_t>(job.width) +
        static_cast<std::size_t>(x);
    for (int channel = 0; channel < 3; ++channel)
        job.out[3 * pixel + static_cast<std::size_t>(channel)] =
            job.factor.x ? whole_pixel(job.frame, job.factor, column, row, channel)
                         : area_pixel(job.frame, job.columns[column], job.rows[row], channel);
}

struct DeviceEnd {
    void operator()(void* memory) const noexcept { cudaFree(memory); }
};

/// Device memory that grows when more is asked for.
class Memory {
public:
    template <typename T>
    T* room(std::size_t count) {
        if (count * sizeof(T) > size_) {
            memory_.reset();
            size_ = 0;
            void* made = nullptr;
            check(cudaMalloc(&made, count * sizeof(T)), "cudaMalloc");
            memory_.reset(made);
            size_ = count * sizeof(T);
        }
        return static_cast<T*>(memory_.get());
    }

    template <typename T>
    const T* filled(const std::vector<T>& values, cudaStream_t stream) {
        T* const to = room<T>(values.size());
        // On the kernel's own stream, which waits for no other; `values` may be a temporary.
        check(cudaMemcpyAsync(to, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice, stream), "upload");
        check(cudaStreamSynchronize(stream), "upload");
        return to;
    }

private:
    std::unique_ptr<void, DeviceEnd> memory_;
    std::size_t size_ = 0;
};

class Cutter final : public DeviceCrops {
public:
    const std::uint8_t* make(const DeviceFrame& frame, Size reduced,
                             const std::vector<std::pair<int, int>>& places) override {
        check(cudaSetDevice(0), "cudaSetDevice");
        if (!stream_) stream_ = cuda::make_stream();
        tables(frame, reduced, places);
        const bool whole = places.empty();
        Job job = job_;
        job.frame = {frame.data, frame.pitch, frame.bytes(), frame.red()};
        job.width = whole ? reduced.width : kCrop;
        job.height = whole ? reduced.height : kCrop;
        const std::size_t windows = whole ? 1 : places.size();
        job.out = out_.room<std::uint8_t>(3 * windows * static_cast<std::size_t>(job.width) *
                                          static_cast<std::size_t>(job.height));
        constexpr unsigned threads = 128;
        const dim3 grid((static_cast<unsigned>(job.width) + threads - 1) / threads, static_cast<unsigned>(job.height),
                        static_cast<unsigned>(windows));
        (void)cudaGetLastError();  // what an earlier call of somebody else left
        cut<<<grid, threads, 0, stream_.get()>>>(job);
        check(cudaGetLastError(), "cutting crops");
        check(cudaStreamSynchronize(stream_.get()), "cutting crops");
        return job.out;
    }

private:
    /// A camera's frames are all of one size, so the tables are made once.
    void tables(const DeviceFrame& frame, Size reduced, const std::vector<std::pair<int, int>>& places) {
        const bool same = made_ && frame.width == size_.width && frame.height == size_.height &&
                          !(reduced != reduced_) && places == places_;
        if (same) return;
        made_ = false;
        std::vector<int> corners{0, 0};
        if (!places.empty()) corners.clear();
        for (const auto& [top, left] : places) corners.insert(corners.end(), {top, left});
        job_.corners = corners_.filled(corners, stream_.get());
        job_.factor = whole_factor(frame.width, frame.height, reduced.width, reduced.height);
        job_.columns = columns_.filled(area_spans(frame.width, reduced.width), stream_.get());
        job_.rows = rows_.filled(area_spans(frame.height, reduced.height), stream_.get());
        size_ = {frame.width, frame.height};
        reduced_ = reduced;
        places_ = places;
        made_ = true;
    }

    cuda::Stream stream_;
    Memory corners_, columns_, rows_, out_;
    Job job_{};
    Size size_, reduced_;
    std::vector<std::pair<int, int>> places_;
    bool made_ = false;
};

}  // namespace

std::unique_ptr<DeviceCrops> make_device_crops() { return std::make_unique<Cutter>(); }

}  // namespace gamma_edge
