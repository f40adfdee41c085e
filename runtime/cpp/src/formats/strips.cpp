// Does a compressed TIFF strip hold all of its bytes? libtiff, as OpenCV calls it, paints what is missing black.
// Only lengths are computed, so memory stays small whatever the strip claims.
#include <zlib.h>

#include <memory>

#include "header.h"

namespace gamma_edge::formats {
namespace {

constexpr int kClear = 256, kEnd = 257, kFirst = 258, kMostCodes = 4096;

struct Inflate {
    z_stream stream{};
    Inflate() {
        if (inflateInit(&stream) != Z_OK) throw std::bad_alloc();
    }
    ~Inflate() { inflateEnd(&stream); }
    Inflate(const Inflate&) = delete;
    Inflate& operator=(const Inflate&) = delete;
};

/// Codes of 9 to 12 bits, the highest bit first.
class Codes {
public:
    explicit Codes(View strip) : strip_(strip) {}

    /// The next code of so many bits, or -1 where the strip ends.
    int next(int width) {
        if (at_ + static_cast<std::size_t>(width) > 8 * strip_.size) return -1;
        int code = 0;
        for (int bit = 0; bit < width; ++bit, ++at_) code = code << 1 | (strip_.data[at_ >> 3] >> (7 - (at_ & 7)) & 1);
        return code;
    }

private:
    View strip_;
    std::size_t at_ = 0;
};

}  // namespace

std::size_t deflate_length(View strip, std::size_t expected) {
    Inflate inflating;
    z_stream& stream = inflating.stream;
    const auto room = std::make_unique<Bytes>(std::size_t{1} << 20);
    stream.next_in = const_cast<Bytef*>(strip.data);  // zlib's old signature; it does not write there
    stream.avail_in = static_cast<uInt>(strip.size);
    std::size_t total = 0;
    for (int state = Z_OK; state != Z_STREAM_END && total <= expected;) {
        stream.next_out = room->data();
        stream.avail_out = static_cast<uInt>(room->size());
        state = inflate(&stream, Z_NO_FLUSH);
        const std::size_t piece = room->size() - stream.avail_out;
        if (state != Z_OK && state != Z_STREAM_END && state != Z_BUF_ERROR) throw Malformed("damaged deflate strip");
        if (piece == 0 && state != Z_STREAM_END)
            throw Malformed("cut off: a deflate strip ends after " + std::to_string(total) + " of " +
                            std::to_string(expected) + " bytes");
        total += piece;
    }
    return total;
}

std::size_t lzw_length(View strip, std::size_t expected) {
    Codes codes(strip);
    if (codes.next(9) != kClear) throw Malformed("an LZW strip that does not start with a clear code");
    std::size_t total = 0;
    std::vector<std::size_t> lengths;  // of the strings since the last clear code, by the code's number
    int code = kClear;
    while (total < expected) {
        if (code == kClear) lengths.clear();
        // TIFF's LZW grows a code by a bit one entry early.
        const std::size_t known = lengths.size();
        if (known >= kMostCodes) break;
        const int width = known < 254 ? 9 : known < 766 ? 10 : known < 1790 ? 11 : 12;
        code = codes.next(width);
        if (code < 0 || code == kEnd) break;
        if (code == kClear) continue;
        std::size_t length = 1;
        if (code >= kFirst) {
            const auto entry = static_cast<std::size_t>(code - kFirst);
            if (entry >= known) throw Malformed("damaged LZW strip: a code before its entry");
            length = lengths[entry] + 1;
        }
        lengths.push_back(length);
        total += length;
    }
    return total;
}

}  // namespace gamma_edge::formats
