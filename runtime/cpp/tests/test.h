/* What the tests in C share. A failed check says where, and the program ends with 1. */
#ifndef GAMMA_EDGE_TEST_H
#define GAMMA_EDGE_TEST_H

#include <stdio.h>
#include <stdlib.h>

enum { TEST_SKIPPED = 77 };

#define CHECK(condition)                                                                      \
    do {                                                                                      \
        if (!(condition)) {                                                                   \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);           \
            fprintf(stderr, "  the library's last error: %s\n", gamma_edge_error_text(NULL)); \
            exit(1);                                                                          \
        }                                                                                     \
    } while (0)

/* The bundle to test with; without one the program ends as skipped. */
static inline const char* test_bundle(void) {
    const char* bundle = getenv("GAMMA_TEST_BUNDLE");
    if (bundle != NULL && bundle[0] != '\0') return bundle;
    fprintf(stderr, "skipped: GAMMA_TEST_BUNDLE names no bundle\n");
    exit(TEST_SKIPPED);
}

/* A whole file; the caller frees it. */
static inline unsigned char* test_read(const char* path, size_t* size) {
    FILE* file = fopen(path, "rb");
    unsigned char* content = (unsigned char*)malloc(1 << 24);
    if (file == NULL || content == NULL) {
        fprintf(stderr, "%s: cannot be read\n", path);
        exit(1);
    }
    *size = fread(content, 1, 1 << 24, file);
    fclose(file);
    return content;
}

#endif
