/* What the scenarios of the arena's tests share. */
#ifndef ONECOPY_HARNESS_H
#define ONECOPY_HARNESS_H

#define _GNU_SOURCE
#include "../../workers/arena_run.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                                         \
    do {                                                                                                         \
        if (!(condition)) {                                                                                      \
            fprintf(stderr, "%s:%d: %s is false\n", __FILE__, __LINE__, #condition);                            \
            abort();                                                                                             \
        }                                                                                                        \
    } while (0)

#define KB ((size_t)1 << 10)
#define MB ((size_t)1 << 20)

int onecopy_arena_attach(int fd, size_t window_bytes, struct segment **attached);
int onecopy_arena_detach(struct segment *slot);
int onecopy_arena_enter(struct segment *slot, size_t limit_bytes);
void onecopy_arena_be_strict(void);
int onecopy_arena_keep(struct segment **slot);
void onecopy_arena_usage(struct usage *usage);
size_t onecopy_arena_leave(void);
size_t onecopy_arena_kept_bytes(void);

int allocate_as_torch(void **place, size_t alignment, size_t size_bytes);

/* A block with contents that only it has. */
struct held {
    unsigned char *bytes;
    size_t size_bytes, alignment;
    uint64_t seed;
};

struct random {
    uint64_t state;
};

uint64_t next_random(struct random *random);
struct held hold(size_t alignment, size_t size_bytes, uint64_t seed);
void check_contents(const struct held *held);
void release(struct held *held);

int make_file(size_t size_bytes);
struct segment *attach(int fd, size_t window_bytes);
struct usage usage_now(void);
struct usage leave(void);

/* Where a file is mapped once more, as another process would map it. */
unsigned char *map_as_another(int fd, size_t size_bytes);

#endif
