/* The memory that an arena's blocks lie in: segments of one reserved window of addresses.
 *
 *     window   ├──────────────┬──────────────┬─ kept ─┬───────────── … ──┤   no memory, only addresses
 *              slot           slot           live pages,
 *              memfd, shared  memfd, shared  private
 *
 * All of them in one window, so that `free` can tell a block of ours by one subtraction and a compare. Not
 * thread-safe: callers hold the arena's lock.
 */
#ifndef ONECOPY_ARENA_SEGMENTS_H
#define ONECOPY_ARENA_SEGMENTS_H

#include "arena_heap.h"

enum segment_kind {
    SLOT,       /* the pages of a memfd, shared with other processes */
    FORKED,     /* a slot made private because its process forked; it becomes a SLOT again once it is empty */
    SPILL,      /* private memory for what does not fit into a slot */
    KEPT,       /* private pages with what escaped from a slot or spill; it goes with its last block */
    ABANDONED,  /* a slot of the parent, in a forked child: addresses without memory */
};

struct segment {
    struct heap heap; /* first, so that a block's heap tells its segment */
    enum segment_kind kind;
    int fd;                 /* of the memfd; -1: none */
    size_t window_bytes;    /* the addresses that it has */
    size_t committed_bytes; /* a spill's: how much of them can be written to */
    struct segment *next;   /* by address */
};

extern struct segment *segments;

/* The window; no bytes: there is none yet. */
extern uintptr_t reserved_base;
extern _Atomic size_t reserved_bytes;

/* Return a segment, or NULL with `errno`. A slot takes over `fd` then. */
struct segment *segment_of_slot(int fd, size_t size_bytes);
struct segment *segment_of_spill(size_t size_bytes);

/* Give up memory, addresses and descriptor. */
void segment_release(struct segment *segment);

/* Make sure that a spill can be written to up to its heap's top. */
bool segment_commit(struct segment *segment);

/* Give back the pages of an empty spill. */
void segment_discard(struct segment *segment);

/* Detach from the memfd: blocks stay where they are, in pages that are this process's own. 0 or an error number.
 * A store of another thread while this goes on is not lost. */
int segment_make_private(struct segment *segment);

/* Map an empty slot that was made private shared again. 0 or an error number. */
int segment_make_shared(struct segment *segment);

/* Turn a private segment into one that only waits for its blocks to be freed. */
void segment_keep(struct segment *segment);

/* Return what was freed in a kept segment to the system. */
void segment_return(struct segment *segment, struct range freed);

/* The size of the pages that blocks live in. */
size_t segment_live_bytes(const struct segment *segment);

/* In a forked child: close what is the parent's, and hold its addresses. */
void segments_after_fork(void);

#endif
