// WEBP: RIFF sizes, and a payload that holds only the first picture: animations are beyond older OpenCV versions and
// composed by newer ones, a single frame's bit stream is the same everywhere.
#include <algorithm>
#include <tuple>

#include "header.h"

namespace gamma_edge::formats {
namespace {

constexpr std::size_t kMaxChunks = 10000;

struct Chunk {
    std::string kind;
    View body;
};

std::vector<Chunk> chunks_of(View data, std::size_t at, std::size_t end) {
    const Reader read(data, false);
    std::vector<Chunk> found;
    while (at < end) {
        const std::string kind = read.text(at, 4);
        const std::size_t length = read.u32(at + 4);
        if (at + 8 + length > end)
            throw Malformed("cut off: a chunk of " + std::to_string(length) + " bytes at byte " + std::to_string(at) +
                            ", " + std::to_string(end) + " in all");
        found.push_back({kind, data.part(at + 8, length)});
        at += 8 + length + (length & 1);
        if (found.size() > kMaxChunks) throw Malformed("more than " + std::to_string(kMaxChunks) + " chunks");
    }
    return found;
}

const View* named(const std::vector<Chunk>& chunks, const std::string& kind) {
    const auto found = std::find_if(chunks.begin(), chunks.end(), [&](const Chunk& c) { return c.kind == kind; });
    return found == chunks.end() ? nullptr : &found->body;
}

std::pair<int, int> stream_size(const std::vector<Chunk>& parts) {
    for (const Chunk& part : parts) {
        const Reader read(part.body, false);
        if (part.kind == "VP8L") {
            if (read.u8(0) != 0x2F) throw Malformed("damaged lossless stream");
            const std::uint32_t bits = read.u32(1);
            return {static_cast<int>(bits & 0x3FFF) + 1, static_cast<int>(bits >> 14 & 0x3FFF) + 1};
        }
        if (part.kind == "VP8 ") {
            const int width = read.u16(6) & 0x3FFF, height = read.u16(8) & 0x3FFF;
            if (read.text(3, 3) != "\x9d\x01\x2a" || width == 0 || height == 0) throw Malformed("damaged lossy stream");
            return {width, height};
        }
    }
    throw Malformed("no picture in it");
}

std::pair<int, int> canvas_of(View extended) {
    const Reader read(extended, false);
    return {static_cast<int>(read.u24(4)) + 1, static_cast<int>(read.u24(7)) + 1};
}

std::vector<Chunk> streams(std::vector<Chunk> chunks) {
    const auto other = [](const Chunk& c) { return c.kind != "ALPH" && c.kind != "VP8 " && c.kind != "VP8L"; };
    chunks.erase(std::remove_if(chunks.begin(), chunks.end(), other), chunks.end());
    return chunks;
}

void put(Bytes& to, std::uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) to.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
}

void put(Bytes& to, const std::string& text) { to.insert(to.end(), text.begin(), text.end()); }

/// A plain still WEBP of one bit stream, with its alpha plane if there is one.
Bytes still(const std::vector<Chunk>& parts) {
    const auto [width, height] = stream_size(parts);
    Bytes body;
    if (named(parts, "ALPH")) {
        put(body, "VP8X");
        put(body, 10, 4);
        put(body, 0x10, 4);
        put(body, static_cast<std::uint64_t>(width - 1), 3);
        put(body, static_cast<std::uint64_t>(height - 1), 3);
    }
    for (const Chunk& part : parts) {
        put(body, part.kind);
        put(body, part.body.size, 4);
        body.insert(body.end(), part.body.data, part.body.data + part.body.size);
        if (part.body.size & 1) body.push_back(0);
    }
    Bytes whole;
    put(whole, "RIFF");
    put(whole, 4 + body.size(), 4);
    put(whole, "WEBP");
    whole.insert(whole.end(), body.begin(), body.end());
    return whole;
}

/// The first frame of an animation: its streams, and where it covers only a part of the canvas, its place.
std::vector<Chunk> first_frame(const std::vector<Chunk>& chunks, Header& header) {
    const View frame = *named(chunks, "ANMF");
    const View* extended = named(chunks, "VP8X");
    const auto [width, height] = canvas_of(extended ? *extended : View());
    const Reader read(frame, false);
    const int x = 2 * static_cast<int>(read.u24(0)), y = 2 * static_cast<int>(read.u24(3));
    std::vector<Chunk> parts = streams(chunks_of(frame, 16, frame.size));
    const auto [inner_width, inner_height] = stream_size(parts);
    if (x + inner_width > width || y + inner_height > height)
        throw Malformed("a frame of " + sized(inner_width, inner_height) + " at " + std::to_string(x) + "," +
                        std::to_string(y) + " leaves the canvas " + sized(width, height));
    header.width = width;
    header.height = height;
    if (inner_width != width || inner_height != height) header.canvas = {width, height, x, y};
    header.frames = true;
    return parts;
}

}  // namespace

Header read_webp(View data) {
    const std::size_t end = static_cast<std::size_t>(Reader(data, false).u32(4)) + 8;
    if (end > data.size)
        throw Malformed("cut off: " + std::to_string(data.size) + " bytes, the header says " + std::to_string(end));
    const std::vector<Chunk> chunks = chunks_of(data, 12, end);
    Header header;
    header.format = "webp";
    if (const View* exif = named(chunks, "EXIF")) {
        const bool prefixed = starts_with(*exif, std::string("Exif\0\0", 6));
        const Orientation found = exif_orientation(prefixed ? exif->part(6, exif->size) : *exif);
        header.orientation = found.value;
        header.exif_broken = found.broken;
    }
    std::vector<Chunk> parts;
    if (named(chunks, "ANMF")) {
        parts = first_frame(chunks, header);
    } else {
        parts = streams(chunks);
        std::tie(header.width, header.height) = stream_size(parts);
        const View* extended = named(chunks, "VP8X");
        if (extended && canvas_of(*extended) != std::pair(header.width, header.height))
            throw Malformed("the canvas is not the picture's " + sized(header.width, header.height));
    }
    header.payload = still(parts);
    return header;
}

}  // namespace gamma_edge::formats
