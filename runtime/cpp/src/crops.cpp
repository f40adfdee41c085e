// Pixels become the crops that the graph eats: reduce, then cut. Everything that an image's size decides is decided
// before a pixel is decoded.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <opencv2/imgproc.hpp>

#include "area.h"
#include "crop_plan.h"
#include "gamma/error.h"
#include "gamma/image.h"
#include "sniff.h"

namespace gamma_edge {
namespace {

std::string text(Size size) { return formats::sized(size.width, size.height); }

/// The given short side; the long one rounded half up.
Size scaled(Size size, int short_side) {
    const std::int64_t low = std::min(size.width, size.height), high = std::max(size.width, size.height);
    const int other = static_cast<int>((2 * high * short_side + low) / (2 * low));
    return size.width <= size.height ? Size{short_side, other} : Size{other, short_side};
}

}  // namespace

CropPlan plan_crops(Size size, const Contract& contract, const std::string& scene, const std::string& where) {
    const auto found = contract.short_sides.find(scene);
    if (found == contract.short_sides.end()) throw Error(Exit::usage, "unknown scene '" + scene + "'");
    const std::optional<int> side = found->second;
    const CropPolicy& crop = contract.crop;
    if (crop.frame() && (size.width != crop.width || size.height != crop.height))
        throw input_error(where + ": " + text(size) + "; this bundle's graph takes frames of " +
                              formats::sized(crop.width, crop.height),
                          "set the camera to that size, or gamma-export --crops frame" + text(size));
    CropPlan plan;
    plan.native = !side;
    plan.reduced = side && std::min(size.width, size.height) > *side ? scaled(size, *side) : size;
    plan.final = plan.reduced;
    if (std::min(plan.reduced.width, plan.reduced.height) < kCrop) {
        if (contract.small == "refuse")
            throw input_error(where + ": " + text(plan.reduced) + " leaves no room for a crop of 224 pixels",
                              "--small resize enlarges it, --small pad mirrors it at its edges (the score is flagged)");
        const Size padded{std::max(plan.reduced.width, kCrop), std::max(plan.reduced.height, kCrop)};
        plan.final = contract.small == "pad" ? padded : scaled(plan.reduced, kCrop);
        const auto pixels =
            static_cast<std::uint64_t>(plan.final.width) * static_cast<std::uint64_t>(plan.final.height);
        if (static_cast<std::uint64_t>(std::max(plan.final.width, plan.final.height)) > contract.limits.max_side ||
            pixels > contract.limits.max_pixels)
            throw input_error(where + ": " + text(size) + " would become " + text(plan.final) + ", over the limits");
    }
    const int crops = ((plan.final.width + kCrop - 1) / kCrop) * ((plan.final.height + kCrop - 1) / kCrop);
    if (crop.varies() && crops > kMaxCover)
        throw input_error(where + ": " + text(plan.final) + " takes " + std::to_string(crops) +
                              " crops to cover; the limit is " + std::to_string(kMaxCover),
                          "reduce the picture");
    return plan;
}

namespace {

Pixels enlarged(const Pixels& pixels, Size to) {
    // OpenCV's header has no view of constant pixels; it only reads them.
    const cv::Mat from(pixels.height, pixels.width, CV_8UC3, const_cast<std::uint8_t*>(pixels.rgb.data()));
    Pixels made{to.width, to.height,
                Bytes(3 * static_cast<std::size_t>(to.width) * static_cast<std::size_t>(to.height))};
    cv::Mat target(to.height, to.width, CV_8UC3, made.rgb.data());
    cv::resize(from, target, target.size(), 0, 0, cv::INTER_LINEAR);
    return made;
}

/// For each of `wanted` places, which of `length` pixels is seen there: abc continues cba abc cba.
std::vector<int> mirror(int length, int wanted) {
    std::vector<int> seen(static_cast<std::size_t>(wanted));
    const int before = (wanted - length) / 2, period = 2 * length;
    for (int place = 0; place < wanted; ++place) {
        const int at = ((place - before) % period + period) % period;
        seen[static_cast<std::size_t>(place)] = std::min(at, period - 1 - at);
    }
    return seen;
}

Pixels mirrored(const Pixels& pixels, Size to) {
    const std::vector<int> rows = mirror(pixels.height, to.height), columns = mirror(pixels.width, to.width);
    Pixels made{to.width, to.height, {}};
    made.rgb.reserve(3 * rows.size() * columns.size());
    for (int row : rows)
        for (int column : columns) {
            const std::size_t at = 3 * (static_cast<std::size_t>(row) * static_cast<std::size_t>(pixels.width) +
                                        static_cast<std::size_t>(column));
            made.rgb.insert(made.rgb.end(), &pixels.rgb[at], &pixels.rgb[at] + 3);
        }
    return made;
}

Prepared cut(Pixels pixels, const CropPolicy& policy, std::vector<std::string> flags) {
    Prepared prepared;
    prepared.width = pixels.width;
    prepared.height = pixels.height;
    prepared.flags = std::move(flags);
    const auto places = policy.positions(pixels.width, pixels.height);
    prepared.count = static_cast<int>(places.size());
    prepared.crops.reserve(places.size() * kCrop * kCrop * 3);
    for (const auto& [top, left] : places)
        for (int y = top; y < top + kCrop; ++y) {
            const auto at = 3 * (static_cast<std::size_t>(y) * static_cast<std::size_t>(pixels.width) +
                                 static_cast<std::size_t>(left));
            prepared.crops.insert(prepared.crops.end(), &pixels.rgb[at], &pixels.rgb[at] + 3 * kCrop);
        }
    if (policy.frame()) prepared.frame = std::move(pixels.rgb);
    return prepared;
}

Prepared carried_out(Pixels pixels, std::vector<std::string> flags, const CropPlan& plan, const Contract& contract) {
    if (plan.native) flags.emplace_back("native");
    if (plan.reduced != Size{pixels.width, pixels.height})
        pixels = reduced_by_area(pixels, plan.reduced.width, plan.reduced.height);
    if (plan.final != plan.reduced) {
        const bool pad = contract.small == "pad";
        pixels = pad ? mirrored(pixels, plan.final) : enlarged(pixels, plan.final);
        flags.emplace_back(pad ? "padded" : "enlarged");
    }
    return cut(std::move(pixels), contract.crop, std::move(flags));
}

}  // namespace

Prepared prepare(View data, const Contract& contract, const std::string& scene, const std::string& where) {
    const auto admit = [&](int width, int height, bool frames) {
        if (frames && contract.frames == "refuse")
            throw input_error(where + ": more than one picture in it (animation, burst or pages)");
        plan_crops({width, height}, contract, scene, where);
    };
    Decoded decoded = decode(data, contract, where, admit);
    const CropPlan plan = plan_crops({decoded.pixels.width, decoded.pixels.height}, contract, scene, where);
    return carried_out(std::move(decoded.pixels), std::move(decoded.flags), plan, contract);
}

Prepared prepare(const Pixels& pixels, const Contract& contract, const std::string& scene, const std::string& where) {
    const auto wanted =
        3 * static_cast<std::size_t>(std::max(pixels.width, 0)) * static_cast<std::size_t>(std::max(pixels.height, 0));
    if (wanted == 0 || pixels.rgb.size() != wanted)
        throw input_error(where + ": " + std::to_string(pixels.rgb.size()) + " bytes; needed is uint8 RGB [" +
                          std::to_string(pixels.height) + ", " + std::to_string(pixels.width) + ", 3]");
    check_size(pixels.width, pixels.height, contract.limits, where);
    return carried_out(pixels, {}, plan_crops({pixels.width, pixels.height}, contract, scene, where), contract);
}

Bytes read_file(const std::string& path, std::uint64_t max_bytes) {
    struct Descriptor {
        int number;
        ~Descriptor() {
            if (number >= 0) close(number);
        }
    };
    // O_NONBLOCK: opening a pipe without a writer would wait for ever.
    const Descriptor file{open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)};
    const auto fail = [&] { return input_error(path + ": cannot be read (" + std::strerror(errno) + ")"); };
    struct stat status{};
    if (file.number < 0 || fstat(file.number, &status) != 0) throw fail();
    if (!S_ISREG(status.st_mode)) throw input_error(path + ": not a regular file (folder, pipe or device)");
    if (static_cast<std::uint64_t>(status.st_size) > max_bytes)
        throw input_error(
            path + ": " + std::to_string(status.st_size) + " bytes; the limit is " + std::to_string(max_bytes),
            "save a smaller file");
    Bytes content(static_cast<std::size_t>(status.st_size));
    std::size_t filled = 0;
    while (filled < content.size()) {
        const ssize_t got = read(file.number, content.data() + filled, content.size() - filled);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) throw fail();
        if (got == 0) break;
        filled += static_cast<std::size_t>(got);
    }
    content.resize(filled);
    return content;
}

}  // namespace gamma_edge
