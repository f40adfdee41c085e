// CUDA's objects with owners, and its failures as errors. Included only where CUDA's headers are.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <string>

#include "gamma/error.h"

namespace gamma_edge::cuda {

/// A CUDA call failed. After a sticky one nothing that this process computes on the GPU can be trusted.
class Failure : public Error {
public:
    Failure(cudaError_t code, const std::string& what);
    bool out_of_memory() const { return code_ == cudaErrorMemoryAllocation; }

private:
    cudaError_t code_;
};

/// Throws Failure.
void check(cudaError_t code, const char* what);

struct StreamEnd {
    void operator()(CUstream_st* stream) const noexcept { cudaStreamDestroy(stream); }
};
struct EventEnd {
    void operator()(CUevent_st* event) const noexcept { cudaEventDestroy(event); }
};
struct GraphEnd {
    void operator()(CUgraphExec_st* graph) const noexcept { cudaGraphExecDestroy(graph); }
};
using Stream = std::unique_ptr<CUstream_st, StreamEnd>;
using Event = std::unique_ptr<CUevent_st, EventEnd>;
using Graph = std::unique_ptr<CUgraphExec_st, GraphEnd>;

Stream make_stream();
Event make_event();

/// Memory that host and device both reach. On an integrated GPU (a Jetson) it is one pinned, mapped allocation and
/// nothing is copied; on a discrete one pinned host memory and device memory, copied asynchronously.
class Buffer {
public:
    Buffer(std::size_t bytes, bool integrated);
    ~Buffer();
    Buffer(Buffer&& other) noexcept;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    Buffer& operator=(Buffer&&) = delete;

    void* host() const { return host_; }
    void* device() const { return device_; }
    std::size_t bytes() const { return bytes_; }
    void upload(std::size_t bytes, cudaStream_t stream) const;
    void download(std::size_t bytes, cudaStream_t stream) const;

private:
    void* host_ = nullptr;
    void* device_ = nullptr;
    std::size_t bytes_;
    bool shared_;
};

}  // namespace gamma_edge::cuda
