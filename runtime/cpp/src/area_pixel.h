// The arithmetic of OpenCV's INTER_AREA on x86, number for number: for reduced_by_area on the CPU, and one target pixel
// at a time for the GPU, in a test on the CPU too. To be compiled without fused multiply-add, which OpenCV does not use
// there.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#ifdef __CUDACC__
#define GAMMA_BOTH __host__ __device__
#else
#define GAMMA_BOTH
#endif

namespace gamma_edge {

/// The source pixels under one target pixel along one axis, and the share of each in it.
struct Span {
    int start = 0, count = 0;
    float first = 0, middle = 0, last = 0;

    GAMMA_BOTH float share(int i) const { return i == 0 ? first : i == count - 1 ? last : middle; }
};

/// Spans of a whole axis.
inline std::vector<Span> area_spans(int source, int target) {
    const double scale = 1 / (static_cast<double>(target) / source);
    std::vector<Span> spans(static_cast<std::size_t>(target));
    for (int i = 0; i < target; ++i) {
        const double begin = i * scale, end = begin + scale, width = std::fmin(scale, source - begin);
        int whole_end = static_cast<int>(std::floor(end));
        if (whole_end > source - 1) whole_end = source - 1;
        int whole_begin = static_cast<int>(std::ceil(begin));
        if (whole_begin > whole_end) whole_begin = whole_end;
        Span& span = spans[static_cast<std::size_t>(i)];
        std::vector<float> shares;
        span.start = whole_begin;
        if (whole_begin - begin > 1e-3) {
            span.start = whole_begin - 1;
            shares.push_back(static_cast<float>((whole_begin - begin) / width));
        }
        for (int j = whole_begin; j < whole_end; ++j) shares.push_back(static_cast<float>(1 / width));
        if (end - whole_end > 1e-3)
            shares.push_back(static_cast<float>(std::fmin(std::fmin(end - whole_end, 1), width) / width));
        span.count = static_cast<int>(shares.size());
        span.first = shares.front();
        span.last = shares.back();
        span.middle = static_cast<float>(1 / width);
    }
    return spans;
}

/// A whole-numbered factor of both axes, for which OpenCV adds integers; 0 where there is none.
struct WholeFactor {
    int x = 0, y = 0;
};

inline WholeFactor whole_factor(int width, int height, int to_width, int to_height) {
    const double x = 1 / (static_cast<double>(to_width) / width), y = 1 / (static_cast<double>(to_height) / height);
    const double epsilon = 2.220446049250313e-16;
    if (std::fabs(x - std::nearbyint(x)) >= epsilon || std::fabs(y - std::nearbyint(y)) >= epsilon) return {};
    return {static_cast<int>(std::nearbyint(x)), static_cast<int>(std::nearbyint(y))};
}

GAMMA_BOTH inline std::uint8_t rounded(float value) {
#ifdef __CUDA_ARCH__
    const int whole = __float2int_rn(value);
#else
    const int whole = static_cast<int>(std::lrint(value));
#endif
    return static_cast<std::uint8_t>(whole < 0 ? 0 : whole > 255 ? 255 : whole);
}

/// Pixels in memory of `step` bytes each (3 or 4) in rows of `pitch` bytes; `red` is the offset of red, 0 or 2.
struct Raster {
    const std::uint8_t* data = nullptr;
    std::size_t pitch = 0;
    int step = 3, red = 0;

    /// Channel 0 is red.
    GAMMA_BOTH int at(int x, int y, int channel) const {
        const int offset = channel == 1 ? 1 : channel == 0 ? red : 2 - red;
        return data[static_cast<std::size_t>(y) * pitch + static_cast<std::size_t>(x * step + offset)];
    }
};

/// One channel of one target pixel.
GAMMA_BOTH inline std::uint8_t area_pixel(const Raster& from, const Span& columns, const Span& rows, int channel) {
    float sum = 0;
    for (int i = 0; i < rows.count; ++i) {
        float row = 0;
        for (int j = 0; j < columns.count; ++j)
            row += static_cast<float>(from.at(columns.start + j, rows.start + i, channel)) * columns.share(j);
        const float part = rows.share(i) * row;
        sum = i == 0 ? part : sum + part;
    }
    return rounded(sum);
}

/// The same with a whole-numbered factor; 2 x 2 rounds half up, as OpenCV's vector code does.
GAMMA_BOTH inline std::uint8_t whole_pixel(const Raster& from, WholeFactor factor, int x, int y, int channel) {
    int sum = 0;
    for (int i = 0; i < factor.y; ++i)
        for (int j = 0; j < factor.x; ++j) sum += from.at(x * factor.x + j, y * factor.y + i, channel);
    if (factor.x == 2 && factor.y == 2) return static_cast<std::uint8_t>((sum + 2) >> 2);
    return rounded(static_cast<float>(sum) * (1.F / static_cast<float>(factor.x * factor.y)));
}

}  // namespace gamma_edge
