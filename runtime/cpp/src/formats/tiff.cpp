// TIFF: the kinds that every decoder reads alike, in strips, with lossless compression: grey of 1, 8 or 16 bits,
// palette of 8, RGB and RGBA of 8 or 16; not compressed, LZW or deflate.
#include <algorithm>
#include <map>
#include <set>

#include "header.h"

namespace gamma_edge::formats {
namespace {

constexpr int kMaxEntries = 4096;
constexpr std::uint32_t kMaxStrips = 1U << 20;
constexpr std::uint32_t kNone = 1, kLzw = 5;

bool deflates(std::uint32_t compression) { return compression == 8 || compression == 32946; }

std::size_t size_of(int kind) { return kind == 1 ? 1 : kind == 3 ? 2 : kind == 4 ? 4 : 0; }

/// The first directory: integers by tag, with bounds checked.
class Tags {
public:
    explicit Tags(View data) : read_(data, !starts_with(data, "II")) {
        const std::size_t start = read_.u32(4);
        const int count = read_.u16(start);
        if (count > kMaxEntries) throw Malformed(std::to_string(count) + " directory entries");
        for (int index = 0; index < count; ++index) add(start + 2 + 12 * static_cast<std::size_t>(index));
        more = read_.u32(start + 2 + 12 * static_cast<std::size_t>(count)) != 0;
    }

    bool has(int tag) const { return entries_.count(tag) > 0; }

    std::vector<std::uint32_t> many(int tag, std::vector<std::uint32_t> otherwise) const {
        const auto found = entries_.find(tag);
        if (found == entries_.end()) return otherwise;
        const Entry& entry = found->second;
        if (entry.number > kMaxStrips) throw Malformed("tag " + std::to_string(tag) + " has too many values");
        std::vector<std::uint32_t> values(entry.number);
        for (std::size_t i = 0; i < values.size(); ++i)
            values[i] = value(entry.kind, entry.where + i * size_of(entry.kind));
        return values;
    }

    std::uint32_t one(int tag, std::uint32_t otherwise) const {
        const std::vector<std::uint32_t> values = many(tag, {otherwise});
        if (values.empty()) throw Malformed("tag " + std::to_string(tag) + " has no value");
        return values[0];
    }

    /// The file with this tag's first value changed.
    Bytes with(View data, int tag, std::uint32_t changed) const {
        Bytes bytes(data.data, data.data + data.size);
        const auto found = entries_.find(tag);
        if (found == entries_.end()) return bytes;
        const std::size_t size = size_of(found->second.kind);
        if (found->second.where + size > bytes.size()) throw Malformed("cut off");
        const bool little = starts_with(data, "II");
        for (std::size_t i = 0; i < size; ++i)
            bytes[found->second.where + (little ? i : size - 1 - i)] = static_cast<std::uint8_t>(changed >> (8 * i));
        return bytes;
    }

    bool more = false;

private:
    struct Entry {
        int kind = 0;
        std::uint32_t number = 0;
        std::size_t where = 0;
    };

    void add(std::size_t at) {
        const int tag = read_.u16(at), kind = read_.u16(at + 2);
        const std::uint32_t number = read_.u32(at + 4);
        if (size_of(kind) == 0) return;
        const bool inside = static_cast<std::uint64_t>(number) * size_of(kind) <= 4;
        entries_.emplace(tag, Entry{kind, number, inside ? at + 8 : read_.u32(at + 8)});
    }

    std::uint32_t value(int kind, std::size_t at) const {
        return kind == 1 ? read_.u8(at) : kind == 3 ? read_.u16(at) : read_.u32(at);
    }

