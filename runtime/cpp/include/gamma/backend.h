// What runs a graph.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace gamma_edge {

/// Shapes of a graph: crops uint8 [N, C, 224, 224, 3] to score [N, K] and crop_scores [N, C, K]; K is 1 where the graph
/// has no such dimension.
struct GraphIO {
    std::optional<int> batch;  ///< N; nothing where it is a range
    int crops = 0;             ///< C
    int scenes = 1;            ///< K
};

/// float32, row-major: score [N, K] and crop_scores [N, C, K].
struct Outputs {
    std::vector<float> score, crop_scores;
};

/// One compiled graph; not to be used by two threads at once.
class Backend {
public:
    virtual ~Backend() = default;
    Backend(const Backend&) = delete;
    Backend& operator=(const Backend&) = delete;

    /// Score the crops of `batch` images, uint8 [batch, C, 224, 224, 3].
    /// Throws Error: gate (a score is NaN or infinite), environment (no memory, or the library failed).
    Outputs infer(const std::uint8_t* crops, int batch);

    const GraphIO& io() const { return io_; }
    virtual std::string name() const = 0;
    virtual std::string version() const = 0;

protected:
    explicit Backend(std::string graph) : graph_(std::move(graph)) {}
    virtual Outputs run(const std::uint8_t* crops, int batch) = 0;

    std::string graph_;
    GraphIO io_;
};

/// OpenVINO on the CPU, always in float32 (left alone it takes bf16 on recent CPUs, 3e-3 off in score).
/// `threads`: 0 for OpenVINO's own choice.
/// Throws Error: input (it refuses the graph), environment (this build has no OpenVINO, or no memory).
std::unique_ptr<Backend> open_openvino(const std::string& graph, int threads);

}  // namespace gamma_edge
