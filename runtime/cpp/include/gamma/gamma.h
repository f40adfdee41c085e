/* The C interface of libgamma_runtime: a bundle and an image become a score. Plain C11, and C++ may include it too.
 *
 * Status.   Every function that can fail returns a gamma_edge_status, which equals the exit code of the gamma commands.
 *           No C++ exception comes out.
 * Threads.  Different scorers may be used by different threads at once; one scorer by one thread at a time. The error
 *           of a call without a scorer belongs to the thread that made it.
 * Memory.   What the library returns stays the library's: the strings and arrays in a gamma_edge_score belong to the
 *           scorer and hold until the scorer's next call or gamma_edge_close. What the program passes in is read during
 *           the call only.
 * Text.     NUL-terminated. Names and messages are UTF-8; paths are the system's bytes.
 * Changes.  Structures begin with their own size and only grow at their end, so a program that was compiled with an
 *           older header runs with a newer library.
 */
#ifndef GAMMA_EDGE_GAMMA_H
#define GAMMA_EDGE_GAMMA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t gamma_edge_status;

enum {
    GAMMA_EDGE_OK = 0,
    GAMMA_EDGE_BUG = 1,         /* a fault of the library itself; please report it */
    GAMMA_EDGE_USAGE = 2,       /* a NULL or impossible argument, an unknown option */
    GAMMA_EDGE_INPUT = 3,       /* the image or the bundle cannot be used */
    GAMMA_EDGE_INTEGRITY = 4,   /* the bundle is damaged, or contradicts its manifest */
    GAMMA_EDGE_ENVIRONMENT = 5, /* no memory, or a library fails or is missing */
    GAMMA_EDGE_OUTPUT = 6,      /* a file cannot be written; nothing here writes files today */
    GAMMA_EDGE_GATE = 7         /* the graph gave a score that is NaN or infinite */
};

/* One scene of a bundle, ready to score. */
typedef struct gamma_edge_scorer gamma_edge_scorer;

/* How to open a bundle. Start from GAMMA_EDGE_OPTIONS and set what differs: NULL and 0 are the defaults. */
typedef struct gamma_edge_options {
    size_t struct_size;    /* sizeof(gamma_edge_options) */
    const char* scene;     /* such as "face-quality"; NULL: the bundle's default */
    const char* precision; /* such as "fp16"; NULL: the bundle's first */
    const char* backend;   /* "openvino", "tensorrt" or "tensorrt-rtx"; NULL or "auto": the library's choice */
    const char* small; /* images with a side under 224 pixels: "refuse", "resize" or "pad"; NULL: the bundle's rule */
    const char* engine_dir; /* where TensorRT's engines lie; NULL: in the bundle */
    int32_t threads;        /* CPU threads of one call; 0: the library's choice */
    int32_t strict;         /* not 0: refuse files with several pictures instead of scoring the first */
} gamma_edge_options;

#define GAMMA_EDGE_OPTIONS {sizeof(gamma_edge_options), NULL, NULL, NULL, NULL, NULL, 0, 0}

/* What an image scores. Start from GAMMA_EDGE_SCORE. After a failure the value is NaN and the rest is 0 or NULL. */
typedef struct gamma_edge_score {
    size_t struct_size;        /* sizeof(gamma_edge_score) */
    double value;              /* mean over the crops; higher is better; in the checkpoint's own range */
    double lowest, highest;    /* that range, in score units, such as 0.2 and 1 */
    double crop_std;           /* population standard deviation of the crops' scores, in score units */
    const double* crop_scores; /* [crop_count], in the order of the bundle's contract */
    size_t crop_count;         /* 1 or more */
    const char* const* flags;  /* [flag_count]: the checkpoint's label, "alpha", "grey", "enlarged" and others */
    size_t flag_count;         /* may be 0 */
    const char* scene;         /* the scene that was scored */
    const char* backend;       /* the library that ran the graph */
    const char* bundle_sha256; /* of the bundle's manifest, 64 hex digits */
    int32_t width, height;     /* pixels of the picture that the crops were cut from */
} gamma_edge_score;

#define GAMMA_EDGE_SCORE {sizeof(gamma_edge_score), 0, 0, 0, 0, NULL, 0, NULL, 0, NULL, NULL, NULL, 0, 0}

/* The version of the library that is loaded, such as "0.1.0". */
const char* gamma_edge_version(void);

/* Check a bundle and compile its graph; this takes seconds for a full-size model. `options` may be NULL.
 * On success *scorer is to be given to gamma_edge_close; on failure it is NULL. */
gamma_edge_status gamma_edge_open(const char* bundle, const gamma_edge_options* options, gamma_edge_scorer** scorer);

/* Free a scorer; NULL is allowed. Its thread must have left all other calls. */
void gamma_edge_close(gamma_edge_scorer* scorer);

/* Score an image file: JPEG, PNG, WebP, BMP or TIFF, told by its content. */
gamma_edge_status gamma_edge_score_file(gamma_edge_scorer* scorer, const char* path, gamma_edge_score* score);

/* Score an encoded image in memory. */
gamma_edge_status gamma_edge_score_bytes(gamma_edge_scorer* scorer, const void* data, size_t size,
                                         gamma_edge_score* score);

/* Score upright RGB pixels, 8 bits each, sRGB, rows from the top. A row has 3 * width bytes, and the next one starts
 * row_bytes after it; 0 means 3 * width. The last row may end at its last pixel. */
gamma_edge_status gamma_edge_score_pixels(gamma_edge_scorer* scorer, const uint8_t* rgb, int32_t width, int32_t height,
                                          size_t row_bytes, gamma_edge_score* score);

/* Why the scorer's last call failed, as one line with the value and the limit, and what to do about it; "" after a
 * success, and a hint may be "". With NULL: the last call of this thread, with or without a scorer. The text holds
 * until the next call of that scorer, or of that thread. */
const char* gamma_edge_error_text(const gamma_edge_scorer* scorer);
const char* gamma_edge_error_hint(const gamma_edge_scorer* scorer);

#ifdef __cplusplus
}
#endif

#endif
