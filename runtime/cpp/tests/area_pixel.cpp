// The arithmetic that cuts crops on the GPU, run on the CPU, against OpenCV's INTER_AREA: every byte, over sizes with
// whole, nearly whole and odd factors, of RGB with padded rows and of BGRX. With --off a share is wrong, and must be
// seen.
#include "area_pixel.h"

#include <cstdio>
#include <cstring>
#include <opencv2/imgproc.hpp>
#include <random>
#include <vector>

namespace {

using namespace gamma_edge;

struct Case {
    int width, height, to_width, to_height;
};

const Case kCases[] = {
    {1280, 720, 683, 384}, {1920, 1080, 683, 384}, {640, 480, 512, 384},  {768, 768, 384, 384},
    {1152, 768, 576, 384}, {1536, 1152, 512, 384}, {512, 384, 299, 224},  {448, 448, 224, 224},
    {401, 300, 299, 224},  {3840, 2160, 683, 384}, {1000, 385, 997, 384}, {385, 4000, 384, 3990},
    {896, 672, 299, 224},  {672, 672, 224, 224},   {1024, 683, 576, 384}, {2048, 1536, 1024, 768},
    {517, 516, 385, 384},  {1279, 721, 681, 384},  {225, 224, 224, 224},  {800, 600, 800, 300},
};

/// Bytes that differ.
long differences(const Case& size, int step, int red, bool off) {
    std::mt19937 numbers(static_cast<unsigned>(size.width * 7 + size.to_height));
    cv::Mat rgb(size.height, size.width, CV_8UC3), wanted;
    for (int y = 0; y < rgb.rows; ++y)
        for (int x = 0; x < 3 * rgb.cols; ++x) rgb.ptr(y)[x] = static_cast<std::uint8_t>(numbers() >> 11);
    cv::resize(rgb, wanted, cv::Size(size.to_width, size.to_height), 0, 0, cv::INTER_AREA);
    const std::size_t pitch = static_cast<std::size_t>(step * size.width + 13);
    std::vector<std::uint8_t> frame(pitch * static_cast<std::size_t>(size.height), 77);
    for (int y = 0; y < rgb.rows; ++y)
        for (int x = 0; x < rgb.cols; ++x)
            for (int channel = 0; channel < 3; ++channel) {
                const int offset = channel == 1 ? 1 : channel == 0 ? red : 2 - red;
                frame[static_cast<std::size_t>(y) * pitch + static_cast<std::size_t>(step * x + offset)] =
                    rgb.ptr(y)[3 * x + channel];
            }
    const Raster raster{frame.data(), pitch, step, red};
    const WholeFactor factor = whole_factor(size.width, size.height, size.to_width, size.to_height);
    std::vector<Span> columns = area_spans(size.width, size.to_width), rows = area_spans(size.height, size.to_height);
    if (off) columns[5].first *= 1.02F;
    long found = 0;
    for (int y = 0; y < size.to_height; ++y)
        for (int x = 0; x < size.to_width; ++x)
            for (int channel = 0; channel < 3; ++channel) {
                const auto column = static_cast<std::size_t>(x), row = static_cast<std::size_t>(y);
                const std::uint8_t made = factor.x ? whole_pixel(raster, factor, x, y, channel)
                                                   : area_pixel(raster, columns[column], rows[row], channel);
                found += made != wanted.ptr(y)[3 * x + channel];
            }
    return found;
}

}  // namespace

int main(int count, char** words) {
    const bool off = count == 2 && std::strcmp(words[1], "--off") == 0;
    long total = 0;
    for (const Case& size : kCases) {
        const long plain = differences(size, 3, 0, off), camera = differences(size, 4, 2, off);
        std::printf("%dx%d to %dx%d: %ld and %ld bytes differ\n", size.width, size.height, size.to_width,
                    size.to_height, plain, camera);
        total += plain + camera;
    }
    std::printf("%ld bytes differ\n", total);
    return total == 0 ? 0 : 1;
}
