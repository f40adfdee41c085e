// CMake compiles this file with -ffp-contract=off: a multiply and an add that became one instruction would round
// otherwise, and that is what this file is about.
#include "area.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <opencv2/imgproc.hpp>

namespace gamma_edge {
namespace {

double scale_of(int from, int to) { return 1 / (static_cast<double>(to) / from); }

/// Source pixel `from` covers this share of target pixel `to`.
struct Share {
    int from, to;
    float part;
};

/// One axis, in ascending order. A sliver under a thousandth of a pixel does not count, as in OpenCV.
std::vector<Share> shares_of(int from, int to) {
    const double scale = scale_of(from, to);
    std::vector<Share> shares;
    for (int target = 0; target < to; ++target) {
        const double start = target * scale, end = start + scale, cell = std::min(scale, from - start);
        const int last = std::min(static_cast<int>(std::floor(end)), from - 1);
        const int first = std::min(static_cast<int>(std::ceil(start)), last);
        if (first - start > 1e-3) shares.push_back({first - 1, target, static_cast<float>((first - start) / cell)});
        for (int whole = first; whole < last; ++whole) shares.push_back({whole, target, static_cast<float>(1 / cell)});
        if (end - last > 1e-3)
            shares.push_back({last, target, static_cast<float>(std::min({end - last, 1.0, cell}) / cell)});
    }
    return shares;
}

void write_row(const std::vector<float>& sums, std::uint8_t* row) {
    for (std::size_t i = 0; i < sums.size(); ++i)
        row[i] = static_cast<std::uint8_t>(std::clamp(std::lrint(sums[i]), 0L, 255L));  // half to even
}

/// OpenCV adds integers where it finds whole pixels in each of ours, and no processor rounds those. It finds them by
/// this comparison, which misses some ratios, such as 49.
bool is_whole(int from, int to) {
    const double scale = scale_of(from, to);
    return std::fabs(scale - static_cast<double>(std::lrint(scale))) < std::numeric_limits<double>::epsilon();
}

}  // namespace

Pixels reduced_by_area(const Pixels& pixels, int width, int height) {
    const std::size_t row = 3 * static_cast<std::size_t>(width), stride = 3 * static_cast<std::size_t>(pixels.width);
    Pixels made{width, height, Bytes(row * static_cast<std::size_t>(height))};
    if (is_whole(pixels.width, width) && is_whole(pixels.height, height)) {
        const cv::Mat from(pixels.height, pixels.width, CV_8UC3, const_cast<std::uint8_t*>(pixels.rgb.data()));
        cv::Mat target(height, width, CV_8UC3, made.rgb.data());
        cv::resize(from, target, target.size(), 0, 0, cv::INTER_AREA);
        return made;
    }
    const std::vector<Share> columns = shares_of(pixels.width, width), rows = shares_of(pixels.height, height);
    std::vector<float> line(row), sums(row);
    int target = 0;
    for (const Share& y : rows) {
        const std::uint8_t* source = pixels.rgb.data() + static_cast<std::size_t>(y.from) * stride;
        std::fill(line.begin(), line.end(), 0.0F);
        for (const Share& x : columns) {
            float* to = line.data() + 3 * static_cast<std::size_t>(x.to);
            const std::uint8_t* from = source + 3 * static_cast<std::size_t>(x.from);
            for (int c = 0; c < 3; ++c) to[c] += static_cast<float>(from[c]) * x.part;
        }
        if (y.to != target) {
            write_row(sums, made.rgb.data() + static_cast<std::size_t>(target) * row);
            std::fill(sums.begin(), sums.end(), 0.0F);
            target = y.to;
        }
        for (std::size_t i = 0; i < row; ++i) sums[i] += y.part * line[i];
    }
    write_row(sums, made.rgb.data() + static_cast<std::size_t>(target) * row);
    return made;
}

}  // namespace gamma_edge
