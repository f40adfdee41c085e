#include "tensorrt_log.h"

#include <algorithm>
#include <cctype>

#include "gamma/error.h"

namespace gamma_edge {
namespace {

constexpr std::size_t kKept = 8;
constexpr std::size_t kMaxText = 16U << 20;  // a build that fails in a loop

void keep(std::vector<std::string>& lines, const std::string& line) {
    if (!lines.empty() && lines.back() == line) return;
    if (lines.size() == kKept) lines.erase(lines.begin());
    lines.push_back(line);
}

}  // namespace

void TensorRtLog::log(Severity severity, nvinfer1::AsciiChar const* message) noexcept {
    static const char* const kNames[] = {"F", "E", "W", "I", "V"};
    try {
        const std::lock_guard<std::mutex> held(mutex_);
        const std::string line = printable(message ? message : "");
        if (severity <= Severity::kERROR) keep(errors_, line);
        if (severity == Severity::kWARNING) keep(warnings_, line);
        const auto level = std::min<std::size_t>(static_cast<std::size_t>(severity), 4);
        if (whole_ && text_.size() < kMaxText) text_ += std::string("[") + kNames[level] + "] " + line + "\n";
    } catch (...) {  // no memory for a message: TensorRT must not see an exception
        return;
    }
}

std::string TensorRtLog::explanation() const {
    const std::lock_guard<std::mutex> held(mutex_);
    std::string joined;
    for (const std::string& line : errors_.empty() ? warnings_ : errors_)
        joined += (joined.empty() ? "" : "\n  ") + line.substr(0, 500);
    return joined.empty() ? "TensorRT logged no reason" : joined;
}

std::string TensorRtLog::text() const {
    const std::lock_guard<std::mutex> held(mutex_);
    return text_;
}

bool TensorRtLog::no_memory() const {
    std::string lower = explanation();
    std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
    for (const char* words : {"bad_alloc", "outofmemory", "out of memory", "insufficient memory",
                              "could not be allocated", "cannot allocate memory", "failed to map file to memory"})
        if (lower.find(words) != std::string::npos) return true;
    return false;
}

}  // namespace gamma_edge
