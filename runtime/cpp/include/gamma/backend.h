// What runs a graph.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace gamma_edge {

/// Shapes of a graph: crops uint8 [N, C, 224, 224, 3], or frames uint8 [N, H, W, 3] of which it cuts the crops itself,
/// to score [N, K] and crop_scores [N, C, K]; K is 1 where the graph has no such dimension.
struct GraphIO {
    std::optional<int> batch;   ///< N; nothing where it is a range
    int crops = 0;              ///< C
    int scenes = 1;             ///< K
    int width = 0, height = 0;  ///< of the frames; 0 where it takes crops

    const char* input() const { return width ? "frames" : "crops"; }
    std::vector<std::size_t> image_shape() const;  ///< [C, 224, 224, 3] or [H, W, 3]
    std::size_t image_bytes() const;               ///< of one image
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

    /// Score `batch` images, uint8 [batch, C, 224, 224, 3] or [batch, H, W, 3]; on the GPU where `on_device` says so,
    /// and complete there: no stream of the caller's is waited for. Throws Error: gate (a score is NaN or infinite),
    /// input (a batch that the graph does not take), environment (no memory, or the library failed), usage (on_device,
    /// and this backend does not compute there).
    Outputs infer(const std::uint8_t* images, int batch, bool on_device = false);

    /// The same graph for another thread: weights are shared, everything else is its own.
    virtual std::unique_ptr<Backend> another() const = 0;

    /// The device failed, and nothing that this process computes on it can be trusted any more.
    virtual bool lost() const { return false; }

    const GraphIO& io() const { return io_; }
    double last_ms() const { return last_ms_; }  ///< milliseconds of the last `infer`, by the monotonic clock
    virtual std::string name() const = 0;
    virtual std::string version() const = 0;

protected:
    explicit Backend(std::string graph) : graph_(std::move(graph)) {}
    virtual Outputs run(const std::uint8_t* images, int batch, bool on_device) = 0;

    std::string graph_;
    GraphIO io_;

private:
    double last_ms_ = 0;
};

/// OpenVINO on the CPU, always in float32 (left alone it takes bf16 on recent CPUs, 3e-3 off in score).
/// `threads`: 0 for OpenVINO's own choice.
/// Throws Error: input (it refuses the graph), environment (this build has no OpenVINO, or no memory).
std::unique_ptr<Backend> open_openvino(const std::string& graph, int threads);

/// How engines are used at run time.
struct EngineUse {
    bool cuda_graph = true;       ///< replay a captured CUDA graph from the second call of a batch size on
    double infer_timeout = 60.0;  ///< seconds after which an inference counts as hung
};

/// A TensorRT plan on the first GPU. `plan` are checked bytes (TensorRT runs what a plan says), `name` is for messages.
/// Throws Error: environment (no GPU, this build has no TensorRT, or it refuses the plan), input (not a Gamma graph).
std::unique_ptr<Backend> open_tensorrt(const std::vector<std::uint8_t>& plan, const std::string& name,
                                       const EngineUse& use = {});

/// Whether this build has OpenVINO.
bool has_openvino();

}  // namespace gamma_edge
