// Encoded bytes to upright RGB, in the contract's order: first picture, ink colours to RGB, 16 bits to 8, alpha on
// white, grey to three channels, EXIF orientation; integers only. ICC profiles are ignored.
#include <algorithm>
#include <opencv2/core.hpp>
#include <opencv2/core/utils/logger.hpp>
#include <opencv2/imgcodecs.hpp>
#include <utility>

#include "gamma/error.h"
#include "gamma/image.h"
#include "jpeg_decode.h"
#include "sniff.h"

namespace gamma_edge {
namespace {

using formats::Header;
using formats::Inks;

const char* const kDamaged = "get the original file again, or save it anew as PNG";

/// Samples as the decoder gives them, colours in RGB order.
struct Stored {
    int width = 0, height = 0, channels = 0;
    bool wide = false;  // 16 bits
    Bytes narrow;
    std::vector<std::uint16_t> values;  // where wide

    int at(std::size_t index) const { return wide ? values[index] : narrow[index]; }
};

/// RGB (grey as one channel), or four inks.
Stored stored_jpeg(const Header& header, const std::string& where) {
    try {
        JpegPixels pixels = decode_jpeg(header.payload);
        Stored stored;
        stored.width = pixels.width;
        stored.height = pixels.height;
        stored.channels = pixels.channels;
        stored.narrow = std::move(pixels.samples);
        return stored;
    } catch (const formats::Malformed& error) {
        throw input_error(where + ": jpeg: " + error.what(), kDamaged);
    }
}

/// OpenCV's own log stays off stderr: our error says it, and hostile metadata is never logged raw.
class Silence {
public:
    Silence() : before_(cv::utils::logging::setLogLevel(cv::utils::logging::LOG_LEVEL_SILENT)) {}
    ~Silence() { cv::utils::logging::setLogLevel(before_); }
    Silence(const Silence&) = delete;
    Silence& operator=(const Silence&) = delete;

private:
    cv::utils::logging::LogLevel before_;
};

template <typename Sample>
void take_rows(const cv::Mat& decoded, int channels, std::vector<Sample>& to) {
    static constexpr int kOrder[] = {2, 1, 0, 3};  // OpenCV's BGR to RGB
    const int stored = decoded.channels();
    to.resize(decoded.total() * static_cast<std::size_t>(channels));
    auto at = to.begin();
    for (int y = 0; y < decoded.rows; ++y) {
        const Sample* row = decoded.ptr<Sample>(y);
        for (int x = 0; x < decoded.cols; ++x, row += stored)
            for (int channel = 0; channel < channels; ++channel) *at++ = row[stored == 1 ? 0 : kOrder[channel]];
    }
}

Stored decode_opencv(const Header& header, const std::string& where) {
    cv::Mat decoded;
    try {
        const Silence silence;
        decoded = cv::imdecode(header.payload, cv::IMREAD_UNCHANGED);
    } catch (const cv::Exception& error) {
        if (error.code == cv::Error::StsNoMem) throw Error(Exit::environment, where + ": out of memory");
        throw input_error(where + ": " + header.format + ": " + error.err, kDamaged);
    }
    if (decoded.empty()) throw input_error(where + ": " + header.format + ": damaged or cut off", kDamaged);
    if ((decoded.depth() != CV_8U && decoded.depth() != CV_16U) || decoded.channels() == 2)
        throw input_error(where + ": samples of another kind; 8 and 16 bits are read");
    Stored stored;
    stored.width = decoded.cols;
    stored.height = decoded.rows;
    stored.wide = decoded.depth() == CV_16U;
    stored.channels = header.ignore_alpha && decoded.channels() == 4 ? 3 : decoded.channels();
    if (stored.wide)
        take_rows(decoded, stored.channels, stored.values);
    else
        take_rows(decoded, stored.channels, stored.narrow);
    return stored;
}

/// One pixel's samples to RGB in 0 to 255.
void to_rgb(const Stored& stored, const Header& header, std::size_t pixel, std::uint8_t* rgb) {
    int samples[4] = {0, 0, 0, 0};
    const auto channels = static_cast<std::size_t>(stored.channels);
    for (std::size_t channel = 0; channel < channels; ++channel) {
        const int raw = stored.at(pixel * channels + channel);
        const bool hidden = header.grey_key && raw == *header.grey_key;
        samples[channel] = hidden ? 255 : stored.wide ? (raw + 128) / 257 : raw;  // v / 257 to the nearest
    }
    for (int channel = 0; channel < 3; ++channel) {
        const int colour = samples[stored.channels == 1 ? 0 : channel], fourth = samples[3];
        int value = colour;
        if (header.inks != Inks::none) {  // what the inks leave of white; Adobe stores 255 minus the ink already
            const bool inverted = header.inks == Inks::inverted;
            value = ((inverted ? colour : 255 - colour) * (inverted ? fourth : 255 - fourth) + 127) / 255;
        } else if (stored.channels == 4) {
            value = header.premultiplied ? std::min(colour + 255 - fourth, 255)
                                         : (colour * fourth + 255 * (255 - fourth) + 127) / 255;
        }
        rgb[channel] = static_cast<std::uint8_t>(value);
    }
}

/// Takes the samples over where they are RGB already: a photo is megabytes.
Pixels rgb_of(Stored& stored, const Header& header) {
    Pixels pixels{stored.width, stored.height, {}};
    const std::size_t count = static_cast<std::size_t>(stored.width) * static_cast<std::size_t>(stored.height);
    if (!stored.wide && stored.channels == 3) {
        pixels.rgb = std::move(stored.narrow);
        return pixels;
    }
    pixels.rgb.resize(3 * count);
    for (std::size_t pixel = 0; pixel < count; ++pixel) to_rgb(stored, header, pixel, &pixels.rgb[3 * pixel]);
    return pixels;
}

/// A frame that covers a part of its canvas, on white.
Pixels on_canvas(const Pixels& pixels, const std::array<int, 4>& canvas) {
    const auto [width, height, left, top] = canvas;
    Pixels whole{width, height, Bytes(3 * static_cast<std::size_t>(width) * static_cast<std::size_t>(height), 255)};
    const auto row = 3 * static_cast<std::size_t>(pixels.width);
    for (int y = 0; y < pixels.height; ++y) {
        const std::size_t to =
            3 * (static_cast<std::size_t>(top + y) * static_cast<std::size_t>(width) + static_cast<std::size_t>(left));
        std::copy_n(&pixels.rgb[static_cast<std::size_t>(y) * row], row, &whole.rgb[to]);
    }
    return whole;
}

/// Apply EXIF orientation 1 to 8.
Pixels upright(Pixels pixels, int orientation) {
    if (orientation == 1) return pixels;
    const bool swap = orientation >= 5;
    // After the swap 5 is done, 6 is turned clockwise by a mirror in x, 7 needs both mirrors, 8 a mirror in y.
    const bool mirror_x = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
    const bool mirror_y = orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
    Pixels turned{swap ? pixels.height : pixels.width, swap ? pixels.width : pixels.height, Bytes(pixels.rgb.size())};
    for (int y = 0; y < turned.height; ++y) {
        for (int x = 0; x < turned.width; ++x) {
            const int from_y = mirror_y ? turned.height - 1 - y : y, from_x = mirror_x ? turned.width - 1 - x : x;
            const auto from =
                static_cast<std::size_t>(swap ? from_x : from_y) * static_cast<std::size_t>(pixels.width) +
                static_cast<std::size_t>(swap ? from_y : from_x);
            const auto to =
                static_cast<std::size_t>(y) * static_cast<std::size_t>(turned.width) + static_cast<std::size_t>(x);
            std::copy_n(&pixels.rgb[3 * from], 3, &turned.rgb[3 * to]);
        }
    }
    return turned;
}

std::vector<std::string> flags_of(const Stored& stored, const Header& header) {
    const bool four = stored.channels == 4 && header.inks == Inks::none;
    const std::pair<const char*, bool> all[] = {
        {"alpha", header.grey_key || four || header.canvas},
        {"grey", stored.channels == 1},
        {"16-bit", stored.wide},
        {"cmyk", header.inks != Inks::none},
        {"frames", header.frames},
        {"exif-broken", header.exif_broken},
    };
    std::vector<std::string> flags;
    for (const auto& [name, present] : all)
        if (present) flags.emplace_back(name);
    return flags;
}

}  // namespace

Decoded decode(View data, const Contract& contract, const std::string& where, const Admit& admit) {
    if (data.size > contract.limits.max_bytes)
        throw input_error(where + ": " + std::to_string(data.size) + " bytes; the limit is " +
                          std::to_string(contract.limits.max_bytes));
    const Header header = sniff(data, contract, where);
    const bool turned = header.orientation >= 5;
    if (admit) admit(turned ? header.height : header.width, turned ? header.width : header.height, header.frames);
    Stored stored = header.format == "jpeg" ? stored_jpeg(header, where) : decode_opencv(header, where);
    if (!header.canvas && (stored.width != header.width || stored.height != header.height))
        throw input_error(where + ": " + formats::sized(stored.width, stored.height) + " pixels, the header says " +
                          formats::sized(header.width, header.height));
    Pixels pixels = rgb_of(stored, header);
    if (header.canvas) pixels = on_canvas(pixels, *header.canvas);
    return {upright(std::move(pixels), header.orientation), flags_of(stored, header)};
}

}  // namespace gamma_edge
