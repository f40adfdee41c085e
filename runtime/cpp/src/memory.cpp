#include "memory.h"

#include <sys/stat.h>

#include <algorithm>
#include <fstream>

namespace gamma_edge {
namespace {

constexpr std::uint64_t kMiB = 1U << 20;
constexpr std::uint64_t kLeastWorkspace = 64;  // MiB; below it TensorRT drops tactics that the products need
constexpr std::uint64_t kLowWorkspace = 256;   // MiB; found to help on boards of 2 to 8 GB

std::string mib(std::uint64_t bytes) { return std::to_string(bytes / kMiB) + " MiB"; }

/// The kB behind a name in a file of /proc.
std::optional<std::uint64_t> kilobytes(const char* path, const std::string& name) {
    std::ifstream file(path);
    for (std::string word; file >> word;) {
        std::uint64_t count = 0;
        if (word == name && file >> count) return count << 10;
    }
    return std::nullopt;
}

std::optional<std::uint64_t> number_in(const char* path) {
    std::ifstream file(path);
    std::uint64_t number = 0;
    if (file >> number) return number;
    return std::nullopt;  // absent, or "max"
}

}  // namespace

FreeMemory free_memory(std::optional<std::uint64_t> gpu) {
    FreeMemory free;
    free.host = kilobytes("/proc/meminfo", "MemAvailable:");
    const auto limit = number_in("/sys/fs/cgroup/memory.max"), used = number_in("/sys/fs/cgroup/memory.current");
    if (limit && used) {
        const std::uint64_t room = *limit > *used ? *limit - *used : 0;
        free.host = std::min(free.host.value_or(room), room);
    }
    struct stat status{};
    free.unified = stat("/etc/nv_tegra_release", &status) == 0;
    if (!free.unified) free.gpu = gpu;
    return free;
}

NeededMemory predict(const std::string& flavour, std::uint64_t weights, std::optional<std::uint64_t> earlier) {
    const bool rtx = flavour == "tensorrt-rtx";
    const auto times = [&](double factor) { return static_cast<std::uint64_t>(factor * static_cast<double>(weights)); };
    NeededMemory need;
    need.host = rtx ? 350 * kMiB + times(2.6) : 1500 * kMiB + times(3.0);
    need.gpu = rtx ? 0 : 300 * kMiB + times(2.0);
    need.rule = rtx ? "350 MiB and 2.6 times the weights (measured, TensorRT-RTX on a CPU)"
                    : "1500 MiB and 3 times the weights (an estimate from reports, not measured on a board)";
    if (earlier) {
        need.host = *earlier + *earlier / 10;
        need.rule = "the peak of an earlier build here and a tenth";
    }
    return need;
}

std::string too_large(const std::string& what, const NeededMemory& need, const FreeMemory& free) {
    const std::uint64_t host = free.unified ? need.host + need.gpu : need.host;
    std::string short_of;
    if (free.host && *free.host < host) short_of = mib(host) + " of memory, " + mib(*free.host) + " are available";
    if (free.gpu && *free.gpu < need.gpu)
        short_of +=
            (short_of.empty() ? "" : " and ") + mib(need.gpu) + " of GPU memory, " + mib(*free.gpu) + " are free";
    if (short_of.empty()) return "";
    return what + ": a build takes about " + short_of + "; predicted: " + need.rule;
}

std::optional<int> workspace(const NeededMemory& need, const FreeMemory& free, bool low_memory) {
    std::optional<std::uint64_t> cap;
    if (free.unified && free.host) {
        const std::uint64_t total = need.host + need.gpu;
        const std::uint64_t half = *free.host > total ? (*free.host - total) / 2 / kMiB : 0;
        cap = std::max(half, kLeastWorkspace);
    }
    if (low_memory) cap = std::min(cap.value_or(kLowWorkspace), kLowWorkspace);
    if (!cap) return std::nullopt;
    return static_cast<int>(*cap);
}

std::optional<std::uint64_t> peak_resident() { return kilobytes("/proc/self/status", "VmHWM:"); }

}  // namespace gamma_edge
