#include "arena_heap.h"

enum { COLUMNS_LOG2 = 4, GRANULE_LOG2 = 6, MOST_LOOKED_AT = 32 };

_Static_assert(1 << COLUMNS_LOG2 == HEAP_COLUMNS && 1 << GRANULE_LOG2 == GRANULE_BYTES, "logarithms");

static uintptr_t round_up(uintptr_t value, size_t alignment)
{
    return (value + alignment - 1) & ~(uintptr_t)(alignment - 1);
}

/* --- bins ------------------------------------------------------------------------------------------------ */

struct bin {
    unsigned row, column;
};

/* Up to 32 granules a bin for each size; above, 16 bins from each power of two to the next. */
static struct bin bin_of(size_t size_bytes)
{
    uint64_t granules = size_bytes >> GRANULE_LOG2;
    if (granules < HEAP_COLUMNS)
        return (struct bin){0, (unsigned)granules};
    unsigned shift = 63 - (unsigned)__builtin_clzll(granules) - COLUMNS_LOG2;
    return (struct bin){shift + 1, (unsigned)(granules >> shift) & (HEAP_COLUMNS - 1)};
}

static void put_into_bin(struct heap *heap, struct block *block)
{
    struct bin bin = bin_of(block->size_bytes);
    struct block **first = &heap->bins[bin.row][bin.column];
    block->is_free = true;
    block->previous = NULL;
    block->next = *first;
    if (*first)
        (*first)->previous = block;
    *first = block;
    heap->columns[bin.row] |= UINT32_C(1) << bin.column;
    heap->rows |= UINT64_C(1) << bin.row;
}

static void take_from_bin(struct heap *heap, struct block *block)
{
    struct bin bin = bin_of(block->size_bytes);
    if (block->next)
        block->next->previous = block->previous;
    if (block->previous)
        block->previous->next = block->next;
    else if (!(heap->bins[bin.row][bin.column] = block->next)
             && !(heap->columns[bin.row] &= ~(UINT32_C(1) << bin.column)))
        heap->rows &= ~(UINT64_C(1) << bin.row);
    block->is_free = false;
}

static struct block *best_of(struct block *block, size_t size_bytes)
{
    struct block *best = NULL;
    for (int count = 0; block && count < MOST_LOOKED_AT; block = block->next, count++)
        if (block->size_bytes >= size_bytes
            && (!best || block->size_bytes < best->size_bytes
                || (block->size_bytes == best->size_bytes && block->begin < best->begin)))
            best = block;
    return best;
}

/* The blocks of a request's own bin may be a little too small for it; those of any higher bin are large enough. */
static struct block *find_hole(struct heap *heap, size_t size_bytes)
{
    struct bin bin = bin_of(size_bytes);
    struct block *found = best_of(heap->bins[bin.row][bin.column], size_bytes);
    if (found)
        return found;
    uint32_t columns = heap->columns[bin.row] & ~((UINT32_C(2) << bin.column) - 1);
    if (!columns) {
        uint64_t rows = heap->rows & ~((UINT64_C(2) << bin.row) - 1);
        if (!rows)
            return NULL;
        bin.row = (unsigned)__builtin_ctzll(rows);
        columns = heap->columns[bin.row];
    }
    return best_of(heap->bins[bin.row][__builtin_ctz(columns)], size_bytes);
}

/* --- blocks ---------------------------------------------------------------------------------------------- */

/* Make a record for a piece directly above `lower`, which may be NULL for the heap's first. */
static struct block *insert_above(struct heap *heap, struct block *lower, uintptr_t begin, size_t size_bytes)
{
    struct block *block = block_take();
    struct block *higher = lower ? lower->higher : NULL;
    *block = (struct block){
        .begin = begin, .size_bytes = size_bytes, .heap = heap, .lower = lower, .higher = higher};
    if (lower)
        lower->higher = block;
    if (higher)
        higher->lower = block;
    else
        heap->highest = block;
    return block;
}

/* Cut a block in two; return the upper part. */
static struct block *split(struct block *block, size_t lower_bytes)
{
    size_t upper_bytes = block->size_bytes - lower_bytes;
    block->size_bytes = lower_bytes;
    return insert_above(block->heap, block, block->begin + lower_bytes, upper_bytes);
}

/* Make a block and the one above it one; return it. */
static struct block *merge(struct block *lower, struct block *higher)
{
    lower->size_bytes += higher->size_bytes;
    lower->higher = higher->higher;
    if (higher->higher)
        higher->higher->lower = lower;
    else
        lower->heap->highest = lower;
    block_give_back(higher);
    return lower;
}

static struct block *extend_into_tail(struct heap *heap, size_t alignment, size_t size_bytes)
{
    uintptr_t top = heap->base + heap->top_bytes, begin = round_up(top, alignment);
    size_t end_bytes = begin - heap->base + size_bytes;
    if (end_bytes > heap->limit_bytes)
        return NULL;
    if (begin > top)
        put_into_bin(heap, insert_above(heap, heap->highest, top, begin - top));
    heap->top_bytes = end_bytes;
    if (heap->footprint_bytes < end_bytes)
        heap->footprint_bytes = end_bytes;
    return insert_above(heap, heap->highest, begin, size_bytes);
}

static struct block *take_hole(struct block *hole, size_t alignment, size_t size_bytes)
{
    struct heap *heap = hole->heap;
    take_from_bin(heap, hole);
    size_t before_bytes = round_up(hole->begin, alignment) - hole->begin;
    struct block *block = before_bytes ? split(hole, before_bytes) : hole;
    if (before_bytes)
        put_into_bin(heap, hole);
    if (block->size_bytes > size_bytes)
        put_into_bin(heap, split(block, size_bytes));
    return block;
}

struct block *heap_allocate(struct heap *heap, size_t alignment, size_t size_bytes)
{
    /* Larger than that fits nowhere, and would overflow the sums below. */
    if (size_bytes > heap->limit_bytes || alignment > heap->limit_bytes || !blocks_prepare(3))
        return NULL;
    alignment = alignment < GRANULE_BYTES ? GRANULE_BYTES : alignment;
    size_bytes = size_bytes ? round_up(size_bytes, GRANULE_BYTES) : GRANULE_BYTES;
    struct block *block = find_hole(heap, size_bytes + alignment - GRANULE_BYTES);
    block = block ? take_hole(block, alignment, size_bytes) : extend_into_tail(heap, alignment, size_bytes);
    if (block)
        index_insert(block);
    return block;
}

struct range heap_free(struct block *block)
{
    struct heap *heap = block->heap;
    index_remove(block);
    if (block->lower && block->lower->is_free) {
        take_from_bin(heap, block->lower);
        block = merge(block->lower, block);
    }
    if (block->higher && block->higher->is_free) {
        take_from_bin(heap, block->higher);
        block = merge(block, block->higher);
    }
    struct range freed = {block->begin, block->begin + block->size_bytes};
    if (block->higher) {
        put_into_bin(heap, block);
        return freed;
    }
    heap->top_bytes = block->begin - heap->base;
    heap->highest = block->lower;
    if (block->lower)
        block->lower->higher = NULL;
    block_give_back(block);
    return freed;
}
