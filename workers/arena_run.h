/* Runs in slots: what is served while one is entered, what it used, and what becomes of what lives on. */
#ifndef ONECOPY_ARENA_RUN_H
#define ONECOPY_ARENA_RUN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#define API __attribute__((visibility("default")))

struct segment;

/* What a run used, in bytes but for `live_blocks`. */
struct usage {
    size_t peak_bytes;      /* the most that lived at once, spilled or not */
    size_t footprint_bytes; /* the highest byte of the slot that was used */
    size_t spilled_bytes;   /* the most that lived outside of the slot's pages at once */
    size_t live_blocks, live_bytes;
    size_t refused_bytes;   /* what would have lived at once, had it not been refused */
};

/* Whether a slot is entered, and not told to be left yet. */
extern atomic_bool is_serving;

/* Find where the code of libc10.so lies, once; false: it is not loaded. */
bool torch_is_found(void);

/* What is held by whoever takes blocks or gives them back, of whatever memory. */
void arena_lock(void);
void arena_unlock(void);

/* Return 0 with memory, ENOMEM if this run must not have it, or EAGAIN if libc is to serve it. */
int arena_allocate(void **place, size_t alignment, size_t size_bytes);

/* Return whether it was a block of ours. */
bool arena_free(void *place);

#endif
