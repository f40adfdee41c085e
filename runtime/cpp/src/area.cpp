// Compiled with -ffp-contract=off: a multiply and an add that became one instruction would round otherwise, and that is
// what this file is about.
#include "area.h"

#include <algorithm>
#include <opencv2/imgproc.hpp>

#include "area_pixel.h"

namespace gamma_edge {

namespace {

#if defined(__x86_64__) || defined(__i386__)
constexpr bool kX86 = true;
#else
constexpr bool kX86 = false;
#endif

Pixels empty(int width, int height) {
    return {width, height, Bytes(3 * static_cast<std::size_t>(width) * static_cast<std::size_t>(height))};
}

}  // namespace

Pixels reduced_by_area(const Pixels& pixels, int width, int height) {
    // Whole factors: OpenCV adds integers, which no processor rounds.
    if (!kX86 && !whole_factor(pixels.width, pixels.height, width, height).x) return steady_area(pixels, width, height);
    Pixels made = empty(width, height);
    const cv::Mat from(pixels.height, pixels.width, CV_8UC3, const_cast<std::uint8_t*>(pixels.rgb.data()));
    cv::Mat target(height, width, CV_8UC3, made.rgb.data());
    cv::resize(from, target, target.size(), 0, 0, cv::INTER_AREA);
    return made;
}

Pixels steady_area(const Pixels& pixels, int width, int height) {
    const std::size_t row = 3 * static_cast<std::size_t>(width), stride = 3 * static_cast<std::size_t>(pixels.width);
    Pixels made = empty(width, height);
    const std::vector<Span> columns = area_spans(pixels.width, width), rows = area_spans(pixels.height, height);
    std::vector<float> line(row), sums(row);
    std::uint8_t* out = made.rgb.data();
    for (const Span& down : rows) {
        std::fill(sums.begin(), sums.end(), 0.0F);
        for (int i = 0; i < down.count; ++i) {
            const std::uint8_t* from = pixels.rgb.data() + static_cast<std::size_t>(down.start + i) * stride;
            std::fill(line.begin(), line.end(), 0.0F);
            float* to = line.data();
            for (const Span& across : columns) {
                const std::uint8_t* source = from + 3 * static_cast<std::size_t>(across.start);
                for (int j = 0; j < across.count; ++j)
                    for (int c = 0; c < 3; ++c) to[c] += static_cast<float>(*source++) * across.share(j);
                to += 3;
            }
            const float share = down.share(i);
            for (std::size_t x = 0; x < row; ++x) sums[x] += share * line[x];
        }
        out = std::transform(sums.begin(), sums.end(), out, rounded);
    }
    return made;
}

}  // namespace gamma_edge
