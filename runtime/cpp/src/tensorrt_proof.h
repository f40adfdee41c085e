// What was built: the types in the parsed network, counted before TensorRT spends an hour on it.
#pragma once

#include <NvInfer.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace gamma_edge {

/// Matrix products of a parsed network by the type they compute in, and the bytes of the weights they take:
/// {"products": {"fp16": 85}, "weight_bytes": {"fp16": 340982784}, "head_bytes": {"fp32": 2641920}}.
/// A weight counts in the type in which it reaches the product; where it is dequantised on the way, in its codes' type.
nlohmann::json count_products(const nvinfer1::INetworkDefinition& network);

/// The products take their weights in the precision that was asked for; `int8_share` is what an 8-bit graph promises.
/// Throws Error (environment), with the shares found.
void check_products(const nlohmann::json& counted, const std::string& precision, std::optional<double> int8_share);

}  // namespace gamma_edge
