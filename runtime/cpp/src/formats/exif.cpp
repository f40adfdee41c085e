// The orientation in an EXIF block (a small TIFF); the only metadata that changes pixels.
#include "header.h"

namespace gamma_edge::formats {
namespace {

constexpr int kTag = 0x0112, kShort = 3, kMaxEntries = 512;

int find(View block) {
    const bool little = starts_with(block, std::string("II*\0", 4));
    if (!little && !starts_with(block, std::string("MM\0*", 4))) throw Malformed("no TIFF header");
    const Reader read(block, !little);
    const std::size_t ifd = read.u32(4);
    const int count = read.u16(ifd);
    if (count > kMaxEntries) throw Malformed(std::to_string(count) + " entries");
    for (int index = 0; index < count; ++index) {
        const std::size_t at = ifd + 2 + 12 * static_cast<std::size_t>(index);
        const int tag = read.u16(at), kind = read.u16(at + 2);
        const std::uint32_t number = read.u32(at + 4);
        if (tag != kTag) continue;
        const int value = read.u16(at + 8);
        if (kind != kShort || number != 1 || value < 1 || value > 8)
            throw Malformed("orientation " + std::to_string(value));
        return value;
    }
    return 1;
}

}  // namespace

Orientation exif_orientation(View block) {
    try {
        return {find(block), false};
    } catch (const Malformed&) {
        return {1, true};
    }
}

}  // namespace gamma_edge::formats
