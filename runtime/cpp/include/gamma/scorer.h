// From a bundle and an encoded image to a score.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "gamma/backend.h"
#include "gamma/bundle.h"
#include "gamma/image.h"

namespace gamma_edge {

/// What an image scores in a scene; higher is better.
struct Score {
    std::string scene;
    double value = 0;                 ///< mean over the crops, in the checkpoint's own range
    std::array<double, 2> range{};    ///< lowest and highest
    std::vector<double> crop_scores;  ///< in the contract's order
    double crop_std = 0;              ///< their population standard deviation
    int width = 0, height = 0;        ///< pixels that the crops were cut from
    std::vector<std::string> flags;   ///< the checkpoint's label, alpha, grey, enlarged …
    std::string backend, bundle;      ///< library; SHA-256 of the bundle's manifest
};

struct ScorerOptions {
    std::string scene;             ///< empty: the bundle's default
    std::string backend = "auto";  ///< auto: OpenVINO where this build has it, else TensorRT; or one by its name
    std::string precision;         ///< empty: the bundle's first
    int threads = 0;               ///< of a CPU backend; 0: the library's choice
    std::string small;             ///< refuse, resize or pad images under 224 pixels; empty: the contract's own rule
    bool strict = false;           ///< refuse files with several pictures
    std::string engine_dir;        ///< where engines.json lies; empty: in the bundle
    EngineUse engines;             ///< how engines are used

    /// A bundle's contract with these changes. Throws Error (usage): no such rule.
    Contract contract_of(const Bundle& bundle) const;
};

class DeviceCrops;

/// One scene of a bundle, ready to score. Not to be used by two threads at once: each takes its own `another()`.
class Scorer {
public:
    Scorer(Scorer&&) noexcept;
    ~Scorer();

    /// Throws Error: the bundle, its graph, its engine or the library cannot be used.
    explicit Scorer(const std::string& bundle, const ScorerOptions& options = {});

    /// The same scorer for another thread; the weights are shared.
    Scorer another() const;

    /// Throws Error: input (the image cannot be used), gate (a score is not finite), environment.
    Score score_file(const std::string& path);
    Score score(View encoded, const std::string& where);
    Score score(const Pixels& pixels, const std::string& where);

    /// A frame that lies on the GPU: it is reduced and cut there, to the same bytes, and never copied to the host.
    /// Needs a TensorRT backend and a build with nvcc. Throws Error also for a frame with a side under 224 pixels.
    Score score(const DeviceFrame& frame, const std::string& where);

    const Bundle& bundle() const { return bundle_; }
    const std::string& scene() const { return scene_; }
    const std::string& precision() const { return entry_.precision; }
    const Backend& backend() const { return *backend_; }

private:
    Scorer(const Scorer& other, std::unique_ptr<Backend> backend);
    void open_engine(const ScorerOptions& options);
    Score scored(const Prepared& prepared, const std::uint8_t* device = nullptr);
    Score summary(const Prepared& prepared, double whole, std::vector<double> crop_scores) const;

    Bundle bundle_;
    Contract contract_;
    std::string scene_;
    GraphEntry entry_;
    std::size_t column_ = 0;  // of the scene in the graph's last dimension
    std::unique_ptr<Backend> backend_;
    std::unique_ptr<DeviceCrops> device_crops_;
};

}  // namespace gamma_edge
