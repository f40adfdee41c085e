/* The C interface from C11: c_api PHOTO GAMMA-RUN-CPP. Every call, and every way in which it refuses. */
#define _POSIX_C_SOURCE 200809L
#include <gamma/gamma.h>
#include <math.h>
#include <pthread.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "test.h"

/* A call failed with this status, its text says `what`, and the score cannot be taken for one. */
static void refused(gamma_edge_scorer* scorer, gamma_edge_status found, gamma_edge_status wanted, const char* what,
                    const gamma_edge_score* score) {
    const char* text = gamma_edge_error_text(scorer);
    if (found != wanted || strstr(text, what) == NULL) {
        fprintf(stderr, "status %d instead of %d, or no \"%s\" in: %s\n", (int)found, (int)wanted, what, text);
        exit(1);
    }
    CHECK(strcmp(text, gamma_edge_error_text(NULL)) == 0);
    CHECK(strchr(text, '\n') == NULL);
    if (score == NULL) return;
    CHECK(isnan(score->value));
    CHECK(score->crop_scores == NULL && score->crop_count == 0 && score->flags == NULL && score->scene == NULL);
}

static void refused_open(const char* bundle, const gamma_edge_options* options, gamma_edge_status wanted,
                         const char* what) {
    int place = 0;
    gamma_edge_scorer* scorer = (gamma_edge_scorer*)&place; /* must become NULL */
    const gamma_edge_status found = gamma_edge_open(bundle, options, &scorer);
    refused(NULL, found, wanted, what, NULL);
    CHECK(scorer == NULL);
}

static void test_opening(const char* bundle) {
    gamma_edge_options options = GAMMA_EDGE_OPTIONS;
    refused_open(NULL, NULL, GAMMA_EDGE_USAGE, "bundle is NULL");
    refused(NULL, gamma_edge_open(bundle, NULL, NULL), GAMMA_EDGE_USAGE, "scorer is NULL", NULL);
    refused_open("no/such.gamma", NULL, GAMMA_EDGE_INPUT, "no/such.gamma");
    CHECK(strlen(gamma_edge_error_hint(NULL)) > 0);
    refused_open("", NULL, GAMMA_EDGE_INPUT, "");
    options.scene = "no-such-scene";
    refused_open(bundle, &options, GAMMA_EDGE_INPUT, "no-such-scene");
    options = (gamma_edge_options)GAMMA_EDGE_OPTIONS;
    options.precision = "fp3";
    refused_open(bundle, &options, GAMMA_EDGE_INPUT, "fp3");
    options = (gamma_edge_options)GAMMA_EDGE_OPTIONS;
    options.backend = "abacus";
    refused_open(bundle, &options, GAMMA_EDGE_USAGE, "abacus");
    options = (gamma_edge_options)GAMMA_EDGE_OPTIONS;
    options.small = "tiny";
    refused_open(bundle, &options, GAMMA_EDGE_USAGE, "tiny");
    options = (gamma_edge_options)GAMMA_EDGE_OPTIONS;
    options.threads = -1;
    refused_open(bundle, &options, GAMMA_EDGE_USAGE, "threads: -1");
}

/* Programs with an older header, a newer one, and none. */
static void test_sizes(const char* bundle, gamma_edge_scorer* scorer, const char* photo) {
    struct {
        gamma_edge_options known;
        const char* later;
    } newer = {GAMMA_EDGE_OPTIONS, NULL};
    struct {
        gamma_edge_score known;
        double later;
    } grown = {GAMMA_EDGE_SCORE, 5};
    gamma_edge_scorer* other = NULL;
    gamma_edge_score score;

    newer.known.struct_size = sizeof newer;
    CHECK(gamma_edge_open(bundle, &newer.known, &other) == GAMMA_EDGE_OK);
    gamma_edge_close(other);
    newer.later = "set";
    refused_open(bundle, &newer.known, GAMMA_EDGE_USAGE, "too old");
    newer.known.struct_size = 8;
    refused_open(bundle, &newer.known, GAMMA_EDGE_USAGE, "struct_size is 8");
    newer.known.struct_size = (size_t)-1;
    refused_open(bundle, &newer.known, GAMMA_EDGE_USAGE, "struct_size");

    grown.known.struct_size = sizeof grown;
    CHECK(gamma_edge_score_file(scorer, photo, &grown.known) == GAMMA_EDGE_OK);
    CHECK(grown.known.struct_size == sizeof grown && grown.later == 0 && grown.known.width > 0);
    memset(&score, 0, sizeof score);
    refused(scorer, gamma_edge_score_file(scorer, photo, &score), GAMMA_EDGE_USAGE, "struct_size is 0", NULL);
    memset(&score, 0xA5, sizeof score);
    refused(scorer, gamma_edge_score_file(scorer, photo, &score), GAMMA_EDGE_USAGE, "struct_size", NULL);
}

