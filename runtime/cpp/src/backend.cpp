#include "gamma/backend.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "gamma/contract.h"
#include "gamma/error.h"
#include "graph_io.h"

namespace gamma_edge {

std::vector<std::size_t> GraphIO::image_shape() const {
    if (width) return {static_cast<std::size_t>(height), static_cast<std::size_t>(width), 3};
    return {static_cast<std::size_t>(crops), kCrop, kCrop, 3};
}

std::size_t GraphIO::image_bytes() const {
    std::size_t bytes = 1;
    for (const std::size_t side : image_shape()) bytes *= side;
    return bytes;
}

namespace {

using Shape = std::vector<std::int64_t>;

const GraphTensor* named(const std::vector<GraphTensor>& tensors, const char* name, const char* type) {
    const auto found =
        std::find_if(tensors.begin(), tensors.end(), [&](const GraphTensor& t) { return t.name == name; });
    return found != tensors.end() && found->type == type ? &*found : nullptr;
}

bool fill_io(GraphIO& io, const std::vector<GraphTensor>& tensors) {
    const GraphTensor *crops = named(tensors, "crops", "uint8"), *frames = named(tensors, "frames", "uint8"),
                      *score = named(tensors, "score", "float32"),
                      *crop_scores = named(tensors, "crop_scores", "float32");
    const GraphTensor* input = crops ? crops : frames;
    if (tensors.size() != 3 || !input || !input->is_input || !score || !crop_scores) return false;
    const Shape &in = input->shape, &out = score->shape, &each = crop_scores->shape;
    const bool scenes = out.size() == 2 && each.size() == 3 && out[1] == each[2] && out[1] > 0;
    if (!(out.size() == 1 && each.size() == 2) && !scenes) return false;
    if (each[1] < 1 || each[1] > 64) return false;
    io.crops = static_cast<int>(each[1]);
    io.scenes = scenes ? static_cast<int>(out[1]) : 1;
    if (frames) {
        if (in.size() != 4 || in[1] < kCrop || in[2] < kCrop || in[3] != 3) return false;
        io.height = static_cast<int>(in[1]);
        io.width = static_cast<int>(in[2]);
    } else if (in.size() != 5 || Shape(in.begin() + 1, in.end()) != Shape{io.crops, kCrop, kCrop, 3}) {
        return false;
    }
    if (in[0] >= 0) io.batch = static_cast<int>(in[0]);
    return true;
}

}  // namespace

GraphIO read_io(const std::string& graph, const std::vector<GraphTensor>& tensors) {
    GraphIO io;
    if (fill_io(io, tensors)) return io;
    std::string found;
    for (const GraphTensor& tensor : tensors) {
        found += (found.empty() ? "" : "; ") + tensor.name.substr(0, 40) + " " + tensor.type + " [";
        for (const std::int64_t side : tensor.shape) found += " " + (side < 0 ? "?" : std::to_string(side));
        found += " ]";
    }
    throw input_error(graph + ": not a Gamma graph; found " + found,
                      "needed: crops uint8 [N, C, 224, 224, 3], or frames uint8 [N, H, W, 3], to score float32 [N] and "
                      "crop_scores float32 [N, C]");
}

Outputs Backend::infer(const std::uint8_t* images, int batch, bool on_device) {
    if (batch < 1 || (io_.batch && *io_.batch != batch))
        throw input_error(graph_ + ": a batch of " + std::to_string(batch) + "; the graph takes " +
                          (io_.batch ? std::to_string(*io_.batch) : "one or more"));
    const auto start = std::chrono::steady_clock::now();
    Outputs outputs = run(images, batch, on_device);
    last_ms_ = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    const auto finite = [](float value) { return std::isfinite(value); };
    if (!std::all_of(outputs.score.begin(), outputs.score.end(), finite) ||
        !std::all_of(outputs.crop_scores.begin(), outputs.crop_scores.end(), finite))
        throw Error(Exit::gate, graph_ + ": a score is NaN or infinite");
    return outputs;
}

bool has_openvino() {
#ifdef GAMMA_WITH_OPENVINO
    return true;
#else
    return false;
#endif
}

#ifndef GAMMA_WITH_OPENVINO
std::unique_ptr<Backend> open_openvino(const std::string&, int) {
    throw Error(Exit::environment, "this gamma_runtime was built without OpenVINO",
                "cmake -DOpenVINO_DIR=…/openvino/cmake (the Python wheel openvino has it)");
}
#endif

}  // namespace gamma_edge
