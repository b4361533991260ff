#define _GNU_SOURCE
#include "arena_segments.h"

#include <errno.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

/* Segments begin where a huge page could. */
#define SEGMENT_ALIGNMENT ((size_t)2 << 20)
/* 32 TiB: a quarter of the addresses that a process has on x86-64; they cost nothing. */
#define WINDOW_BYTES ((size_t)32 << 40)
/* A spill grows by so much, because where memory is not overcommitted each byte that can be written to counts. */
#define COMMIT_BYTES ((size_t)64 << 20)

enum {
    /* Each hole is a mapping more, and a process may have 65,530 of them (vm.max_map_count). */
    MOST_HOLES = 1024,
};

struct segment *segments;
uintptr_t reserved_base;
_Atomic size_t reserved_bytes;

static size_t page_bytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

static uintptr_t round_up(uintptr_t value, size_t alignment)
{
    return (value + alignment - 1) & ~(uintptr_t)(alignment - 1);
}

/* --- addresses ------------------------------------------------------------------------------------------- */

/* Hold addresses without memory: whatever was mapped there is gone. Where, if they are held; else NULL. */
static void *hold(uintptr_t begin, size_t size_bytes, int how)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | how;
    void *found = mmap((void *)begin, size_bytes, PROT_NONE, flags, -1, 0);
    return found == MAP_FAILED ? NULL : found;
}

/* As much as can be had, but where addresses are rationed (ulimit -v, valgrind) no more than a part of them. */
static bool reserve_window(size_t least_bytes)
{
    struct rlimit limit;
    size_t most_bytes = WINDOW_BYTES;
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        while (most_bytes > limit.rlim_cur / 2)
            most_bytes /= 2;
    void *found = NULL;
    for (; most_bytes >= least_bytes && !(found = hold(0, most_bytes, 0)); most_bytes /= 2)
        ;
    if (!found) {
        errno = ENOMEM;
        return false;
    }
    reserved_base = (uintptr_t)found;
    atomic_store(&reserved_bytes, most_bytes);
    return true;
}

/* Find addresses that no segment has, the lowest; `*link` is where the new segment belongs. */
static uintptr_t find_gap(size_t size_bytes, struct segment ***link)
{
    uintptr_t begin = round_up(reserved_base, SEGMENT_ALIGNMENT);
    for (*link = &segments; **link; *link = &(**link)->next) {
        if ((**link)->heap.base - begin >= size_bytes)
            return begin;
        begin = (**link)->heap.base + (**link)->window_bytes;
    }
    return reserved_base + reserved_bytes - begin >= size_bytes ? begin : 0;
}