static void test_refused_images(gamma_edge_scorer* scorer, const char* photo) {
    static const unsigned char garbage[] = "no picture at all", grey[300 * 300 * 3] = {0};
    gamma_edge_score score = GAMMA_EDGE_SCORE;
    size_t size = 0;
    unsigned char* content = test_read(photo, &size);
    refused(NULL, gamma_edge_score_file(NULL, photo, &score), GAMMA_EDGE_USAGE, "scorer is NULL", NULL);

#define REFUSED(status, what, call) refused(scorer, call, status, what, &score)
    REFUSED(GAMMA_EDGE_USAGE, "path is NULL", gamma_edge_score_file(scorer, NULL, &score));
    REFUSED(GAMMA_EDGE_INPUT, "nowhere.jpg", gamma_edge_score_file(scorer, "nowhere.jpg", &score));
    REFUSED(GAMMA_EDGE_INPUT, "not a regular file", gamma_edge_score_file(scorer, "/", &score));
    REFUSED(GAMMA_EDGE_INPUT, "cannot be read", gamma_edge_score_file(scorer, "a\nb\033[2J", &score));
    REFUSED(GAMMA_EDGE_USAGE, "data is NULL", gamma_edge_score_bytes(scorer, NULL, 9, &score));
    REFUSED(GAMMA_EDGE_INPUT, "empty", gamma_edge_score_bytes(scorer, garbage, 0, &score));
    REFUSED(GAMMA_EDGE_INPUT, "not an image", gamma_edge_score_bytes(scorer, garbage, sizeof garbage, &score));
    REFUSED(GAMMA_EDGE_INPUT, "jpeg", gamma_edge_score_bytes(scorer, content, size / 2, &score));
    CHECK(strlen(gamma_edge_error_hint(scorer)) > 0);
    REFUSED(GAMMA_EDGE_USAGE, "rgb is NULL", gamma_edge_score_pixels(scorer, NULL, 300, 300, 0, &score));
    REFUSED(GAMMA_EDGE_USAGE, "0 x 300", gamma_edge_score_pixels(scorer, grey, 0, 300, 0, &score));
    REFUSED(GAMMA_EDGE_USAGE, "300 x -1", gamma_edge_score_pixels(scorer, grey, 300, -1, 0, &score));
    REFUSED(GAMMA_EDGE_USAGE, "row_bytes is 899", gamma_edge_score_pixels(scorer, grey, 300, 300, 899, &score));
    REFUSED(GAMMA_EDGE_INPUT, "224", gamma_edge_score_pixels(scorer, grey, 300, 223, 0, &score));
    /* Refused before a byte is read: there are far fewer. */
    REFUSED(GAMMA_EDGE_INPUT, "limit", gamma_edge_score_pixels(scorer, grey, INT32_MAX, INT32_MAX, 0, &score));
    REFUSED(GAMMA_EDGE_INPUT, "aspect", gamma_edge_score_pixels(scorer, grey, 16000, 224, 0, &score));
#undef REFUSED
    refused(scorer, gamma_edge_score_file(scorer, photo, NULL), GAMMA_EDGE_USAGE, "score is NULL", NULL);
    CHECK(gamma_edge_score_file(scorer, photo, &score) == GAMMA_EDGE_OK);
    CHECK(gamma_edge_error_text(scorer)[0] == '\0' && gamma_edge_error_hint(scorer)[0] == '\0');
    CHECK(gamma_edge_error_text(NULL)[0] == '\0');
    free(content);
}

