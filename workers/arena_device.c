/* Slots in the memory of a GPU: where torch's pool of a slot takes its segments from.
 *
 *     torch.cuda.MemPool ── needs a segment ──► onecopy_device_allocate ─┬─ it fits ─► the slot that is entered
 *                                                                        ├─ strict ──► NULL: torch raises
 *                                                                        └─ else ────► outside: the driver's own
 *
 * Torch does not say which pool a segment is for. But it asks only while a pool is in use, and one slot at a time
 * is entered: that one's. A segment that is given back is told by its address. Torch divides segments into blocks;
 * of those nothing is known here. Nothing but addresses is dealt with, and the memory itself is never touched.
 */
#include "arena_heap.h"
#include "arena_run.h"

#include <errno.h>
#include <stdlib.h>

/* What torch aligns its blocks to: a segment begins where a block does. */
enum { SEGMENT_ALIGNMENT = 512 };

struct device_slot {
    struct heap heap;
    size_t held_bytes; /* what torch has of it */
};

/* Those of the driver: cuMemAlloc_v2 and cuMemFree_v2. They return 0, or an error number of theirs. */
typedef int allocate_outside_function(unsigned long long *place, size_t size_bytes);
typedef int free_outside_function(unsigned long long place);

/* What was not had of a slot since it was entered, in bytes; Python looks at it without a call. */
API struct device_run {
    size_t spilled_bytes; /* the most that was held outside at once */
    size_t refused_bytes; /* what would have been held at once, had it not been refused */
} onecopy_device_run;

static struct device_run *const run = &onecopy_device_run;
static struct device_slot *entered;
static bool is_strict;
static size_t outside_bytes, outside_before_bytes; /* what is held outside now, and was when the slot was entered */
static allocate_outside_function *allocate_outside;
static free_outside_function *free_outside;

/* --- segments -------------------------------------------------------------------------------------------- */

static void *take_outside(size_t size_bytes)
{
    unsigned long long place = 0;
    /* Not under the lock: the driver may free what it took from malloc. */
    if (!allocate_outside || allocate_outside(&place, size_bytes) != 0)
        return NULL;
    arena_lock();
    outside_bytes += size_bytes;
    if (run->spilled_bytes < outside_bytes - outside_before_bytes)
        run->spilled_bytes = outside_bytes - outside_before_bytes;
    arena_unlock();
    return (void *)(uintptr_t)place;
}

static void *take_inside(size_t size_bytes)
{
    size_t whole_bytes = (size_bytes + SEGMENT_ALIGNMENT - 1) & ~(size_t)(SEGMENT_ALIGNMENT - 1);
    struct block *block = whole_bytes ? heap_allocate(&entered->heap, GRANULE_BYTES, whole_bytes) : NULL;
    if (!block)
        return NULL;
    entered->held_bytes += block->size_bytes;
    return (void *)block->begin;
}

/* What `torch.cuda.memory.CUDAPluggableAllocator` takes. The device and the stream are those of the pool. */
API void *onecopy_device_allocate(size_t size_bytes, int device, void *stream)
{
    (void)device, (void)stream;
    arena_lock();
    void *place = entered ? take_inside(size_bytes) : NULL;
    bool may_spill = entered && !place && !is_strict;
    if (entered && !place && is_strict && run->refused_bytes < entered->held_bytes + size_bytes)
        run->refused_bytes = entered->held_bytes + size_bytes;
    arena_unlock();
    return may_spill ? take_outside(size_bytes) : place;
}

API void onecopy_device_free(void *place, size_t size_bytes, int device, void *stream)
{
    (void)device, (void)stream;
    if (!place)
        return;
    arena_lock();
    struct block *block = index_find((uintptr_t)place);
    if (block) {
        ((struct device_slot *)block->heap)->held_bytes -= block->size_bytes;
        heap_free(block);
    } else {
        outside_bytes -= size_bytes;
    }
    arena_unlock();
    if (!block && free_outside)
        free_outside((uintptr_t)place);
}

/* --- slots ----------------------------------------------------------------------------------------------- */

/* Say where segments come from that do not fit. Before any slot is entered. */
API void onecopy_device_spill(allocate_outside_function *allocate, free_outside_function *free_it)
{
    allocate_outside = allocate;
    free_outside = free_it;
}

/* Make known a slot that is mapped at these addresses. Return 0, EINVAL or ENOMEM. */
API int onecopy_device_attach(uintptr_t base, size_t size_bytes, struct device_slot **attached)
{
    if (!base || base % SEGMENT_ALIGNMENT || !size_bytes)
        return EINVAL;
    struct device_slot *slot = calloc(1, sizeof *slot);
    if (!slot)
        return ENOMEM;
    slot->heap.base = base;
    slot->heap.limit_bytes = size_bytes;
    *attached = slot;
    return 0;
}

/* Forget a slot. EBUSY: it is entered, or torch has segments of it. */
API int onecopy_device_detach(struct device_slot *slot)
{
    arena_lock();
    bool is_used = slot == entered || slot->held_bytes;
    arena_unlock();
    if (is_used)
        return EBUSY;
    free(slot);
    return 0;
}

/* Serve torch from a slot, and outside of it what does not fit, unless it is strict. EBUSY: one is entered. */
API int onecopy_device_enter(struct device_slot *slot, bool strictly)
{
    arena_lock();
    bool is_free = !entered;
    if (is_free) {
        entered = slot;
        is_strict = strictly;
        outside_before_bytes = outside_bytes;
        *run = (struct device_run){0};
    }
    arena_unlock();
    return is_free ? 0 : EBUSY;
}

/* Serve torch no more. */
API void onecopy_device_leave(void)
{
    arena_lock();
    entered = NULL;
    arena_unlock();
}

/* Return how much of a slot torch has in segments, whether it uses them or not. */
API size_t onecopy_device_held_bytes(const struct device_slot *slot)
{
    arena_lock();
    size_t held_bytes = slot->held_bytes;
    arena_unlock();
    return held_bytes;
}
