// What a format's reader hands to the decoder, and the bounded reading that they share.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "gamma/bytes.h"

namespace gamma_edge::formats {

/// The bytes are not a whole picture of a kind we read; sniff() adds the file's name.
class Malformed : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

enum class Inks { none, ink, inverted };

/// What is known before any pixel is decoded. `payload` is the file reduced to what makes up its first picture, so that
/// no decoder applies metadata, animation or orientation on its own.
struct Header {
    std::string format;
    int width = 0, height = 0;  // as stored, before the orientation
    Bytes payload;
    int orientation = 1;  // EXIF, 1 to 8
    bool exif_broken = false;
    bool frames = false;          // more than one picture in the file
    Inks inks = Inks::none;       // ink: 0 is no ink; inverted: Adobe's 255 is no ink
    std::optional<int> grey_key;  // the grey value that is transparent
    bool premultiplied = false;
    bool ignore_alpha = false;
    std::optional<std::array<int, 4>> canvas;  // width, height, x, y
};

/// Integers at a place in the data, either byte order; a read past the end throws Malformed.
class Reader {
public:
    Reader(View data, bool big_endian) : data_(data), big_(big_endian) {}

    std::uint8_t u8(std::size_t at) const { return static_cast<std::uint8_t>(number(at, 1)); }
    std::uint16_t u16(std::size_t at) const { return static_cast<std::uint16_t>(number(at, 2)); }
    std::uint32_t u32(std::size_t at) const { return static_cast<std::uint32_t>(number(at, 4)); }
    std::uint32_t u24(std::size_t at) const { return static_cast<std::uint32_t>(number(at, 3)); }
    std::string text(std::size_t at, std::size_t count) const {
        need(at, count);
        return {reinterpret_cast<const char*>(data_.data) + at, count};
    }
    std::size_t size() const { return data_.size; }

private:
    void need(std::size_t at, std::size_t count) const {
        if (count > data_.size || at > data_.size - count)
            throw Malformed("cut off: " + std::to_string(data_.size) + " bytes, needs " + std::to_string(at + count));
    }
    std::uint64_t number(std::size_t at, std::size_t count) const {
        need(at, count);
        std::uint64_t value = 0;
        for (std::size_t i = 0; i < count; ++i) value = value << 8 | data_.data[big_ ? at + i : at + count - 1 - i];
        return value;
    }

    View data_;
    bool big_;
};

struct Orientation {
    int value = 1;
    bool broken = false;
};

/// Of an EXIF block that starts with the TIFF header; a broken block means 1.
Orientation exif_orientation(View block);

Header read_jpeg(View data);
Header read_png(View data);
Header read_webp(View data);
Header read_bmp(View data);
Header read_tiff(View data);
/// Every strip holds all of its rows; time grows with the declared size, so hold that against the limits before.
void verify_tiff(View data);

/// Bytes that a compressed strip gives; stops soon after `expected`. Throws Malformed: damaged or cut off.
std::size_t deflate_length(View strip, std::size_t expected);
std::size_t lzw_length(View strip, std::size_t expected);

inline bool starts_with(View data, const std::string& prefix) {
    return data.size >= prefix.size() && std::string(data.data, data.data + prefix.size()) == prefix;
}

inline std::string sized(std::int64_t width, std::int64_t height) {
    return std::to_string(width) + "x" + std::to_string(height);
}

}  // namespace gamma_edge::formats
