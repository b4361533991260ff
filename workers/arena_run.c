#define _GNU_SOURCE
#include "arena_run.h"
#include "arena_segments.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
atomic_bool is_serving;
static struct segment *entered; /* until it is left or kept */
static struct segment *spill;   /* NULL until something does not fit */
API struct usage onecopy_arena_run; /* Python looks at it without a call */
static struct usage *const run = &onecopy_arena_run;
static size_t outside_bytes; /* what lives outside of the slot's pages now */
static bool is_strict;       /* what does not fit is refused */

void arena_lock(void)
{
    pthread_mutex_lock(&lock);
}

void arena_unlock(void)
{
    pthread_mutex_unlock(&lock);
}

/* --- a block --------------------------------------------------------------------------------------------- */

static struct block *allocate_in_spill(size_t alignment, size_t size_bytes)
{
    if (!spill && !(spill = segment_of_spill(entered->window_bytes)))
        return NULL;
    struct block *block = heap_allocate(&spill->heap, alignment, size_bytes);
    if (block && !segment_commit(spill)) {
        heap_free(block);
        return NULL;
    }
    return block;
}

static struct segment *segment_of(const struct block *block)
{
    return (struct segment *)block->heap;
}

static void count(const struct block *block)
{
    run->live_blocks++;
    run->live_bytes += block->size_bytes;
    if (run->peak_bytes < run->live_bytes)
        run->peak_bytes = run->live_bytes;
    if (segment_of(block)->kind != SLOT)
        outside_bytes += block->size_bytes;
    if (run->spilled_bytes < outside_bytes)
        run->spilled_bytes = outside_bytes;
}

static void discount(const struct block *block)
{
    run->live_blocks--;
    run->live_bytes -= block->size_bytes;
    if (segment_of(block)->kind != SLOT)
        outside_bytes -= block->size_bytes;
}

static int refuse(size_t size_bytes)
{
    size_t needed_bytes = run->live_bytes + size_bytes;
    if (run->refused_bytes < needed_bytes)
        run->refused_bytes = needed_bytes;
    return ENOMEM;
}

static int allocate(void **place, size_t alignment, size_t size_bytes)
{
    struct block *block = heap_allocate(&entered->heap, alignment, size_bytes);
    if (!block && is_strict)
        return refuse(size_bytes);
    if (!block)
        block = allocate_in_spill(alignment, size_bytes);
    if (!block)
        return EAGAIN;
    count(block);
    *place = (void *)block->begin;
    return 0;
}

int arena_allocate(void **place, size_t alignment, size_t size_bytes)
{
    pthread_mutex_lock(&lock);
    int error = is_serving ? allocate(place, alignment, size_bytes) : EAGAIN;
    pthread_mutex_unlock(&lock);
    return error;
}

static void free_kept(struct segment *segment, struct block *block)
{
    int error = errno; /* `free` leaves it alone */
    struct range freed = heap_free(block);
    if (segment->heap.highest)
        segment_return(segment, freed);
    else
        segment_release(segment);
    errno = error;
}

bool arena_free(void *place)
{
    pthread_mutex_lock(&lock);
    struct block *block = index_find((uintptr_t)place);
    if (block && segment_of(block)->kind == KEPT) {
        free_kept(segment_of(block), block);
    } else if (block) {
        discount(block);
        heap_free(block);
    }
    pthread_mutex_unlock(&lock);
    return block;
}

/* --- fork ------------------------------------------------------------------------------------------------ */

/* A child must neither share the slot with the next holder nor miss what lives in it: it gets copies. If there is
 * no memory for them, it finds the addresses empty, and dies of that alone. */
static void before_fork(void)
{
    pthread_mutex_lock(&lock);
    if (!entered || entered->kind != SLOT || !entered->heap.highest)
        return;
    run->footprint_bytes = entered->heap.footprint_bytes;
    if (segment_make_private(entered) != 0)
        return;
    outside_bytes = run->live_bytes;
    if (run->spilled_bytes < outside_bytes)
        run->spilled_bytes = outside_bytes;
}

static void after_fork(void)
{
    pthread_mutex_unlock(&lock);
}

static void after_fork_in_child(void)
{
    is_serving = false;
    entered = spill = NULL;
    *run = (struct usage){0};
    outside_bytes = 0;
    segments_after_fork();
    pthread_mutex_init(&lock, NULL);
}

static void watch_forks(void)
{
    pthread_atfork(before_fork, after_fork, after_fork_in_child);
}

/* --- slots ----------------------------------------------------------------------------------------------- */

/* All return 0 or an error number. */

static bool is_known(const struct segment *slot)
{
    const struct segment *known = segments;
    while (known && known != slot)
        known = known->next;
    return known && (known->kind == SLOT || known->kind == FORKED || known->kind == ABANDONED);
}

static size_t file_bytes(int fd)
{
    struct stat found;
    return fstat(fd, &found) == 0 ? (size_t)found.st_size : 0;
}

/* Map a memfd. ENOSYS: torch is not loaded.
 * window_bytes: how large the memfd may become; it takes addresses, not memory. */
