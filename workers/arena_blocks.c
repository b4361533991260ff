#define _GNU_SOURCE
#include "arena_blocks.h"

#include <sys/mman.h>

enum { CHUNK_BYTES = 64 << 10, FIRST_PLACES_LOG2 = 10 };

static struct block *unused; /* linked by `next` */
static size_t unused_count;

/* Open addressing with linear probing; at most half full. */
static struct block **places;
static unsigned places_log2;
static size_t indexed_count;

/* Not from malloc: this runs inside of it. */
static void *pages(size_t size_bytes)
{
    void *found = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return found == MAP_FAILED ? NULL : found;
}

static bool add_records(void)
{
    struct block *chunk = pages(CHUNK_BYTES);
    if (!chunk)
        return false;
    for (size_t count = CHUNK_BYTES / sizeof *chunk; count--;)
        block_give_back(&chunk[count]);
    return true;
}

static size_t home(uintptr_t begin)
{
    return begin * UINT64_C(0x9E3779B97F4A7C15) >> (64 - places_log2); /* Fibonacci hashing: Knuth, TAOCP 6.4 */
}

static bool add_places(void)
{
    struct block **old = places;
    size_t old_count = old ? (size_t)1 << places_log2 : 0;
    unsigned log2 = old ? places_log2 + 1 : FIRST_PLACES_LOG2;
    struct block **fresh = pages(sizeof *fresh << log2);
    if (!fresh)
        return false;
    places = fresh;
    places_log2 = log2;
    indexed_count = 0;
    for (size_t at = 0; at < old_count; at++)
        if (old[at])
            index_insert(old[at]);
    if (old)
        munmap(old, old_count * sizeof *old);
    return true;
}

bool blocks_prepare(size_t count)
{
    if (unused_count < count && !add_records())
        return false;
    return (places && indexed_count < (size_t)1 << (places_log2 - 1)) || add_places();
}

struct block *block_take(void)
{
    struct block *block = unused;
    unused = block->next;
    unused_count--;
    return block;
}

void block_give_back(struct block *block)
{
    block->next = unused;
    unused = block;
    unused_count++;
}

void index_insert(struct block *block)
{
    size_t mask = ((size_t)1 << places_log2) - 1, at = home(block->begin);
    while (places[at])
        at = (at + 1) & mask;
    places[at] = block;
    indexed_count++;
}

static size_t place_of(uintptr_t begin)
{
    size_t mask = ((size_t)1 << places_log2) - 1, at = home(begin);
    while (places[at] && places[at]->begin != begin)
        at = (at + 1) & mask;
    return at;
}

struct block *index_find(uintptr_t begin)
{
    return places ? places[place_of(begin)] : NULL;
}

/* Whoever comes behind the gap and could not be found across it moves into it: Knuth, TAOCP 6.4, algorithm R. */
void index_remove(struct block *block)
{
    size_t mask = ((size_t)1 << places_log2) - 1, gap = place_of(block->begin);
    for (size_t at = (gap + 1) & mask; places[at]; at = (at + 1) & mask) {
        size_t wanted = home(places[at]->begin);
        if (((at - wanted) & mask) >= ((at - gap) & mask)) {
            places[gap] = places[at];
            gap = at;
        }
    }
    places[gap] = NULL;
    indexed_count--;
}
