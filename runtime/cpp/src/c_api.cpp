// The C interface over Scorer: arguments are checked here, and nothing is thrown out of here.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gamma/gamma.h"
#include "gamma/scorer.h"
#include "guard.h"
#include "sniff.h"

using gamma_edge::Bytes;
using gamma_edge::Error;
using gamma_edge::Exit;
using gamma_edge::Score;

struct gamma_edge_scorer {
    gamma_edge::Scorer scorer;
    Score last;                      // what the last score points into
    std::vector<const char*> flags;  // of `last`
    gamma_edge::Failure failure;
};

namespace {

static_assert(GAMMA_EDGE_BUG == static_cast<int>(Exit::bug) && GAMMA_EDGE_USAGE == static_cast<int>(Exit::usage) &&
              GAMMA_EDGE_INPUT == static_cast<int>(Exit::input) &&
              GAMMA_EDGE_INTEGRITY == static_cast<int>(Exit::integrity) &&
              GAMMA_EDGE_ENVIRONMENT == static_cast<int>(Exit::environment) &&
              GAMMA_EDGE_OUTPUT == static_cast<int>(Exit::output) && GAMMA_EDGE_GATE == static_cast<int>(Exit::gate));

thread_local gamma_edge::Failure thread_failure;

// What the structures measured when they were first published; they only grow.
constexpr std::size_t kFirstOptions = offsetof(gamma_edge_options, strict) + sizeof(std::int32_t);
constexpr std::size_t kFirstScore = offsetof(gamma_edge_score, height) + sizeof(std::int32_t);
constexpr std::size_t kMostSize = 4096;  // more is a structure that nobody set up

template <class Pointer>
void need(Pointer pointer, const char* name) {
    if (pointer == nullptr) throw Error(Exit::usage, std::string(name) + " is NULL");
}

void need_size(std::size_t size, std::size_t first, const char* name) {
    if (size < first || size > kMostSize)
        throw Error(Exit::usage,
                    std::string(name) + ": struct_size is " + std::to_string(size) + ", not " + std::to_string(first) +
                        " to " + std::to_string(kMostSize),
                    "start from the header's GAMMA_EDGE_OPTIONS or GAMMA_EDGE_SCORE");
}

std::string text(const char* given) { return given == nullptr ? "" : given; }

/// The program's options, whatever header it was compiled with.
gamma_edge_options known(const gamma_edge_options* given) {
    gamma_edge_options options = GAMMA_EDGE_OPTIONS;
    if (given == nullptr) return options;
    need_size(given->struct_size, kFirstOptions, "options");
    const auto* bytes = reinterpret_cast<const unsigned char*>(given);
    // A newer program may not ask for what this library would silently ignore.
    if (std::any_of(bytes + std::min(sizeof options, given->struct_size), bytes + given->struct_size,
                    [](unsigned char byte) { return byte != 0; }))
        throw Error(Exit::usage, "options: one is set that this library is too old to know",
                    "gamma_edge_version() says its version");
    std::memcpy(&options, given, std::min(sizeof options, given->struct_size));
    return options;
}

gamma_edge::ScorerOptions scorer_options(const gamma_edge_options& given) {
    gamma_edge::ScorerOptions options;
    options.scene = text(given.scene);
    options.precision = text(given.precision);
    options.small = text(given.small);
    options.threads = given.threads;
    options.strict = given.strict != 0;
    options.backend = text(given.backend);
    options.engine_dir = text(given.engine_dir);
    if (given.threads < 0) throw Error(Exit::usage, "threads: " + std::to_string(given.threads) + " is negative");
    return options;
}

/// Write the part of a score that the program's header knows.
void hand_out(const gamma_edge_score& made, gamma_edge_score* score) {
    const std::size_t size = score->struct_size, common = std::min(size, sizeof made);
    std::memset(score, 0, size);
    std::memcpy(score, &made, common);
    score->struct_size = size;
}

gamma_edge_score view(gamma_edge_scorer& handle) {
    const Score& last = handle.last;
    handle.flags.clear();
    for (const std::string& flag : last.flags) handle.flags.push_back(flag.c_str());
    gamma_edge_score made = GAMMA_EDGE_SCORE;
    made.value = last.value;
    made.lowest = last.range[0];
    made.highest = last.range[1];
    made.crop_std = last.crop_std;
    made.crop_scores = last.crop_scores.data();
    made.crop_count = last.crop_scores.size();
    made.flags = handle.flags.data();
    made.flag_count = handle.flags.size();
    made.scene = last.scene.c_str();
    made.backend = last.backend.c_str();
    made.bundle_sha256 = last.bundle.c_str();
    made.width = last.width;
    made.height = last.height;
    return made;
}

/// Run `work`; its failure is the thread's.
template <class Work>
gamma_edge_status call(const Work& work) noexcept {
    return static_cast<gamma_edge_status>(gamma_edge::guarded(thread_failure, work));
}

/// Score with `work`; its failure is the scorer's and the thread's.
template <class Work>
gamma_edge_status scored(gamma_edge_scorer* handle, gamma_edge_score* score, const Work& work) noexcept {
    const gamma_edge_status status = call([&] {
        need(handle, "scorer");
        need(score, "score");
        need_size(score->struct_size, kFirstScore, "score");
        gamma_edge_score failed = GAMMA_EDGE_SCORE;
        failed.value = std::numeric_limits<double>::quiet_NaN();
        hand_out(failed, score);
        handle->last = work(handle->scorer);
        hand_out(view(*handle), score);
    });
    if (handle != nullptr) handle->failure.copy(thread_failure);
    return status;
}

gamma_edge::Pixels packed(const std::uint8_t* rgb, std::int32_t width, std::int32_t height, std::size_t row_bytes,
                          const gamma_edge::Limits& limits) {
    need(rgb, "rgb");
    const std::string size = std::to_string(width) + " x " + std::to_string(height);
    if (width < 1 || height < 1) throw Error(Exit::usage, "pixels: " + size + " is no size of a picture");
    gamma_edge::check_size(width, height, limits, "pixels");  // before a wrong size makes us copy gigabytes
    const std::size_t row = 3 * static_cast<std::size_t>(width);
    if (row_bytes == 0) row_bytes = row;
    if (row_bytes < row)
        throw Error(Exit::usage, "pixels: row_bytes is " + std::to_string(row_bytes) + "; a row of " + size + " has " +
                                     std::to_string(row));
    gamma_edge::Pixels pixels{width, height, {}};
    pixels.rgb.reserve(row * static_cast<std::size_t>(height));
    for (std::size_t y = 0; y < static_cast<std::size_t>(height); ++y)
        pixels.rgb.insert(pixels.rgb.end(), rgb + y * row_bytes, rgb + y * row_bytes + row);
    return pixels;
}

}  // namespace

