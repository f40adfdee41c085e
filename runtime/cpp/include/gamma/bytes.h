// Encoded files in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gamma_edge {

using Bytes = std::vector<std::uint8_t>;

/// Bytes that somebody else owns.
struct View {
    const std::uint8_t* data = nullptr;
    std::size_t size = 0;

    View() = default;
    View(const std::uint8_t* start, std::size_t count) : data(start), size(count) {}
    View(const Bytes& bytes) : data(bytes.data()), size(bytes.size()) {}  // NOLINT: a vector is a view

    /// The part from `at` on, at most `count` bytes, cut at the end.
    View part(std::size_t at, std::size_t count) const {
        if (at >= size) return {};
        return {data + at, count < size - at ? count : size - at};
    }
};

}  // namespace gamma_edge
