// JPEG: size, orientation, ink colours, and whether every scan is there.
//
// libjpeg's own warnings (which the decoder turns into errors) catch a cut inside a scan. They do not catch a
// progressive file cut between two scans with an EOI appended: a legal, blurred picture, which a quality model must
// never score.
#include <map>
#include <set>

#include "header.h"

namespace gamma_edge::formats {
namespace {

constexpr int kEoi = 0xD9, kSos = 0xDA, kMaxMarkers = 10000, kMaxScans = 100;

struct State {
    int width = 0, height = 0;
    bool progressive = false;
    std::map<int, std::array<int, 64>> missing;  // by component, the lowest bit not yet sent of each coefficient
    std::optional<View> exif;
    bool adobe = false, frames = false;
    int scans = 0;

    bool complete() const {
        for (const auto& [name, bits] : missing)
            for (int bit : bits)
                if (bit != 0) return false;
        return true;
    }
};

void take_frame(State& state, View body, bool progressive) {
    if (!state.missing.empty()) throw Malformed("two frame headers");
    const Reader read(body, true);
    const int precision = read.u8(0), components = read.u8(5);
    state.height = read.u16(1);
    state.width = read.u16(3);
    if (precision != 8) throw Malformed(std::to_string(precision) + " bits a sample; only 8-bit JPEG is read");
    if (components != 1 && components != 3 && components != 4)
        throw Malformed(std::to_string(components) + " colour components; 1, 3 or 4 are read");
    state.progressive = progressive;
    for (int index = 0; index < components; ++index)
        state.missing[read.u8(6 + 3 * static_cast<std::size_t>(index))].fill(255);
}

void take_scan(State& state, View body) {
    if (++state.scans > kMaxScans) throw Malformed("more than " + std::to_string(kMaxScans) + " scans");
    const Reader read(body, true);
    const std::size_t count = read.u8(0);
    int start = read.u8(1 + 2 * count), end = read.u8(2 + 2 * count), bits = read.u8(3 + 2 * count);
    if (!state.progressive) start = 0, end = 63, bits = 0;
    for (std::size_t index = 0; index < count; ++index) {
        const auto found = state.missing.find(read.u8(1 + 2 * index));
        if (found == state.missing.end() || end > 63) throw Malformed("a scan of an unknown component or coefficient");
        for (int coefficient = start; coefficient <= end; ++coefficient)
            found->second[static_cast<std::size_t>(coefficient)] = bits & 15;
    }
}

void take(State& state, int marker, View body) {
    static const std::set<int> others{0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF};
    if (marker == 0xC0 || marker == 0xC1 || marker == 0xC2)
        take_frame(state, body, marker == 0xC2);
    else if (others.count(marker))
        throw Malformed("a lossless, hierarchical or arithmetic-coded JPEG is not read");
    else if (marker == kSos)
        take_scan(state, body);
    else if (marker == 0xE1 && starts_with(body, std::string("Exif\0", 5)) && !state.exif)
        state.exif = body.part(6, body.size);
    else if (marker == 0xE2 && starts_with(body, std::string("MPF\0", 4)))
        state.frames = true;
    else if (marker == 0xEE && starts_with(body, "Adobe") && body.size >= 12)
        state.adobe = true;
}

/// The next marker; `at` moves behind it.
int next_marker(View data, std::size_t& at) {
    if (at >= data.size || data.data[at] != 0xFF)
        throw Malformed("cut off or damaged: no marker at byte " + std::to_string(at));
    while (at < data.size && data.data[at] == 0xFF) ++at;
    return Reader(data, true).u8(at++);
}

/// Where entropy-coded data ends: at FF bytes that neither 00 nor a restart marker follows.
std::size_t end_of_scan(View data, std::size_t at) {
    while (at + 1 < data.size) {
        if (data.data[at] != 0xFF) {
            ++at;
            continue;
        }
        const std::size_t start = at;
        while (at < data.size && data.data[at] == 0xFF) ++at;
        if (at >= data.size) break;
        const int next = data.data[at];
        if (next != 0 && (next < 0xD0 || next > 0xD7)) return start;
    }
    throw Malformed("cut off: no end-of-image marker");
}

Header finish(const State& state, View data) {
    if (state.missing.empty()) throw Malformed("cut off: no frame header");
    if (state.width == 0 || state.height == 0) throw Malformed("size " + sized(state.width, state.height));
    if (!state.complete()) throw Malformed("cut off: the last scans are missing");
    Header header;
    header.format = "jpeg";
    header.width = state.width;
    header.height = state.height;
    header.payload.assign(data.data, data.data + data.size);
    if (state.exif) {
        const Orientation found = exif_orientation(*state.exif);
        header.orientation = found.value;
        header.exif_broken = found.broken;
    }
    header.frames = state.frames;
    if (state.missing.size() == 4) header.inks = state.adobe ? Inks::inverted : Inks::ink;
    return header;
}

}  // namespace

Header read_jpeg(View data) {
    State state;
    std::size_t at = 2;
    for (int seen = 0;; ++seen) {
        if (seen == kMaxMarkers) throw Malformed("more than " + std::to_string(kMaxMarkers) + " markers");
        const int marker = next_marker(data, at);
        if (marker == kEoi) break;
        const std::size_t length = Reader(data, true).u16(at);
        const View body = data.part(at + 2, length < 2 ? 0 : length - 2);
        if (length < 2 || body.size != length - 2) throw Malformed("cut off in a marker at byte " + std::to_string(at));
        take(state, marker, body);
        at += length;
        if (marker != kSos) continue;
        if (!state.progressive && state.complete()) break;  // one scan with everything; libjpeg checks it to the end
        at = end_of_scan(data, at);
    }
    return finish(state, data);
}

}  // namespace gamma_edge::formats
