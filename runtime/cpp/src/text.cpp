#include "text.h"

#include "gamma/error.h"

namespace gamma_edge {
namespace {

constexpr std::size_t kMaxLine = 500;

/// The character that starts at `at`, which moves behind it; 0 where the bytes are no UTF-8.
char32_t next_character(const std::string& text, std::size_t& at) {
    const auto first = static_cast<unsigned char>(text[at++]);
    if (first < 0x80) return first;
    const std::size_t more = first >= 0xC2 && first < 0xE0   ? 1
                             : first >= 0xE0 && first < 0xF0 ? 2
                             : first >= 0xF0 && first < 0xF5 ? 3
                                                             : 0;
    if (more == 0 || at + more > text.size()) return 0;
    char32_t character = first & (0x3FU >> more);
    for (std::size_t i = 0; i < more; ++i) {
        const auto next = static_cast<unsigned char>(text[at + i]);
        if ((next & 0xC0) != 0x80) return 0;
        character = character << 6 | (next & 0x3FU);
    }
    at += more;
    return character;
}

bool is_shown(char32_t c) {
    const auto in = [c](char32_t low, char32_t high) { return low <= c && c <= high; };
    return !(c < 0x20 || in(0x7F, 0x9F) || c == 0xAD || in(0x600, 0x605) || c == 0x61C || in(0x200B, 0x200F) ||
             in(0x2028, 0x202E) || in(0x2060, 0x206F) || in(0xD800, 0xF8FF) || c == 0xFEFF || in(0xFFF9, 0xFFFB) ||
             in(0xE0000, 0x10FFFF));
}

}  // namespace

bool is_line(const std::string& text) {
    std::size_t characters = 0;
    for (std::size_t at = 0; at < text.size(); ++characters)
        if (!is_shown(next_character(text, at))) return false;
    return characters <= kMaxLine;
}

std::string printable(const std::string& text) {
    std::string made;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t start = at;
        if (is_shown(next_character(text, at)))
            made.append(text, start, at - start);
        else
            made += '?';
    }
    return made;
}

}  // namespace gamma_edge
