// What TensorRT says: kept for our own errors and for a build's log, never for the terminal.
#pragma once

#include <NvInferRuntime.h>

#include <mutex>
#include <string>
#include <vector>

namespace gamma_edge {

class TensorRtLog final : public nvinfer1::ILogger {
public:
    /// `whole`: keep every message, for a build's log.
    explicit TensorRtLog(bool whole = false) : whole_(whole) {}

    void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept override;

    std::string explanation() const;  ///< the last errors, or else warnings, one a line
    std::string text() const;         ///< everything that was kept
    bool no_memory() const;           ///< the messages speak of memory that could not be had

private:
    mutable std::mutex mutex_;
    bool whole_;
    std::vector<std::string> errors_, warnings_;
    std::string text_;
};

}  // namespace gamma_edge
