// Does a long run lose memory? leak PHOTO.jpg [--leak | --leak-pages]: ends with 0, or with 9 where memory grew.
//
// Two measures, since each is blind where the other sees. What malloc has handed out is exact to the byte, but knows
// nothing of memory that a library takes from the system itself. RssAnon, the process's own pages, holds all of it, but
// a leak of small pieces is not seen there for megabytes: they fill the pages that the allocator keeps from freed
// pictures. --leak loses a kilobyte a call from malloc, --leak-pages a page from the system.
#include <gamma/gamma.h>
#include <malloc.h>
#include <sys/mman.h>

#include <array>
#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "test.h"

namespace {

constexpr int kWarm = 200, kCalls = 2000, kLost = 1024, kPage = 4096, kGrew = 9;
constexpr long kLimit = 512 * 1024;  // bytes over kCalls calls: a quarter of a leak of a kilobyte each

struct Memory {
    long handed_out = 0, pages = 0;  // bytes
};

Memory memory() {
    Memory now;
    now.handed_out = static_cast<long>(mallinfo2().uordblks + mallinfo2().hblkhd);
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
        if (line.rfind("RssAnon:", 0) == 0) now.pages = 1024 * std::atol(line.c_str() + 8);
    CHECK(now.handed_out > 0 && now.pages > 0);
    return now;
}

void lose_a_kilobyte() {
    static void* volatile lost;
    lost = std::malloc(kLost);
    CHECK(lost != nullptr);
}

void lose_a_page() {
    void* const lost = mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(lost != MAP_FAILED);
    std::memset(lost, 1, kPage);  // a page that nobody touched takes no memory
}

/// Whether one of the two measures grew over the limit.
bool grew(const char* what, const std::function<void()>& lose, const std::function<void(int)>& call) {
    const auto run = [&](int calls) {
        for (int i = 0; i < calls; ++i) {
            call(i);
            lose();
        }
    };
    run(kWarm);
    const Memory before = memory();
    run(kCalls);
    const Memory after = memory();
    const auto said = [&](const char* measure, long growth) {
        std::printf("%s, %d times: %s %+ld bytes, limit %ld: %s\n", what, kCalls, measure, growth, kLimit,
                    growth > kLimit ? "grew" : "steady");
        return growth > kLimit;
    };
    const bool handed_out = said("malloc", after.handed_out - before.handed_out);
    return said("RssAnon", after.pages - before.pages) || handed_out;
}

/// A JPEG whose header is whole and whose pixels are not: libjpeg finds out in the middle of its work.
std::vector<unsigned char> broken(std::vector<unsigned char> photo) {
    const std::size_t middle = photo.size() / 2;
    for (std::size_t i = middle; i < middle + 200; ++i) photo[i] = i % 2 == 0 ? 0xFF : 0x00;
    return photo;
}

}  // namespace

int main(int count, char** words) {
    const char* const bundle = test_bundle();
    if (count < 2) return GAMMA_EDGE_USAGE;
    const std::string flag = count > 2 ? words[2] : "";
    const std::function<void()> lose = flag == "--leak"         ? lose_a_kilobyte
                                       : flag == "--leak-pages" ? lose_a_page
                                                                : [] {};
    std::size_t size = 0;
    unsigned char* const content = test_read(words[1], &size);
    const std::vector<unsigned char> photo(content, content + size), damaged = broken(photo), pixels(3 * 300 * 300, 99);
    std::free(content);
    gamma_edge_options options = GAMMA_EDGE_OPTIONS;
    options.threads = 1;
    gamma_edge_scorer* scorer = nullptr;
    CHECK(gamma_edge_open(bundle, &options, &scorer) == GAMMA_EDGE_OK);
    gamma_edge_score score = GAMMA_EDGE_SCORE;

    // It is libjpeg that refuses, and that is left by a jump.
    CHECK(gamma_edge_score_bytes(scorer, damaged.data(), size, &score) == GAMMA_EDGE_INPUT);
    CHECK(std::strstr(gamma_edge_error_text(scorer), "Corrupt JPEG data") != nullptr);

    const auto scored = [&](int number) {
        CHECK((number % 10 == 0
                   ? gamma_edge_score_bytes(scorer, photo.data(), size, &score)
                   : gamma_edge_score_pixels(scorer, pixels.data(), 300, 300, 0, &score)) == GAMMA_EDGE_OK);
        CHECK(std::isfinite(score.value));
    };
    const auto refused = [&](int) {
        const std::array<gamma_edge_status, 4> found{
            gamma_edge_score_bytes(scorer, damaged.data(), size, &score),
            gamma_edge_score_bytes(scorer, photo.data(), size / 2, &score),
            gamma_edge_score_file(scorer, "nowhere.jpg", &score),
            gamma_edge_score_pixels(scorer, pixels.data(), 300, 200, 0, &score),
        };
        for (gamma_edge_status status : found) CHECK(status == GAMMA_EDGE_INPUT);
    };
    bool any = grew("scored", lose, scored);
    any |= grew("refused", lose, refused);
    gamma_edge_close(scorer);
    return any ? kGrew : 0;
}