API int onecopy_arena_attach(int fd, size_t size_bytes, struct segment **attached)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    if (!size_bytes)
        return EINVAL;
    if (!torch_is_found()) /* not under our lock: the loader has one, and may free */
        return ENOSYS;
    int own_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (own_fd < 0)
        return errno;
    pthread_mutex_lock(&lock);
    *attached = segment_of_slot(own_fd, size_bytes);
    int error = *attached ? 0 : errno;
    pthread_mutex_unlock(&lock);
    if (error)
        close(own_fd);
    return error;
}

/* Unmap a slot. EBUSY: it is not left. */
API int onecopy_arena_detach(struct segment *slot)
{
    pthread_mutex_lock(&lock);
    int error = !is_known(slot) ? EINVAL : slot == entered ? EBUSY : 0;
    if (!error)
        segment_release(slot);
    pthread_mutex_unlock(&lock);
    return error;
}

static int enter(struct segment *slot, size_t limit_bytes)
{
    if (!is_known(slot))
        return EINVAL;
    if (entered)
        return EBUSY;
    if (slot->kind == ABANDONED)
        return EBADF;
    if (limit_bytes > slot->window_bytes || limit_bytes > file_bytes(slot->fd))
        return ERANGE;
    int error = slot->kind == FORKED ? segment_make_shared(slot) : 0;
    if (error)
        return error;
    slot->heap.limit_bytes = limit_bytes;
    slot->heap.footprint_bytes = 0;
    *run = (struct usage){0};
    entered = slot;
    is_strict = false;
    is_serving = true;
    return 0;
}

/* Serve torch from the first `limit_bytes` of a slot. EBUSY: a slot is entered already. EBADF: the slot is that of
 * the process that forked this one. ERANGE: the memfd or the window is smaller than that. */
API int onecopy_arena_enter(struct segment *slot, size_t limit_bytes)
{
    pthread_mutex_lock(&lock);
    int error = enter(slot, limit_bytes);
    pthread_mutex_unlock(&lock);
    return error;
}

/* Refuse what does not fit into the slot, instead of spilling it, until the slot is left. */
API void onecopy_arena_be_strict(void)
{
    pthread_mutex_lock(&lock);
    is_strict = true;
    pthread_mutex_unlock(&lock);
}

static struct usage usage_now(void)
{
    if (entered && entered->kind == SLOT)
        run->footprint_bytes = entered->heap.footprint_bytes;
    return *run;
}

API void onecopy_arena_usage(struct usage *usage)
{
    pthread_mutex_lock(&lock);
    *usage = usage_now();
    pthread_mutex_unlock(&lock);
}

/* With nothing left in it. */
static void leave_slot(void)
{
    if (entered->kind == FORKED)
        segment_make_shared(entered); /* or it is tried once more when the slot is entered next */
    entered = NULL;
}

static void leave_spill(void)
{
    if (spill && spill->heap.footprint_bytes)
        segment_discard(spill);
}

/* Serve no more, and leave the slot if nothing lives in it; return how many blocks do. */
API size_t onecopy_arena_leave(void)
{
    pthread_mutex_lock(&lock);
    is_serving = false;
    size_t live_blocks = usage_now().live_blocks;
    if (entered && !live_blocks) {
        leave_slot();
        leave_spill();
    }
    pthread_mutex_unlock(&lock);
    return live_blocks;
}

/* Replace the slot by a fresh mapping of its memfd; the old one keeps what lives. */
static int renew_slot(struct segment **slot)
{
    struct segment *old = entered;
    struct segment *fresh = segment_of_slot(old->fd, old->window_bytes);
    if (!fresh)
        return errno;
    int error = segment_make_private(old);
    struct segment *heir = error ? fresh : old;
    heir->fd = -1;
    if (error) {
        segment_release(fresh);
        return error;
    }
    segment_keep(old);
    entered = NULL;
    *slot = fresh;
    return 0;
}

static int keep(struct segment **slot)
{
    if (is_serving || !entered || entered != *slot)
        return EINVAL;
    int error = 0;
    if (entered->heap.highest)
        error = renew_slot(slot);
    else
        leave_slot();
    if (error)
        return error;
    if (spill && spill->heap.highest) {
        segment_keep(spill);
        spill = NULL;
    } else {
        leave_spill();
    }
    *run = (struct usage){0};
    outside_bytes = 0;
    return 0;
}

/* Leave a slot in which blocks live: they move out of its pages, and keep their addresses. EINVAL: this slot is not
 * entered, or it still serves. `*slot` is what it is known by from now on. */
API int onecopy_arena_keep(struct segment **slot)
{
    pthread_mutex_lock(&lock);
    int error = keep(slot);
    pthread_mutex_unlock(&lock);
    return error;
}

/* How much private memory holds what was kept. */
API size_t onecopy_arena_kept_bytes(void)
{
    size_t kept_bytes = 0;
    pthread_mutex_lock(&lock);
    for (const struct segment *segment = segments; segment; segment = segment->next)
        if (segment->kind == KEPT)
            kept_bytes += segment_live_bytes(segment);
    pthread_mutex_unlock(&lock);
    return kept_bytes;
}