const char* gamma_edge_version(void) { return GAMMA_EDGE_VERSION; }

gamma_edge_status gamma_edge_open(const char* bundle, const gamma_edge_options* options, gamma_edge_scorer** scorer) {
    return call([&] {
        need(scorer, "scorer");
        *scorer = nullptr;
        need(bundle, "bundle");
        *scorer = new gamma_edge_scorer{gamma_edge::Scorer(bundle, scorer_options(known(options))), {}, {}, {}};
    });
}

void gamma_edge_close(gamma_edge_scorer* scorer) { delete scorer; }

gamma_edge_status gamma_edge_score_file(gamma_edge_scorer* scorer, const char* path, gamma_edge_score* score) {
    return scored(scorer, score, [&](gamma_edge::Scorer& open) {
        need(path, "path");
        return open.score_file(path);
    });
}

gamma_edge_status gamma_edge_score_bytes(gamma_edge_scorer* scorer, const void* data, size_t size,
                                         gamma_edge_score* score) {
    return scored(scorer, score, [&](gamma_edge::Scorer& open) {
        need(data, "data");
        return open.score(gamma_edge::View(static_cast<const std::uint8_t*>(data), size), "bytes");
    });
}

gamma_edge_status gamma_edge_score_pixels(gamma_edge_scorer* scorer, const uint8_t* rgb, int32_t width, int32_t height,
                                          size_t row_bytes, gamma_edge_score* score) {
    return scored(scorer, score, [&](gamma_edge::Scorer& open) {
        return open.score(packed(rgb, width, height, row_bytes, open.bundle().contract().limits), "pixels");
    });
}

const char* gamma_edge_error_text(const gamma_edge_scorer* scorer) {
    return scorer == nullptr ? thread_failure.text() : scorer->failure.text();
}

const char* gamma_edge_error_hint(const gamma_edge_scorer* scorer) {
    return scorer == nullptr ? thread_failure.hint() : scorer->failure.hint();
}