    Reader read_;
    std::map<int, Entry> entries_;
};

struct Kind {
    std::uint32_t samples = 0, bits = 0;
};

/// 16-bit white-is-zero, and grey of 2 and 4 bits, differ between decoders.
bool readable(std::uint32_t photometric, std::uint32_t samples, std::uint32_t bits) {
    if (samples == 1 && photometric == 0) return bits == 1 || bits == 8;
    if (samples == 1 && photometric == 1) return bits == 1 || bits == 8 || bits == 16;
    if (samples == 1 && photometric == 3) return bits == 8;
    return photometric == 2 && (samples == 3 || samples == 4) && (bits == 8 || bits == 16);
}

Kind check_kind(const Tags& tags) {
    if (tags.one(339, 1) != 1) throw Malformed("floating-point or signed samples are not read");
    const std::uint32_t compression = tags.one(259, 1);
    if (compression != kNone && compression != kLzw && !deflates(compression))
        throw Malformed("TIFF compression " + std::to_string(compression) + " is not read");
    const std::uint32_t photometric = tags.one(262, UINT32_MAX), samples = tags.one(277, 1);
    const std::vector<std::uint32_t> listed = tags.many(258, {1});
    const std::set<std::uint32_t> bits(listed.begin(), listed.end());
    if (bits.size() != 1 || !readable(photometric, samples, *bits.begin()))
        throw Malformed("TIFF of photometric " + std::to_string(photometric) + ", " + std::to_string(samples) +
                        " samples is not read");
    if ((samples > 1 && tags.one(284, 1) != 1) || tags.has(322) || tags.has(324))
        throw Malformed("tiled or planar TIFF is not read");
    const std::uint32_t extra = tags.one(338, 0);
    if (samples == 4 && extra != 1 && extra != 2) throw Malformed("a fourth sample that is not declared as alpha");
    return {samples, *bits.begin()};
}

void check_strips(const Tags& tags, std::size_t size) {
    const std::vector<std::uint32_t> offsets = tags.many(273, {}), counts = tags.many(279, {});
    if (offsets.empty() || offsets.size() != counts.size())
        throw Malformed(std::to_string(offsets.size()) + " strips with " + std::to_string(counts.size()) + " lengths");
    std::uint64_t needed = 0;
    for (std::size_t i = 0; i < offsets.size(); ++i)
        needed = std::max(needed, static_cast<std::uint64_t>(offsets[i]) + counts[i]);
    if (needed > size) throw Malformed("cut off: " + std::to_string(size) + " bytes, needs " + std::to_string(needed));
}

}  // namespace

Header read_tiff(View data) {
    const Tags tags(data);
    const std::uint32_t width = tags.one(256, 0), height = tags.one(257, 0);
    if (width == 0 || height == 0 || width > INT32_MAX || height > INT32_MAX)
        throw Malformed("size " + sized(width, height));
    const Kind kind = check_kind(tags);
    check_strips(tags, data.size);
    const std::uint32_t turned = tags.one(274, 1);
    const bool good = turned >= 1 && turned <= 8;
    Header header;
    header.format = "tiff";
    header.width = static_cast<int>(width);
    header.height = static_cast<int>(height);
    // OpenCV always turns TIFF by its tag, and differently for each sample type; with tag 1 it leaves the pixels alone.
    header.payload = tags.with(data, 274, 1);
    header.orientation = good ? static_cast<int>(turned) : 1;
    header.exif_broken = !good;
    header.frames = tags.more;
    header.premultiplied = kind.samples == 4 && (kind.bits == 8 || tags.one(338, 0) == 1);
    return header;
}

void verify_tiff(View data) {
    const Tags tags(data);
    const std::uint64_t height = tags.one(257, 0), bits = tags.one(258, 1);
    const std::uint64_t row = (static_cast<std::uint64_t>(tags.one(256, 0)) * tags.one(277, 1) * bits + 7) / 8;
    const std::vector<std::uint32_t> offsets = tags.many(273, {}), counts = tags.many(279, {});
    const std::uint64_t rows = std::min<std::uint64_t>(tags.one(278, static_cast<std::uint32_t>(height)), height);
    if (rows == 0 || offsets.size() != (height + rows - 1) / rows || offsets.size() != counts.size())
        throw Malformed(std::to_string(offsets.size()) + " strips of " + std::to_string(rows) + " rows for " +
                        std::to_string(height) + " rows");
    const std::uint32_t compression = tags.one(259, 1);
    for (std::size_t index = 0; index < offsets.size(); ++index) {
        const std::uint64_t expected = std::min(rows, height - index * rows) * row;
        const View strip = data.part(offsets[index], counts[index]);
        const std::uint64_t found = compression == kNone  ? strip.size
                                    : compression == kLzw ? lzw_length(strip, expected)
                                                          : deflate_length(strip, expected);
        if (found < expected)
            throw Malformed("cut off: strip " + std::to_string(index) + " gives " + std::to_string(found) + " of " +
                            std::to_string(expected) + " bytes");
    }
}

}  // namespace gamma_edge::formats
