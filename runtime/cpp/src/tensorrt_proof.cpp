#include "tensorrt_proof.h"

#include <map>

#include "gamma/error.h"

namespace gamma_edge {
namespace {

using nlohmann::json;
using nvinfer1::DataType;
using nvinfer1::ILayer;
using nvinfer1::ITensor;
using nvinfer1::LayerType;

constexpr double kLeastShare = 0.9;  // of the products' weights outside the head
const std::string kHead = "head/";   // stays in fp32 by design: 0.8 % of the full model, most of a tiny one
const std::map<std::string, int> kBits{{"fp32", 32}, {"fp16", 16}, {"bf16", 16}, {"int8", 8}, {"fp8", 8}, {"int4", 4}};
using Makers = std::map<std::string, const ILayer*>;

std::string type_of(const ITensor& tensor) {
    switch (tensor.getType()) {
        case DataType::kFLOAT:
            return "fp32";
        case DataType::kHALF:
            return "fp16";
        case DataType::kBF16:
            return "bf16";
        case DataType::kINT8:
            return "int8";
        case DataType::kFP8:
            return "fp8";
        case DataType::kINT4:
            return "int4";
        default:
            return "another type";
    }
}

bool passes(const ILayer& layer) {
    switch (layer.getType()) {
        case LayerType::kSHUFFLE:
        case LayerType::kCAST:
        case LayerType::kIDENTITY:
        case LayerType::kQUANTIZE:
        case LayerType::kDEQUANTIZE:
            return true;
        default:
            return false;
    }
}

/// The type of a constant's codes where it is dequantised, else the type in which it arrives; empty for no constant.
std::string stored(const ITensor& tensor, const Makers& makers) {
    std::string codes;
    const auto maker = [&](const ITensor& of) {
        const auto found = makers.find(of.getName());
        return found == makers.end() ? nullptr : found->second;
    };
    const ILayer* layer = maker(tensor);
    while (layer && passes(*layer)) {
        const ITensor& input = *layer->getInput(0);
        if (codes.empty() && layer->getType() == LayerType::kDEQUANTIZE) codes = type_of(input);
        layer = maker(input);
    }
    if (!layer || layer->getType() != LayerType::kCONSTANT) return "";
    return codes.empty() ? type_of(tensor) : codes;
}

std::int64_t elements(const ITensor& tensor) {
    const nvinfer1::Dims dims = tensor.getDimensions();
    std::int64_t count = 1;
    for (std::int32_t i = 0; i < dims.nbDims; ++i) count *= dims.d[i];
    return count;
}

int bits_of(const std::string& type) {
    const auto found = kBits.find(type);
    return found == kBits.end() ? 8 : found->second;
}

}  // namespace

json count_products(const nvinfer1::INetworkDefinition& network) {
    Makers makers;
    for (std::int32_t i = 0; i < network.getNbLayers(); ++i) {
        const ILayer* const layer = network.getLayer(i);
        for (std::int32_t j = 0; j < layer->getNbOutputs(); ++j) makers[layer->getOutput(j)->getName()] = layer;
    }
    std::map<std::string, std::int64_t> products, weights, head;
    for (std::int32_t i = 0; i < network.getNbLayers(); ++i) {
        const ILayer& layer = *network.getLayer(i);
        if (layer.getType() != LayerType::kMATRIX_MULTIPLY) continue;
        ++products[type_of(*layer.getInput(0))];
        auto& place = std::string(layer.getName()).compare(0, kHead.size(), kHead) == 0 ? head : weights;
        for (std::int32_t j = 0; j < 2; ++j) {
            const ITensor& operand = *layer.getInput(j);
            const std::string type = stored(operand, makers);
            if (!type.empty()) place[type] += elements(operand) * bits_of(type) / 8;
        }
    }
    return {{"products", products}, {"weight_bytes", weights}, {"head_bytes", head}};
}

void check_products(const json& counted, const std::string& precision, std::optional<double> int8_share) {
    const bool eight = precision == "int8" || precision == "fp8";
    auto weights = counted.at("weight_bytes").get<std::map<std::string, double>>();
    double total = 0;
    for (auto& [type, count] : weights) {
        if (eight) count = 8 * count / bits_of(type);  // multiply-adds go with the number of weights, not their bytes
        total += count;
    }
    if (total == 0 || weights[precision] >= kLeastShare * int8_share.value_or(1) * total) return;
    std::string shares;
    for (const auto& [type, count] : weights)
        if (count > 0)
            shares +=
                (shares.empty() ? "" : ", ") + std::to_string(static_cast<int>(100 * count / total)) + "% " + type;
    throw Error(Exit::environment,
                "asked for " + precision + ", got " + shares + " of the products' weights in the parsed network",
                "re-run gamma-export; if this stays, build another --precision");
}

}  // namespace gamma_edge