/* The number behind "score": in the line of gamma-run-cpp --json. */
static double told_by(const char* tool, const char* bundle, const char* photo) {
    char command[4096], line[65536];
    snprintf(command, sizeof command, "'%s' '%s' '%s' --threads 1 --json", tool, bundle, photo);
    FILE* pipe = popen(command, "r");
    CHECK(pipe != NULL && fgets(line, sizeof line, pipe) != NULL && pclose(pipe) == 0);
    const char* found = strstr(line, "\"score\":");
    CHECK(found != NULL);
    return strtod(found + strlen("\"score\":"), NULL);
}

static double test_score(gamma_edge_scorer* scorer, const char* bundle, const char* photo, const char* tool) {
    gamma_edge_score score = GAMMA_EDGE_SCORE, again = GAMMA_EDGE_SCORE;
    CHECK(gamma_edge_score_file(scorer, photo, &score) == GAMMA_EDGE_OK);
    CHECK(score.lowest <= score.value && score.value <= score.highest);
    CHECK(score.crop_count >= 1 && score.crop_std >= 0 && score.width >= 224 && score.height >= 224);
    CHECK(strlen(score.bundle_sha256) == 64 && strlen(score.scene) > 0 && strcmp(score.backend, "openvino") == 0);
    double sum = 0;
    for (size_t i = 0; i < score.crop_count; ++i) sum += score.crop_scores[i];
    CHECK(fabs(sum / (double)score.crop_count - score.value) < 1e-6);
    for (size_t i = 0; i < score.flag_count; ++i) CHECK(strlen(score.flags[i]) > 0);
    CHECK(score.value == told_by(tool, bundle, photo));

    const double value = score.value;
    size_t size = 0;
    unsigned char* content = test_read(photo, &size);
    CHECK(gamma_edge_score_bytes(scorer, content, size, &again) == GAMMA_EDGE_OK);
    CHECK(again.value == value);
    free(content);
    return value;
}

/* Rows with a gap between them score as rows without: what lies in the gaps is never looked at. */
static void test_pixels(gamma_edge_scorer* scorer) {
    enum { WIDTH = 300, HEIGHT = 260, ROW = 3 * WIDTH + 61 };
    static unsigned char tight[HEIGHT][3 * WIDTH], gaps[HEIGHT][ROW];
    gamma_edge_score first = GAMMA_EDGE_SCORE, second = GAMMA_EDGE_SCORE;
    memset(gaps, 255, sizeof gaps);
    for (int y = 0; y < HEIGHT; ++y)
        for (int x = 0; x < 3 * WIDTH; ++x) gaps[y][x] = tight[y][x] = (unsigned char)((x * 7 + y * 3) % 200);
    CHECK(gamma_edge_score_pixels(scorer, tight[0], WIDTH, HEIGHT, 0, &first) == GAMMA_EDGE_OK);
    CHECK(first.width == WIDTH && first.height == HEIGHT);
    const double value = first.value;
    CHECK(gamma_edge_score_pixels(scorer, gaps[0], WIDTH, HEIGHT, ROW, &second) == GAMMA_EDGE_OK);
    CHECK(second.value == value);
    /* The same buffer with the wrong step is another picture, so the two lines above could have failed. */
    CHECK(gamma_edge_score_pixels(scorer, gaps[0], WIDTH, HEIGHT, 3 * WIDTH, &second) == GAMMA_EDGE_OK);
    CHECK(second.value != value);
}

static void test_options(const char* bundle) {
    static const unsigned char small[100 * 300 * 3] = {0};
    gamma_edge_options options = {sizeof options, "face-quality", "fp32", "openvino", "pad", NULL, 1, 1};
    gamma_edge_scorer* scorer = NULL;
    gamma_edge_score score = GAMMA_EDGE_SCORE;
    CHECK(gamma_edge_open(bundle, &options, &scorer) == GAMMA_EDGE_OK);
    CHECK(gamma_edge_score_pixels(scorer, small, 100, 300, 0, &score) == GAMMA_EDGE_OK);
    CHECK(strcmp(score.scene, "face-quality") == 0);
    CHECK(score.flag_count >= 1 && strcmp(score.flags[score.flag_count - 1], "padded") == 0);
    gamma_edge_close(scorer);
}

