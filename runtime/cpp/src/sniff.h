// What an encoded image is, by its content, and whether it may be decoded.
#pragma once

#include <string>

#include "formats/header.h"
#include "gamma/contract.h"

namespace gamma_edge {

/// Throws Error (input): too large, or too long and thin.
void check_size(std::int64_t width, std::int64_t height, const Limits& limits, const std::string& where);

/// Identify by magic bytes, read the header, check that the file is whole, and hold its size against the limits.
/// Throws Error (input): empty, another format, cut off, damaged, too large.
formats::Header sniff(View data, const Contract& contract, const std::string& where);

}  // namespace gamma_edge
