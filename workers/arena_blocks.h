/* What is known of each piece of an arena's memory, kept outside of that memory.
 *
 * The pages that blocks lie in are full of other processes' bytes, and a model that writes past the end of an
 * array must not be able to break the allocator. Not thread-safe: callers hold the arena's lock.
 */
#ifndef ONECOPY_ARENA_BLOCKS_H
#define ONECOPY_ARENA_BLOCKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct heap;

/* A piece of a heap, in use or free. Pieces lie side by side without gaps. */
struct block {
    uintptr_t begin;
    size_t size_bytes;
    struct heap *heap;
    struct block *lower, *higher;  /* its neighbours by address */
    struct block *next, *previous; /* in its bin, if it is free */
    bool is_free;
};

/* Make sure that `count` records can be taken and one more block be indexed; false if there is no memory. */
bool blocks_prepare(size_t count);

/* Take a record. There must be one: see `blocks_prepare`. */
struct block *block_take(void);
void block_give_back(struct block *block);

/* From the address of a block in use to its record. */
void index_insert(struct block *block);
struct block *index_find(uintptr_t begin);
void index_remove(struct block *block);

#endif
