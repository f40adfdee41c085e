#include "sniff.h"

#include <algorithm>
#include <cstdio>

#include "gamma/error.h"

namespace gamma_edge {
namespace {

using formats::Header;
using formats::starts_with;

std::string literal(const char* text, std::size_t size) { return {text, size}; }

/// The format, or nothing. The file's name is never looked at.
std::string identify(View data) {
    if (starts_with(data, "\xff\xd8\xff")) return "jpeg";
    if (starts_with(data, "\x89PNG\r\n\x1a\n")) return "png";
    if (starts_with(data, "RIFF") && starts_with(data.part(8, 4), "WEBP")) return "webp";
    if (starts_with(data, literal("II*\0", 4)) || starts_with(data, literal("MM\0*", 4))) return "tiff";
    // Two letters are weak evidence; the header size behind them makes it strong.
    if (starts_with(data, "BM") && starts_with(data.part(15, 3), literal("\0\0\0", 3))) return "bmp";
    return "";
}

/// Only to say what a refused file is; none of these reaches a decoder.
std::string foreign(View data) {
    static const std::vector<std::pair<std::string, std::string>> known{
        {"GIF8", "GIF"},
        {"8BPS", "Photoshop PSD"},
        {"%!PS", "PostScript"},
        {"\xc5\xd0\xd3\xc6", "PostScript"},
        {"%PDF", "PDF"},
        {"\x89HDF", "HDF5"},
        {"\xff\x0a", "JPEG XL"},
        {literal("\0\0\0\x0cJXL ", 8), "JPEG XL"},
        {literal("\0\0\0\x0cjP  ", 8), "JPEG 2000"},
        {"\xff\x4f\xff\x51", "JPEG 2000"},
        {"v/1\x01", "OpenEXR"},
        {literal("II+\0", 4), "BigTIFF"},
        {literal("MM\0+", 4), "BigTIFF"},
        {"version https://git-lfs", "a Git LFS pointer, not the picture itself"},
        {"<", "a text file (HTML, SVG or XML)"},
    };
    if (starts_with(data.part(4, 4), "ftyp")) return "HEIC, AVIF or video";
    for (const auto& [magic, name] : known)
        if (starts_with(data, magic)) return name;
    return "not an image that is known here";
}

Header read(const std::string& format, View data) {
    if (format == "jpeg") return formats::read_jpeg(data);
    if (format == "png") return formats::read_png(data);
    if (format == "webp") return formats::read_webp(data);
    return format == "bmp" ? formats::read_bmp(data) : formats::read_tiff(data);
}

std::string joined(const std::vector<std::string>& words) {
    std::string text;
    for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
    return text;
}

std::string plain(double number) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", number);
    return text;
}

}  // namespace

void check_size(std::int64_t width, std::int64_t height, const Limits& limits, const std::string& where) {
    const std::string hint = "reduce or crop the picture first", size = formats::sized(width, height);
    const auto long_side = std::max(width, height), short_side = std::min(width, height);
    if (static_cast<std::uint64_t>(long_side) > limits.max_side)
        throw input_error(where + ": " + size + "; the limit is " + std::to_string(limits.max_side) + " pixels a side",
                          hint);
    const auto pixels = static_cast<std::uint64_t>(width) * static_cast<std::uint64_t>(height);
    if (pixels > limits.max_pixels)
        throw input_error(where + ": " + size + " is " + std::to_string(pixels) + " pixels; the limit is " +
                              std::to_string(limits.max_pixels),
                          hint);
    if (static_cast<double>(long_side) > limits.max_aspect * static_cast<double>(short_side))
        throw input_error(where + ": " + size + "; the longest allowed aspect is " + plain(limits.max_aspect) + ":1",
                          hint);
}

Header sniff(View data, const Contract& contract, const std::string& where) {
    if (data.size == 0) throw input_error(where + ": the file is empty");
    const std::string format = identify(data);
    const auto& allowed = contract.formats;
    if (format.empty() || std::find(allowed.begin(), allowed.end(), format) == allowed.end())
        throw input_error(where + ": " + (format.empty() ? foreign(data) : format),
                          "these formats are read: " + joined(allowed));
    try {
        Header header = read(format, data);
        check_size(header.width, header.height, contract.limits, where);
        if (format == "tiff") formats::verify_tiff(header.payload);
        return header;
    } catch (const formats::Malformed& error) {
        throw input_error(where + ": " + format + ": " + error.what(),
                          "get the original file again, or save it anew as PNG");
    }
}

}  // namespace gamma_edge
