// An encoded image becomes crops, by the contract and no other rules: byte for byte what the Python runtime makes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "gamma/bytes.h"
#include "gamma/contract.h"

namespace gamma_edge {

/// uint8 RGB [height, width, 3], row-major.
struct Pixels {
    int width = 0, height = 0;
    Bytes rgb;
};

/// How a pixel lies in memory; x is a byte that says nothing.
enum class PixelOrder { rgb, bgr, rgbx, bgrx };

/// A camera's frame in the first GPU's memory (or in memory that it shares, on a Jetson), 8 bits a channel, upright. It
/// must be complete before it is scored: no stream of the caller's is waited for.
struct DeviceFrame {
    const std::uint8_t* data = nullptr;
    int width = 0, height = 0;
    std::size_t pitch = 0;  ///< bytes from one row to the next
    PixelOrder order = PixelOrder::rgb;

    int bytes() const { return order == PixelOrder::rgb || order == PixelOrder::bgr ? 3 : 4; }  ///< of a pixel
    int red() const { return order == PixelOrder::rgb || order == PixelOrder::rgbx ? 0 : 2; }   ///< its offset
};

/// Upright pixels, and what was done to get them: alpha, grey, 16-bit, cmyk, frames, exif-broken.
struct Decoded {
    Pixels pixels;
    std::vector<std::string> flags;
};

/// Called with the upright size, and whether the file has several pictures, before any pixel is decoded.
using Admit = std::function<void(int width, int height, bool frames)>;

/// Read, check and decode one encoded image; `where` is its name for messages.
/// Throws Error (input): not a readable, whole image of an allowed format within the limits.
Decoded decode(View data, const Contract& contract, const std::string& where, const Admit& admit = {});

/// One image, ready for a graph.
struct Prepared {
    int count = 0;              ///< crops
    Bytes crops;                ///< uint8 [count, 224, 224, 3] RGB
    Bytes frame;                ///< uint8 [height, width, 3] RGB, where the graph cuts the crops itself
    int width = 0, height = 0;  ///< pixels that they were cut from
    std::vector<std::string> flags;
};

/// Decode, reduce and cut one encoded image for one scene.
/// Throws Error (input): it cannot be used; Error (usage): the contract does not know the scene.
Prepared prepare(View data, const Contract& contract, const std::string& scene, const std::string& where);

/// The same for RGB pixels that are decoded already.
Prepared prepare(const Pixels& pixels, const Contract& contract, const std::string& scene, const std::string& where);

/// A regular file's content.
/// Throws Error (input): missing, unreadable, not a regular file, or larger than `max_bytes`.
Bytes read_file(const std::string& path, std::uint64_t max_bytes);

}  // namespace gamma_edge
