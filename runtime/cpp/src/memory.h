// Whether a build fits: a hopeless one is refused in seconds rather than after half an hour.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace gamma_edge {

/// Bytes that are free; `host` is missing where /proc does not say, `gpu` without a GPU of its own memory. On a
/// `unified` machine, such as a Jetson, both come from the same memory.
struct FreeMemory {
    std::optional<std::uint64_t> host, gpu;
    bool unified = false;
};

/// Bytes that a build probably takes at its peak, and where the numbers come from.
struct NeededMemory {
    std::uint64_t host = 0, gpu = 0;
    std::string rule;
};

FreeMemory free_memory(std::optional<std::uint64_t> gpu);

/// By the rules of gamma_runtime.engines.memory; `earlier` is the peak of an earlier build of the same graph.
NeededMemory predict(const std::string& flavour, std::uint64_t weights, std::optional<std::uint64_t> earlier);

/// A sentence with the numbers where it does not fit; empty when it does.
std::string too_large(const std::string& what, const NeededMemory& need, const FreeMemory& free);

/// The workspace limit in MiB when the user names none; nothing leaves TensorRT's own, which is all GPU memory.
std::optional<int> workspace(const NeededMemory& need, const FreeMemory& free, bool low_memory);

/// This process's own peak of resident memory in bytes, where the kernel says.
std::optional<std::uint64_t> peak_resident();

}  // namespace gamma_edge
