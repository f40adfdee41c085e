#include "gamma/contract.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "gamma/error.h"

namespace gamma_edge {
namespace {

using nlohmann::json;

constexpr int kMaxCrops = 64, kMaxFrame = 7680;
constexpr double kNumbersEnd = 9007199254740992.0;  // 2^53: above it JSON readers differ

/// A rule that is not known here: never half obeyed.
class Unknown : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

void require(bool known, const std::string& what) {
    if (!known) throw Unknown(what);
}

void require_keys(const json& data, const std::set<std::string>& keys, const std::string& where) {
    require(data.is_object() && data.size() == keys.size(), where + " has other keys");
    for (const std::string& key : keys) require(data.contains(key), where + " has no " + key);
}

int whole(const json& value, const std::string& what) {
    require(value.is_number_integer() && value >= 0 && value < INT32_MAX, what + " is not a whole number");
    return value.get<int>();
}

double number(const json& value, const std::string& what) {
    require(value.is_number() && value >= 1.0 && value < kNumbersEnd, what + " is not a size");
    return value.get<double>();
}

int covering(int side) { return (side + kCrop - 1) / kCrop; }

CropPolicy policy_from(const json& data, bool frames) {
    std::set<std::string> keys{"kind", "rows", "cols", "count", "seed"};
    if (frames) keys.insert({"width", "height"});
    require_keys(data, keys, "crop");
    CropPolicy policy;
    require(data["kind"].is_string(), "crop kind");
    policy.kind = data["kind"].get<std::string>();
    policy.rows = whole(data["rows"], "rows");
    policy.cols = whole(data["cols"], "cols");
    policy.count = whole(data["count"], "count");
    require(data["seed"].is_number_unsigned() || (data["seed"].is_number_integer() && data["seed"] >= 0), "seed");
    policy.seed = data["seed"].get<std::uint64_t>();
    if (frames) {
        policy.width = whole(data["width"], "width");
        policy.height = whole(data["height"], "height");
    }
    const bool grid = policy.kind == "grid", random = policy.kind == "random";
    require(grid || random || policy.kind == "centre" || policy.kind == "five" || policy.kind == "cover",
            "crop kind " + policy.kind);
    require(grid || (policy.rows == 0 && policy.cols == 0), "rows and cols of no grid");
    require(random || (policy.count == 0 && policy.seed == 0), "count and seed of no random policy");
    if (policy.frame())
        require(std::min(policy.width, policy.height) >= kCrop && std::max(policy.width, policy.height) <= kMaxFrame,
                "the frame's size");
    require(policy.rows <= kMaxCrops && policy.cols <= kMaxCrops, "rows and cols");
    require(policy.crops() >= 1 && policy.crops() <= kMaxCrops, "number of crops");
    return policy;
}

Limits limits_from(const json& data) {
    require_keys(data, {"max_bytes", "max_pixels", "max_side", "max_aspect"}, "limits");
    Limits limits;
    for (const auto& [name, to] : {std::pair{"max_bytes", &limits.max_bytes},
                                   {"max_pixels", &limits.max_pixels},
                                   {"max_side", &limits.max_side}})
        *to = static_cast<std::uint64_t>(number(data[name], name));
    limits.max_aspect = number(data["max_aspect"], "max_aspect");
    return limits;
}

/// Rules with one value that this runtime has.
const std::map<std::string, std::string>& fixed_rules() {
    static const std::map<std::string, std::string> rules{
        {"exif_orientation", "apply"},
        {"alpha", "composite on white"},
        {"sixteen_bit", "divide by 257, rounded"},
        {"grey", "repeat to three channels"},
        {"jpeg_decoder", "libjpeg-turbo, warnings are errors"},
        {"resize_kernel", "INTER_AREA"},
    };
    return rules;
}

Contract parsed(const json& data) {
    require(data.is_object() && data.contains("version"), "no version");
    const int version = whole(data["version"], "version");
    require(version == 1 || version == 2, "version " + std::to_string(version));
    std::set<std::string> keys{"version", "short_sides", "crop", "limits", "formats", "small"};
    for (const auto& [name, value] : fixed_rules()) keys.insert(name);
    if (version == 2) keys.insert("frames");
    require_keys(data, keys, "the contract");
    for (const auto& [name, value] : fixed_rules()) require(data[name] == value, name);
    Contract contract;
    contract.crop = policy_from(data["crop"], version == 2);
    contract.limits = limits_from(data["limits"]);
    require(data["formats"] == json({"jpeg", "png", "webp", "bmp", "tiff"}), "formats");
    contract.formats = data["formats"].get<std::vector<std::string>>();
    require(data["small"].is_string(), "small");
    contract.small = data["small"].get<std::string>();
    require(contract.small == "refuse" || contract.small == "resize" || contract.small == "pad", "small");
    contract.frames = "first";
    if (version == 2) {
        require(data["frames"] == "first" || data["frames"] == "refuse", "frames");
        contract.frames = data["frames"].get<std::string>();
    }
    require(data["short_sides"].is_object(), "short_sides");
    for (const auto& [scene, side] : data["short_sides"].items()) {
        require(side.is_null() || whole(side, "short_sides") >= 1, "short_sides");
        require(side.is_null() || !contract.crop.frame(), "frames are scored at their own pixels");
        contract.short_sides[scene] = side.is_null() ? std::nullopt : std::optional<int>(side.get<int>());
    }
    const bool newer =
        contract.crop.kind == "cover" || contract.crop.frame() || contract.small == "pad" || contract.frames != "first";
    require(version == (newer ? 2 : 1), "version " + std::to_string(version));
    return contract;
}

/// The index-th of `count` positions from 0 to `room`, rounded half up; a single one is in the middle.
int spread(int index, int count, int room) {
    return count == 1 ? room / 2 : (2 * index * room + count - 1) / (2 * (count - 1));
}

/// The upper 32 bits scaled to 0 to limit - 1.
int below(std::uint64_t value, int limit) {
    return static_cast<int>(((value >> 32) * static_cast<std::uint64_t>(limit)) >> 32);
}

}  // namespace

int CropPolicy::crops() const {
    if (kind == "centre") return 1;
    if (kind == "five") return 5;
    if (kind == "grid") return rows * cols;
    if (kind == "random") return count;
    return frame() ? covering(height) * covering(width) : 1;
}

std::vector<std::pair<int, int>> CropPolicy::positions(int picture_width, int picture_height) const {
    const int down = picture_height - kCrop, right = picture_width - kCrop;
    const std::pair<int, int> centre{down / 2, right / 2};
    if (kind == "centre") return {centre};
    if (kind == "five") return {centre, {0, 0}, {0, right}, {down, 0}, {down, right}};
    std::vector<std::pair<int, int>> places;
    if (kind == "random") {
        SplitMix64 numbers(seed);
        for (int i = 0; i < count; ++i) {
            const int top = below(numbers.next(), down + 1);
            places.emplace_back(top, below(numbers.next(), right + 1));
        }
        return places;
    }
    const int over = kind == "grid" ? rows : covering(picture_height),
              along = kind == "grid" ? cols : covering(picture_width);
    for (int row = 0; row < over; ++row)
        for (int column = 0; column < along; ++column)
            places.emplace_back(spread(row, over, down), spread(column, along, right));
    return places;
}

Contract Contract::from_json(const json& data) {
    try {
        return parsed(data);
    } catch (const Unknown& unknown) {
        throw input_error(std::string("this contract is not understood (") + unknown.what() + ")",
                          "it needs a newer gamma-edge: update");
    }
}

std::uint64_t SplitMix64::next() {
    state_ += 0x9E3779B97F4A7C15U;
    std::uint64_t mixed = (state_ ^ (state_ >> 30)) * 0xBF58476D1CE4E5B9U;
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBU;
    return mixed ^ (mixed >> 31);
}

}  // namespace gamma_edge
