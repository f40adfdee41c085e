// The contract: everything that turns an encoded image into the uint8 crops that the graph eats.
// The same data as gamma_runtime.contract in Python; a rule that is not known here is refused.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace gamma_edge {

constexpr int kCrop = 224;      ///< Pixels a side; the model's input.
constexpr int kMaxCover = 256;  ///< Crops that `cover` may need for one photo.

/// Where the crops are cut.
struct CropPolicy {
    std::string kind = "five";  ///< centre, five, grid, random or cover.
    int rows = 0, cols = 0;     ///< of grid
    int count = 0;              ///< of random
    std::uint64_t seed = 0;     ///< of random
    int width = 0, height = 0;  ///< of the camera frame that the graph itself takes; 0 where it takes crops

    bool frame() const { return width != 0 || height != 0; }
    /// The number of crops depends on the photo; the graph takes one.
    bool varies() const { return kind == "cover" && !frame(); }
    /// Number of crops of one image in the graph; 1 where it varies.
    int crops() const;
    /// Top and left of each crop in a picture of this size (pixels, sides at least 224).
    std::vector<std::pair<int, int>> positions(int picture_width, int picture_height) const;
};

/// Refused before any pixel is decoded.
struct Limits {
    std::uint64_t max_bytes = 0, max_pixels = 0, max_side = 0;
    double max_aspect = 0;
};

struct Contract {
    std::map<std::string, std::optional<int>> short_sides;  ///< by scene; nullopt keeps the photo's own pixels
    CropPolicy crop;
    Limits limits;
    std::vector<std::string> formats;
    std::string small;   ///< refuse, resize or pad
    std::string frames;  ///< first or refuse

    /// Read a manifest's contract.
    /// Throws Error (input): a rule that this runtime does not know.
    static Contract from_json(const nlohmann::json& data);
};

/// SplitMix64 (Steele, Lea, Flood): the generator of random crops, the same in every language.
class SplitMix64 {
public:
    explicit SplitMix64(std::uint64_t seed) : state_(seed) {}
    std::uint64_t next();

private:
    std::uint64_t state_;
};

}  // namespace gamma_edge
