// Engines: the TensorRT plans that one device built from a bundle's graphs, listed in engines.json.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "gamma/bundle.h"

namespace gamma_edge {

/// One plan, as engines.json describes it.
struct EngineEntry {
    std::string file, sha256;
    std::uint64_t size = 0;                 ///< bytes
    std::string flavour, version;           ///< tensorrt or tensorrt-rtx; 10.3.0.30
    std::vector<std::string> capabilities;  ///< compute capabilities that it was compiled for: 8.7, or 8.0+
    std::string graph, precision;
    std::vector<std::string> scenes;
    std::string onnx_sha256, weights_sha256;  ///< of the graph that it was built from
    std::array<int, 3> batch{};               ///< least, optimal, most
    std::string log, created, os;             ///< created: ISO 8601 in UTC; os: Linux-aarch64
};

/// The same as engines.json has it, without what only people read.
nlohmann::json to_json(const EngineEntry& entry);

/// Where an engine is to run.
struct Device {
    std::string flavour, version, capability, os;
};

/// The flavour of TensorRT that this build is linked with: tensorrt, tensorrt-rtx, or empty.
std::string engine_flavour();

/// The version of the TensorRT library that is loaded, such as 10.3.0.30; empty without one.
std::string engine_version();

/// Why no GPU can be used here, in a sentence; nothing when there is one. CUDA is asked, TensorRT is not touched:
/// without a driver TensorRT 11 hands out a bogus pointer and dies.
std::optional<std::string> gpu_problem();

/// The first GPU with the TensorRT of this build.
/// Throws Error (environment): no TensorRT in this build, or no usable GPU.
Device this_device();

/// The engine for a scene on a device: of the scene's own graph before the joint one, then the newest.
/// `folder` is where engines.json lies; an empty precision is any.
/// Throws Error: environment (none fits; the message says why not for each, the hint builds one), integrity
/// (engines.json is broken), input (a newer schema).
EngineEntry fitting_engine(const Bundle& bundle, const std::string& folder, const Device& device,
                           const std::string& scene, const std::string& precision = "");

/// A build under way; `fraction` is 0 to 1, or below 0 where TensorRT does not say.
struct BuildProgress {
    std::string graph, precision, phase;
    double fraction = -1, seconds = 0;
};

struct BuildOptions {
    std::string scene;                      ///< a scene's own graph; empty: the joint graph, or the only one
    std::string precision;                  ///< empty: an engine for each
    std::string engine_dir;                 ///< where plans and engines.json go; empty: into the bundle
    std::optional<int> workspace_mib;       ///< limit of TensorRT's scratch memory; nothing: its own
    std::optional<int> optimization_level;  ///< 0 to 5; nothing: TensorRT's own (3)
    bool low_memory = false;                ///< a lower peak, a less thorough search
    bool timing_cache = true;               ///< reuse what earlier builds measured, and keep what this one does
    bool force = false;                     ///< build although the predicted memory does not fit
    double lock_timeout = 60;               ///< seconds to wait for another process that writes there
    std::function<bool(const BuildProgress&)> progress;  ///< called many times a second; false stops the build
};

/// Build engines for this device and list them in engines.json, as gamma-build in Python does: all or none, under the
/// same lock, and the manifest is never touched. TensorRT-RTX needs no GPU for it.
/// Throws Error: usage (options), input (no such graph, or TensorRT cannot parse it), integrity (a changed file),
/// environment (no GPU, no builder in this library, no memory), output (disk, permission, lock).
std::vector<EngineEntry> build_engines(const Bundle& bundle, const BuildOptions& options);

}  // namespace gamma_edge
