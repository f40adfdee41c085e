#include "gamma/backend.h"

#include <algorithm>
#include <cmath>

#include "gamma/error.h"

namespace gamma_edge {

Outputs Backend::infer(const std::uint8_t* crops, int batch) {
    if (io_.batch && *io_.batch != batch)
        throw Error(Exit::usage, graph_ + ": a batch of " + std::to_string(batch) + "; the graph takes " +
                                     std::to_string(*io_.batch));
    Outputs outputs = run(crops, batch);
    const auto finite = [](float value) { return std::isfinite(value); };
    if (!std::all_of(outputs.score.begin(), outputs.score.end(), finite) ||
        !std::all_of(outputs.crop_scores.begin(), outputs.crop_scores.end(), finite))
        throw Error(Exit::gate, graph_ + ": a score is NaN or infinite");
    return outputs;
}

#ifndef GAMMA_WITH_OPENVINO
std::unique_ptr<Backend> open_openvino(const std::string&, int) {
    throw Error(Exit::environment, "this gamma_runtime was built without OpenVINO",
                "cmake -DOpenVINO_DIR=…/openvino/cmake (the Python wheel openvino has it)");
}
#endif

}  // namespace gamma_edge
