// What a compiled graph takes and gives, in the words of no library.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gamma/backend.h"

namespace gamma_edge {

struct GraphTensor {
    std::string name;
    bool is_input = false;
    std::string type;                 ///< uint8, float32 or another
    std::vector<std::int64_t> shape;  ///< below 0: a range
};

/// Compare a graph's inputs and outputs with what a Gamma graph has.
/// Throws Error (input): they are something else; the message has the table of what was found.
GraphIO read_io(const std::string& graph, const std::vector<GraphTensor>& tensors);

}  // namespace gamma_edge
