#include <openvino/openvino.hpp>

#include "gamma/backend.h"
#include "gamma/error.h"
#include "graph_io.h"

namespace gamma_edge {
namespace {

const char* const kDevice = "CPU";

std::string shortened(const std::exception& error) {
    std::string text(error.what());
    for (char& c : text)
        if (c == '\n') c = ' ';
    return text.substr(0, 300);
}

std::string type_of(const ov::element::Type& type) {
    return type == ov::element::u8 ? "uint8" : type == ov::element::f32 ? "float32" : type.get_type_name();
}

/// A tensor may have several names; ours, where it is one of them.
std::string name_of(const ov::Output<const ov::Node>& port) {
    for (const char* const name : {"crops", "frames", "score", "crop_scores"})
        if (port.get_names().count(name)) return name;
    return port.get_names().empty() ? "(no name)" : port.get_any_name();
}

class OpenVino final : public Backend {
public:
    OpenVino(const std::string& graph, int threads) : Backend(graph) {
        ov::AnyMap config{ov::hint::inference_precision(ov::element::f32),
                          ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY)};
        if (threads > 0) {
            config.insert(ov::inference_num_threads(threads));
            config.insert(ov::hint::enable_cpu_pinning(false));  // two processes would be pinned to the same ones
        }
        try {
            compiled_ = ov::Core().compile_model(graph, kDevice, config);
            if (compiled_.get_property(ov::hint::inference_precision) != ov::element::f32)
                throw Error(Exit::environment, graph + ": OpenVINO did not compile for f32");
            io_ = read_io(graph, tensors());
            request_ = compiled_.create_infer_request();
        } catch (const ov::Exception& error) {
            throw input_error(graph + ": OpenVINO refuses it (" + shortened(error) + ")");
        }
    }

    std::unique_ptr<Backend> another() const override {
        return std::unique_ptr<Backend>(new OpenVino(graph_, io_, compiled_));
    }

    std::string name() const override { return "openvino"; }
    std::string version() const override { return ov::get_openvino_version().buildNumber; }

protected:
    Outputs run(const std::uint8_t* images, int batch, bool on_device) override {
        if (on_device) throw Error(Exit::usage, graph_ + ": OpenVINO computes on the CPU; the image lies on the GPU");
        ov::Shape shape = io_.image_shape();
        shape.insert(shape.begin(), static_cast<std::size_t>(batch));
        try {
            // The library only reads the tensor, but takes no constant memory.
            const ov::Tensor input(ov::element::u8, shape, const_cast<std::uint8_t*>(images));
            request_.set_tensor(io_.input(), input);
            request_.infer();
            return {values(request_.get_tensor("score")), values(request_.get_tensor("crop_scores"))};
        } catch (const ov::Exception& error) {
            throw Error(Exit::environment, graph_ + ": OpenVINO failed (" + shortened(error) + ")");
        }
    }

private:
    OpenVino(const std::string& graph, const GraphIO& io, const ov::CompiledModel& compiled)
        : Backend(graph), compiled_(compiled) {
        io_ = io;
        try {
            request_ = compiled_.create_infer_request();
        } catch (const ov::Exception& error) {
            throw Error(Exit::environment, graph + ": OpenVINO failed (" + shortened(error) + ")");
        }
    }

    static std::vector<float> values(const ov::Tensor& tensor) {
        const auto* data = tensor.data<const float>();
        return {data, data + tensor.get_size()};
    }

    std::vector<GraphTensor> tensors() const {
        std::vector<GraphTensor> found;
        const auto add = [&](const ov::Output<const ov::Node>& port, bool is_input) {
            GraphTensor tensor{name_of(port), is_input, type_of(port.get_element_type()), {}};
            for (const ov::Dimension& side : port.get_partial_shape())
                tensor.shape.push_back(side.is_static() ? side.get_length() : -1);
            found.push_back(std::move(tensor));
        };
        for (const auto& port : compiled_.inputs()) add(port, true);
        for (const auto& port : compiled_.outputs()) add(port, false);
        return found;
    }

    ov::CompiledModel compiled_;
    ov::InferRequest request_;
};

}  // namespace

std::unique_ptr<Backend> open_openvino(const std::string& graph, int threads) {
    return std::make_unique<OpenVino>(graph, threads);
}

}  // namespace gamma_edge
