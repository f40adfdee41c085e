// What an ONNX file points at, read before any library opens it.
#pragma once

#include <cstdint>
#include <string>

namespace gamma_edge {

/// Refuse a graph that points anywhere but into its weights file (of `size` bytes, beside it), or that needs more than
/// standard operators. The digest says that a graph is the one that was exported, not that it may be trusted.
/// Throws Error: integrity (external data elsewhere), input (not an ONNX file, or foreign operators).
void check_graph_file(const std::string& path, const std::string& weights, std::uint64_t size);

}  // namespace gamma_edge
