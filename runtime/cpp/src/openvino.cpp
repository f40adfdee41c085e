#include <openvino/openvino.hpp>

#include "gamma/backend.h"
#include "gamma/contract.h"
#include "gamma/error.h"

namespace gamma_edge {
namespace {

const char* const kDevice = "CPU";

std::string shortened(const std::exception& error) {
    std::string text(error.what());
    for (char& c : text)
        if (c == '\n') c = ' ';
    return text.substr(0, 300);
}

class OpenVino : public Backend {
public:
    OpenVino(const std::string& graph, int threads) : Backend(graph) {
        ov::AnyMap config{ov::hint::inference_precision(ov::element::f32),
                          ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY)};
        if (threads > 0) {
            config.insert(ov::inference_num_threads(threads));
            config.insert(ov::hint::enable_cpu_pinning(false));  // two processes would be pinned to the same ones
        }
        try {
            compiled_ = core_.compile_model(graph, kDevice, config);
            if (compiled_.get_property(ov::hint::inference_precision) != ov::element::f32)
                throw Error(Exit::environment, graph + ": OpenVINO did not compile for f32");
            io_ = read_io();
            request_ = compiled_.create_infer_request();
        } catch (const ov::Exception& error) {
            throw input_error(graph + ": OpenVINO refuses it (" + shortened(error) + ")");
        }
    }

    std::string name() const override { return "openvino"; }
    std::string version() const override { return ov::get_openvino_version().buildNumber; }

protected:
    Outputs run(const std::uint8_t* crops, int batch) override {
        const auto n = static_cast<std::size_t>(batch), c = static_cast<std::size_t>(io_.crops);
        try {
            // The library only reads the tensor, but takes no constant memory.
            const ov::Tensor input(ov::element::u8, {n, c, kCrop, kCrop, 3}, const_cast<std::uint8_t*>(crops));
            request_.set_tensor("crops", input);
            request_.infer();
            return {values(request_.get_tensor("score")), values(request_.get_tensor("crop_scores"))};
        } catch (const ov::Exception& error) {
            throw Error(Exit::environment, graph_ + ": OpenVINO failed (" + shortened(error) + ")");
        }
    }

private:
    static std::vector<float> values(const ov::Tensor& tensor) {
        const auto* data = tensor.data<const float>();
        return {data, data + tensor.get_size()};
    }

    GraphIO read_io() const {
        const auto input = compiled_.input("crops");
        const auto score = compiled_.output("score"), crop_scores = compiled_.output("crop_scores");
        const ov::PartialShape shape = input.get_partial_shape(), scores = crop_scores.get_partial_shape();
        const bool typed = input.get_element_type() == ov::element::u8 &&
                           score.get_element_type() == ov::element::f32 &&
                           crop_scores.get_element_type() == ov::element::f32;
        const auto is = [&](std::size_t axis, std::int64_t size) {
            return shape[axis].is_static() && shape[axis].get_length() == size;
        };
        const bool shaped = compiled_.inputs().size() == 1 && shape.rank() == 5 && shape[1].is_static() &&
                            is(2, kCrop) && is(3, kCrop) && is(4, 3) && (scores.rank() == 2 || scores.rank() == 3);
        if (!typed || !shaped)
            throw input_error(graph_ + ": not a Gamma graph",
                              "needed: crops uint8 [N, C, 224, 224, 3] to score and crop_scores float32");
        GraphIO io;
        if (shape[0].is_static()) io.batch = static_cast<int>(shape[0].get_length());
        io.crops = static_cast<int>(shape[1].get_length());
        if (scores.rank() == 3) io.scenes = static_cast<int>(scores[2].get_length());
        return io;
    }

    ov::Core core_;
    ov::CompiledModel compiled_;
    ov::InferRequest request_;
};

}  // namespace

std::unique_ptr<Backend> open_openvino(const std::string& graph, int threads) {
    return std::make_unique<OpenVino>(graph, threads);
}

}  // namespace gamma_edge