static struct segment *add_segment(enum segment_kind kind, int fd, size_t size_bytes)
{
    struct segment **link;
    if (size_bytes > WINDOW_BYTES) {
        errno = ENOMEM;
        return NULL;
    }
    size_bytes = round_up(size_bytes, SEGMENT_ALIGNMENT);
    if (!reserved_bytes && !reserve_window(size_bytes + SEGMENT_ALIGNMENT))
        return NULL;
    uintptr_t base = find_gap(size_bytes, &link);
    if (!base) {
        errno = ENOMEM;
        return NULL;
    }
    struct segment *segment =
        mmap(NULL, sizeof *segment, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (segment == MAP_FAILED)
        return NULL;
    segment->heap.base = base;
    segment->kind = kind;
    segment->fd = fd;
    segment->window_bytes = size_bytes;
    segment->next = *link;
    *link = segment;
    return segment;
}

static void remove_segment(struct segment *segment)
{
    struct segment **link = &segments;
    while (*link != segment)
        link = &(*link)->next;
    *link = segment->next;
    munmap(segment, sizeof *segment);
}

/* --- memory ---------------------------------------------------------------------------------------------- */

static int map_file(struct segment *segment, int sharing)
{
    void *base = (void *)segment->heap.base;
    int flags = sharing | MAP_FIXED | MAP_NORESERVE;
    if (mmap(base, segment->window_bytes, PROT_READ | PROT_WRITE, flags, segment->fd, 0) == MAP_FAILED)
        return errno;
    return 0;
}

int segment_make_shared(struct segment *segment)
{
    int error = map_file(segment, MAP_SHARED);
    if (error)
        return error;
    /* Whatever forks without telling (see `before_fork`) has no slot rather than another's. */
    madvise((void *)segment->heap.base, segment->window_bytes, MADV_DONTFORK);
    segment->kind = SLOT;
    return 0;
}

struct segment *segment_of_slot(int fd, size_t size_bytes)
{
    struct segment *segment = add_segment(SLOT, fd, size_bytes);
    int error = segment ? segment_make_shared(segment) : errno;
    if (!error)
        return segment;
    if (segment)
        remove_segment(segment);
    errno = error;
    return NULL;
}

struct segment *segment_of_spill(size_t size_bytes)
{
    struct segment *segment = add_segment(SPILL, -1, size_bytes);
    if (segment)
        segment->heap.limit_bytes = segment->window_bytes;
    return segment;
}

void segment_release(struct segment *segment)
{
    hold(segment->heap.base, segment->window_bytes, MAP_FIXED);
    if (segment->fd >= 0)
        close(segment->fd);
    remove_segment(segment);
}

bool segment_commit(struct segment *segment)
{
    if (segment->heap.top_bytes <= segment->committed_bytes)
        return true;
    size_t wanted_bytes = round_up(segment->heap.top_bytes, COMMIT_BYTES);
    if (wanted_bytes > segment->window_bytes)
        wanted_bytes = segment->window_bytes;
    if (mprotect((void *)segment->heap.base, wanted_bytes, PROT_READ | PROT_WRITE) != 0)
        return false;
    segment->committed_bytes = wanted_bytes;
    return true;
}

void segment_discard(struct segment *segment)
{
    hold(segment->heap.base, segment->window_bytes, MAP_FIXED);
    segment->committed_bytes = 0;
    segment->heap.footprint_bytes = 0;
}

/* --- what escaped ---------------------------------------------------------------------------------------- */

/* Return the highest run of pages with live blocks at or below `*next`, and go on below it; empty: no more. */
static struct range live_pages(struct block **next)
{
    size_t page = page_bytes();
    struct range run = {0, 0};
    for (; *next; *next = (*next)->lower) {
        if ((*next)->is_free)
            continue;
        uintptr_t end = round_up((*next)->begin + (*next)->size_bytes, page);
        if (run.end && end < run.begin)
            break;
        if (!run.end)
            run.end = end;
        run.begin = (*next)->begin & ~(uintptr_t)(page - 1);
    }
    return run;
}

/* Make pages of a private mapping copies: by a store that changes nothing, and in which no other can be lost. */
static void copy_pages(struct range pages)
{
    unsigned char nothing = 0;
    __asm__("" : "+r"(nothing)); /* or a compiler might see that a load is as good */
    for (uintptr_t page = pages.begin; page < pages.end; page += page_bytes())
        __atomic_fetch_or((unsigned char *)page, nothing, __ATOMIC_SEQ_CST);
}

int segment_make_private(struct segment *segment)
{
    int error = segment->kind == SLOT ? map_file(segment, MAP_PRIVATE) : 0;
    if (error)
        return error;
    segment->kind = FORKED;
    struct block *next = segment->heap.highest;
    for (struct range run; (run = live_pages(&next)).end;)
        copy_pages(run);
    return 0;
}

void segment_keep(struct segment *segment)
{
    segment->kind = KEPT;
    struct block *next = segment->heap.highest;
    uintptr_t end = segment->heap.base + segment->window_bytes;
    for (int holes = 0; holes < MOST_HOLES && next; holes++) {
        struct range run = live_pages(&next);
        if (run.end < end)
            hold(run.end, end - run.end, MAP_FIXED);
        end = run.begin;
    }
    if (!next && segment->heap.base < end)
        hold(segment->heap.base, end - segment->heap.base, MAP_FIXED);
}

void segment_return(struct segment *segment, struct range freed)
{
    size_t page = page_bytes();
    uintptr_t begin = round_up(freed.begin, page);
    bool is_highest = freed.end > segment->heap.base + segment->heap.top_bytes;
    uintptr_t end = is_highest ? round_up(freed.end, page) : freed.end & ~(uintptr_t)(page - 1);
    if (begin < end)
        madvise((void *)begin, end - begin, MADV_DONTNEED);
}

size_t segment_live_bytes(const struct segment *segment)
{
    size_t live_bytes = 0;
    struct block *next = segment->heap.highest;
    for (struct range run; (run = live_pages(&next)).end;)
        live_bytes += run.end - run.begin;
    return live_bytes;
}

void segments_after_fork(void)
{
    for (struct segment *segment = segments, *next; segment; segment = next) {
        next = segment->next;
        if (segment->fd >= 0)
            close(segment->fd);
        segment->fd = -1;
        if (segment->kind == SLOT) {
            segment->kind = ABANDONED;
            segment->heap.limit_bytes = 0;
            hold(segment->heap.base, segment->window_bytes, MAP_FIXED_NOREPLACE);
        } else if (!segment->heap.highest) {
            segment_release(segment);
        } else {
            segment->kind = KEPT;
        }
    }
}
