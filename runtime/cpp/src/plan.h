// One plan: what it is built from, and what came out. The border to TensorRT's builder.
#pragma once

#include <array>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "gamma/bundle.h"
#include "gamma/bytes.h"

namespace gamma_edge {

struct PlanSpec {
    const GraphEntry* graph = nullptr;
    std::string onnx, plan;  ///< paths; the plan's file exists and is empty
    std::optional<int> workspace_mib, optimization_level;
    bool low_memory = false;
    std::optional<Bytes> timing_cache;  ///< checked bytes to start from; empty bytes start a new one
    std::function<bool(const std::string& phase, double fraction)> progress;
};

struct PlanResult {
    std::string log;
    std::string cache_refused;  ///< why TensorRT did not take the timing cache; empty when it did
    Bytes timing_cache;         ///< what this build measured, and what it started from
    nlohmann::json products;    ///< of the parsed network, by the type they compute in; see tensorrt_proof.cpp
    double seconds = 0;
};

/// Parse the graph, check its types, build, and write the plan.
/// Throws Error: input (the parser refuses it, or it is no Gamma graph), environment (TensorRT gave up, no memory, no
/// builder in this library), output (the plan cannot be written), usage (stopped by `progress`).
PlanResult compile_plan(const PlanSpec& spec);

}  // namespace gamma_edge
