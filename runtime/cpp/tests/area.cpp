// Reduction by area against OpenCV's, over sizes of all kinds. On x86 only: elsewhere OpenCV's has other last bits,
// which is why ours exists.
#include "area.h"

#include <cstdio>
#include <cstring>
#include <opencv2/imgproc.hpp>
#include <random>

#include "area_pixel.h"

namespace {

std::mt19937 numbers(5);
std::uint64_t checksum = 0;                               // of what ours made
constexpr std::uint64_t kChecksum = 0x2ab861d75eaaeec5U;  // on every processor

int number(int low, int high) { return low + static_cast<int>(numbers() % static_cast<unsigned>(high - low + 1)); }

bool same(int width, int height, int to_width, int to_height) {
    gamma_edge::Pixels pixels{width, height, gamma_edge::Bytes(static_cast<std::size_t>(3 * width * height))};
    for (std::uint8_t& value : pixels.rgb) value = static_cast<std::uint8_t>(numbers());
    const cv::Mat from(height, width, CV_8UC3, pixels.rgb.data());
    cv::Mat wanted;
    cv::resize(from, wanted, {to_width, to_height}, 0, 0, cv::INTER_AREA);
    const bool whole = gamma_edge::whole_factor(width, height, to_width, to_height).x != 0;
    const gamma_edge::Pixels found = whole ? gamma_edge::reduced_by_area(pixels, to_width, to_height)
                                           : gamma_edge::steady_area(pixels, to_width, to_height);
    for (std::uint8_t value : found.rgb) checksum = checksum * 1099511628211U + value;
    const bool equal = std::memcmp(found.rgb.data(), wanted.data, found.rgb.size()) == 0;
    if (!equal) std::fprintf(stderr, "%dx%d to %dx%d: other pixels\n", width, height, to_width, to_height);
    return equal;
}

}  // namespace

int main() {
    int wrong = 0;
    for (int i = 0; i < 200; ++i) {  // both sides by about the same
        const int width = number(20, 900), height = number(20, 900), to = number(1, std::min(width, height));
        const auto scaled = [&](int side) { return std::max(1, side * to / std::min(width, height)); };
        wrong += !same(width, height, scaled(width), scaled(height));
    }
    for (int i = 0; i < 100; ++i) {  // each side by its own, one sometimes not at all
        const int width = number(1, 300), height = number(1, 300);
        const int to_width = number(1, width), to_height = number(1, height);
        wrong += !same(width, height, to_width, to_height);
    }
    for (int ratio = 1; ratio <= 110; ++ratio) {  // whole pixels into one, 49 and its like among them
        const int width = number(1, 9), height = number(1, 9);
        wrong += !same(ratio * width, ratio * height, 1, 1);
        wrong += !same(ratio * width, ratio * height, width, height);
    }
    std::printf("%d of 520 sizes have other pixels than OpenCV's; checksum %016llx\n", wrong,
                static_cast<unsigned long long>(checksum));
#ifndef __x86_64__
    wrong = 0;  // OpenCV's own pixels have other last bits here
#endif
    return wrong == 0 && checksum == kChecksum ? 0 : 1;
}