/* Too little memory is a status, and the scorer goes on once there is some again. */
static void test_memory(gamma_edge_scorer* scorer, const char* photo) {
    enum { SIDE = 7000, ROOM = 64 << 20 };
    gamma_edge_score score = GAMMA_EDGE_SCORE;
    uint8_t* picture = (uint8_t*)calloc(SIDE, 3 * SIDE); /* 147 MB, which the call copies */
    long pages = 0;
    FILE* statm = fopen("/proc/self/statm", "r");
    CHECK(picture != NULL && statm != NULL && fscanf(statm, "%ld", &pages) == 1);
    fclose(statm);
    struct rlimit before, tight;
    CHECK(getrlimit(RLIMIT_AS, &before) == 0);
    tight = before;
    tight.rlim_cur = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + ROOM;
    CHECK(setrlimit(RLIMIT_AS, &tight) == 0);
    const gamma_edge_status status = gamma_edge_score_pixels(scorer, picture, SIDE, SIDE, 0, &score);
    CHECK(setrlimit(RLIMIT_AS, &before) == 0);
    refused(scorer, status, GAMMA_EDGE_ENVIRONMENT, "out of memory", &score);
    free(picture);
    CHECK(gamma_edge_score_file(scorer, photo, &score) == GAMMA_EDGE_OK);
}

struct work {
    const char *bundle, *photo;
    double value;
};

static void* work(void* given) {
    struct work* mine = (struct work*)given;
    gamma_edge_options options = GAMMA_EDGE_OPTIONS;
    options.threads = 1;
    gamma_edge_scorer* scorer = NULL;
    gamma_edge_score score = GAMMA_EDGE_SCORE;
    CHECK(gamma_edge_error_text(NULL)[0] == '\0'); /* the main thread has an error */
    CHECK(gamma_edge_open(mine->bundle, &options, &scorer) == GAMMA_EDGE_OK);
    for (int i = 0; i < 20; ++i) {
        CHECK(gamma_edge_score_file(scorer, mine->photo, &score) == GAMMA_EDGE_OK);
        CHECK(score.value == mine->value);
    }
    gamma_edge_close(scorer);
    return NULL;
}

/* Two scorers in two threads, and an error that stays with its own thread. */
static void test_threads(const char* bundle, const char* photo, double value) {
    struct work mine = {bundle, photo, value};
    pthread_t threads[2];
    CHECK(gamma_edge_open(NULL, NULL, NULL) == GAMMA_EDGE_USAGE);
    for (int i = 0; i < 2; ++i) CHECK(pthread_create(&threads[i], NULL, work, &mine) == 0);
    for (int i = 0; i < 2; ++i) CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(strcmp(gamma_edge_error_text(NULL), "scorer is NULL") == 0);
}

int main(int count, char** words) {
    const char* bundle = test_bundle();
    if (count != 3) return GAMMA_EDGE_USAGE;
    gamma_edge_options options = GAMMA_EDGE_OPTIONS;
    options.threads = 1;
    gamma_edge_scorer* scorer = NULL;
    CHECK(strcmp(gamma_edge_version(), GAMMA_TEST_VERSION) == 0);
    CHECK(gamma_edge_error_text(NULL)[0] == '\0');
    gamma_edge_close(NULL);
    test_opening(bundle);
    CHECK(gamma_edge_open(bundle, &options, &scorer) == GAMMA_EDGE_OK);
    const double value = test_score(scorer, bundle, words[1], words[2]);
    test_refused_images(scorer, words[1]);
    test_sizes(bundle, scorer, words[1]);
    test_pixels(scorer);
    test_memory(scorer, words[1]);
    gamma_edge_close(scorer);
    test_threads(bundle, words[1], value);
    test_options(bundle);
    printf("the C interface: every check held; %s scores %.17g\n", words[1], value);
    return 0;
}
