// PNG: every chunk's bounds and CRC, and a payload of the critical chunks only, so that gamma, profiles, text and
// animation, which decoders treat differently, never reach one.
#include <zlib.h>

#include <map>
#include <set>

#include "header.h"

namespace gamma_edge::formats {
namespace {

const std::string kSignature("\x89PNG\r\n\x1a\n", 8);
constexpr std::size_t kMaxChunks = 65536;
constexpr int kGrey = 0;

struct Chunk {
    std::string kind;
    std::size_t start = 0, end = 0;  // of its content
};

std::vector<Chunk> chunks_of(View data) {
    const Reader read(data, true);
    std::vector<Chunk> found;
    for (std::size_t at = kSignature.size(); found.size() < kMaxChunks;) {
        const std::size_t length = read.u32(at);
        const std::string kind = read.text(at + 4, 4);
        const std::size_t start = at + 8, end = start + length;
        const std::uint32_t said = read.u32(end);
        const uLong crc = crc32_z(0, data.data + at + 4, length + 4);
        if (crc != said) throw Malformed("a chunk at byte " + std::to_string(at) + ": CRC does not match");
        found.push_back({kind, start, end});
        if (kind == "IEND") return found;
        at = end + 4;
    }
    throw Malformed("more than " + std::to_string(kMaxChunks) + " chunks");
}

/// The transparent grey in the decoder's scale: OpenCV drops it, so it is applied by our own code.
std::optional<int> grey_key(const std::map<std::string, View>& first, int colour, int depth) {
    const auto found = first.find("tRNS");
    const bool known = depth == 1 || depth == 2 || depth == 4 || depth == 8 || depth == 16;
    if (found == first.end() || colour != kGrey || !known) return std::nullopt;
    const int key = Reader(found->second, true).u16(0) & ((1 << depth) - 1);
    return depth >= 8 ? key : key * (255 / ((1 << depth) - 1));
}

}  // namespace

Header read_png(View data) {
    static const std::set<std::string> known{"IHDR", "PLTE", "tRNS", "IDAT", "IEND"};
    const std::vector<Chunk> chunks = chunks_of(data);
    std::map<std::string, View> first;  // content of each kind's first chunk
    bool unknown = false;
    for (const Chunk& chunk : chunks) {
        first.emplace(chunk.kind, data.part(chunk.start, chunk.end - chunk.start));
        unknown |= (chunk.kind[0] & 0x20) == 0 && !known.count(chunk.kind);
    }
    if (chunks[0].kind != "IHDR" || first["IHDR"].size != 13 || unknown) throw Malformed("not a standard PNG");
    const Reader ihdr(first["IHDR"], true);
    const std::uint32_t width = ihdr.u32(0), height = ihdr.u32(4);
    const int depth = ihdr.u8(8), colour = ihdr.u8(9);
    if (width == 0 || height == 0 || width > INT32_MAX || height > INT32_MAX)
        throw Malformed("size " + sized(width, height));
    Header header;
    header.format = "png";
    header.width = static_cast<int>(width);
    header.height = static_cast<int>(height);
    header.payload.assign(kSignature.begin(), kSignature.end());
    for (const Chunk& chunk : chunks)
        if (known.count(chunk.kind) && !(colour == kGrey && chunk.kind == "tRNS"))
            header.payload.insert(header.payload.end(), data.data + chunk.start - 8, data.data + chunk.end + 4);
    if (first.count("eXIf")) {
        const Orientation found = exif_orientation(first["eXIf"]);
        header.orientation = found.value;
        header.exif_broken = found.broken;
    }
    header.frames = first.count("acTL") > 0;
    header.grey_key = grey_key(first, colour, depth);
    return header;
}

}  // namespace gamma_edge::formats
