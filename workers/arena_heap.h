/* Where blocks lie in a range of addresses. It decides; the memory itself it neither maps nor touches.
 *
 *     base                                        top              footprint        limit
 *      ├─ used ─┼─ free ─┼─── used ───┼─ free ─┼ used ┤                  ┆              │
 *      └──────────── blocks, no gaps ─────────────────┴─── the tail ──────────────────┘
 *
 * Two-level segregated fit (Masmano et al., "TLSF: a new dynamic memory allocator for real-time systems", 2004),
 * with the best fit among the first of a bin. A free block is merged with its neighbours at once, and with the
 * tail if it is the highest. Holes go before the tail: the fewer pages are touched the better. Not thread-safe:
 * callers hold the arena's lock.
 */
#ifndef ONECOPY_ARENA_HEAP_H
#define ONECOPY_ARENA_HEAP_H

#include "arena_blocks.h"

enum { GRANULE_BYTES = 64, HEAP_ROWS = 40, HEAP_COLUMNS = 16 };

struct heap {
    uintptr_t base;
    size_t limit_bytes;     /* how much may be used */
    size_t top_bytes;       /* how much blocks cover */
    size_t footprint_bytes; /* the highest `top_bytes` since the heap was last emptied */
    struct block *highest;  /* NULL: nothing lives here */
    uint64_t rows;          /* which rows have a free block */
    uint32_t columns[HEAP_ROWS];
    struct block *bins[HEAP_ROWS][HEAP_COLUMNS];
};

struct range {
    uintptr_t begin, end;
};

/* Return a block in use of at least `size_bytes`, or NULL if none fits or no record of it can be made.
 * `alignment` is a power of two. */
struct block *heap_allocate(struct heap *heap, size_t alignment, size_t size_bytes);

/* Return the whole free range that the block is part of now. */
struct range heap_free(struct block *block);

#endif
