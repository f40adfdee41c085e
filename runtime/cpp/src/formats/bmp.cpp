// BMP: the kinds that every OpenCV version decodes alike (palette, 24 and 32 bits, not compressed).
#include <set>

#include "header.h"

namespace gamma_edge::formats {
namespace {

constexpr std::uint32_t kRgb = 0, kBitfields = 3;

}  // namespace

Header read_bmp(View data) {
    static const std::set<std::uint32_t> sizes{40, 52, 56, 108, 124};
    static const std::set<int> depths{1, 4, 8, 24, 32};
    const Reader read(data, false);
    const std::uint64_t pixels = read.u32(10);
    const std::uint32_t size = read.u32(14);
    if (!sizes.count(size)) throw Malformed("BMP header of " + std::to_string(size) + " bytes; 40 to 124 are read");
    const auto width = static_cast<std::int32_t>(read.u32(18)), height = static_cast<std::int32_t>(read.u32(22));
    const int planes = read.u16(26), bits = read.u16(28);
    const std::uint32_t compression = read.u32(30);
    bool known = depths.count(bits) && compression == kRgb;
    if (!known && bits == 32 && compression == kBitfields)
        known = read.u32(54) == 0xFF0000 && read.u32(58) == 0xFF00 && read.u32(62) == 0xFF;
    if (planes != 1 || !known)
        throw Malformed("BMP of " + std::to_string(bits) + " bits, compression " + std::to_string(compression) +
                        ", is not read");
    if (width <= 0 || height == 0 || height == INT32_MIN) throw Malformed("size " + sized(width, height));
    const std::uint64_t rows = static_cast<std::uint64_t>(height < 0 ? -height : height);
    const std::uint64_t row = (static_cast<std::uint64_t>(width) * static_cast<std::uint64_t>(bits) + 31) / 32 * 4;
    if (pixels < 14 + size || pixels + row * rows > data.size)
        throw Malformed("cut off: " + std::to_string(data.size) + " bytes, needs " +
                        std::to_string(pixels + row * rows));
    Header header;
    header.format = "bmp";
    header.width = width;
    header.height = static_cast<int>(rows);
    header.payload.assign(data.data, data.data + data.size);
    // The fourth byte is alpha only where a mask says so; unused, it is mostly 0: the picture would be all background.
    header.ignore_alpha = !(compression == kBitfields && size >= 56 && read.u32(66) == 0xFF000000U);
    return header;
}

}  // namespace gamma_edge::formats
