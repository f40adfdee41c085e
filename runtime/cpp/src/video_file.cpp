#include "video_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "gamma/bytes.h"
#include "gamma/error.h"

namespace gamma_edge {
namespace {

constexpr std::size_t kHead = 400;
constexpr int kMaxParts = 1 << 20;  // top-level boxes; a fragmented recording has two a fragment

class Reader {
public:
    explicit Reader(const std::string& path) : number_(open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)) {
        struct stat status{};
        if (number_ < 0 || fstat(number_, &status) != 0) fail(path, errno);
        if (S_ISDIR(status.st_mode)) fail(path, EISDIR);
        if (!S_ISREG(status.st_mode)) {
            close(number_);
            throw input_error(path + ": not a regular file (pipe or device)");
        }
        size_ = static_cast<std::uint64_t>(status.st_size);
    }
    ~Reader() { close(number_); }
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

    std::uint64_t size() const { return size_; }

    /// What is there of `count` bytes at a place.
    Bytes at(std::uint64_t place, std::size_t count) const {
        Bytes bytes(count);
        const ssize_t got = pread(number_, bytes.data(), count, static_cast<off_t>(place));
        bytes.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
        return bytes;
    }

private:
    [[noreturn]] void fail(const std::string& path, int why) const {
        if (number_ >= 0) close(number_);
        throw input_error(path + ": cannot be read (" + std::strerror(why) + ")",
                          why == EISDIR ? "a folder of images: put a slash behind it" : "");
    }

    int number_;
    std::uint64_t size_ = 0;
};

bool has(const Bytes& bytes, std::size_t at, const char* text) {
    const std::size_t length = std::strlen(text);
    return bytes.size() >= at + length && std::memcmp(bytes.data() + at, text, length) == 0;
}

std::uint64_t big_endian(const Bytes& bytes, std::size_t at, std::size_t count) {
    std::uint64_t value = 0;
    for (std::size_t i = at; i < std::min(at + count, bytes.size()); ++i) value = value << 8 | bytes[i];
    return value;
}

/// AVI: RIFF chunks one after another, each with its length; more than one in files over 1 GB.
std::uint64_t missing_riff(const Reader& file) {
    std::uint64_t at = 0;
    for (int i = 0; i < kMaxParts && file.size() >= at + 8; ++i) {
        const Bytes head = file.at(at, 8);
        if (head.size() < 8 || !has(head, 0, "RIFF")) break;  // what programs append
        at += 8 + (head[4] | std::uint64_t{head[5]} << 8 | std::uint64_t{head[6]} << 16 | std::uint64_t{head[7]} << 24);
        at += at & 1;
    }
    return at > file.size() + 1 ? at - file.size() : 0;  // the filler byte of an odd chunk may be left out
}

/// MP4 and MOV: boxes one after another. The last may say "to the end".
std::uint64_t missing_boxes(const Reader& file) {
    std::uint64_t at = 0;
    for (int i = 0; i < kMaxParts && at < file.size(); ++i) {
        const Bytes head = file.at(at, 16);
        std::uint64_t length = big_endian(head, 0, 4);
        if (length == 1) length = head.size() == 16 ? big_endian(head, 8, 8) : 16;
        if (length == 0) break;
        if (length < 8) return 0;  // nothing that has a length: the decoder will say what it thinks of it
        if (length > UINT64_MAX - at) return length - (file.size() - at);
        at += length;
    }
    return at > file.size() ? at - file.size() : 0;
}

struct Vint {
    std::uint64_t value = 0;
    std::size_t width = 1;
};

/// Matroska's numbers: as many bytes as the first has leading zeros, and one more.
Vint vint(const Bytes& data, std::uint64_t at) {
    const int first = at < data.size() ? data[static_cast<std::size_t>(at)] : 0;
    std::size_t width = 1;
    while (width < 9 && !(first >> (8 - width))) ++width;
    if (at >= data.size()) return {0, width};
    const std::uint64_t mask = width >= 9 ? UINT64_MAX >> 1 : (std::uint64_t{1} << 7 * width) - 1;
    return {big_endian(data, static_cast<std::size_t>(at), width) & mask, width};
}

/// Matroska and WebM: a header, then one segment; its length is all ones where it was written live.
std::uint64_t missing_matroska(const Bytes& head, std::uint64_t size) {
    const Vint header = vint(head, 4);
    const std::uint64_t at = 4 + header.width + header.value;
    if (at >= head.size() || !has(head, static_cast<std::size_t>(at), "\x18\x53\x80\x67")) return 0;
    const Vint segment = vint(head, at + 4);
    if (segment.value == (std::uint64_t{1} << 7 * segment.width) - 1) return 0;
    const std::uint64_t end = at + 4 + segment.width + segment.value;
    return end > size ? end - size : 0;
}

bool is_transport(const Bytes& head, std::size_t first, std::size_t step) {
    for (std::size_t at = first; at <= first + 2 * step; at += step)
        if (at >= head.size() || head[at] != 0x47) return false;
    return true;
}

std::uint64_t missing(const Reader& file, const std::string& path) {
    const Bytes head = file.at(0, kHead);
    if (has(head, 0, "RIFF") && has(head, 8, "AVI ")) return missing_riff(file);
    for (const char* box : {"ftyp", "styp", "moov", "mdat", "free", "skip", "wide", "pnot"})
        if (has(head, 4, box)) return missing_boxes(file);
    if (has(head, 0, "\x1a\x45\xdf\xa3")) return missing_matroska(head, file.size());
    const bool mpeg = head.size() >= 4 && big_endian(head, 0, 3) == 1 && (head[3] == 0xBA || head[3] == 0xB3);
    if (mpeg || has(head, 0, "\xff\xd8\xff") || is_transport(head, 0, 188) || is_transport(head, 4, 192)) return 0;
    throw input_error(path + (head.empty() ? ": the file is empty" : ": not a video, by its content"),
                      "MP4 and MOV, Matroska and WebM, AVI, MPEG (program, transport), motion JPEG");
}

}  // namespace

void check_video(const std::string& path) {
    const Reader file(path);
    const std::uint64_t bytes = missing(file, path);
    if (bytes > 0)
        throw input_error(
            path + ": the file ends " + std::to_string(bytes) + " bytes before the video does: it was cut off",
            "copy it again, or keep what is there: ffmpeg -i CUT -c copy whole.mkv");
}

}  // namespace gamma_edge
