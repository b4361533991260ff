/* Scenarios of the slot's allocator: `scenarios NAME` ends with 0 if all was as it should be. */
#include "device_scenarios.h"
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_HELD = 400 };

/* Mostly small, some large, as torch asks. */
static size_t random_size(struct random *random)
{
    unsigned log2 = (unsigned)(next_random(random) % 19);
    return (size_t)(next_random(random) % ((UINT64_C(1) << log2) + 1));
}

static void take_and_release(struct random *random, int steps, size_t most)
{
    struct held all[MOST_HELD];
    size_t count = 0;
    for (int step = 0; step < steps; step++) {
        bool is_growing = next_random(random) % 1000 < 1000 - 1000 * count / most;
        if (is_growing && count < most) {
            size_t alignment = next_random(random) % 8 ? 64 : (size_t)8 << next_random(random) % 11;
            all[count++] = hold(alignment, random_size(random), next_random(random));
        } else if (count) {
            size_t at = next_random(random) % count;
            release(&all[at]);
            all[at] = all[--count];
        }
    }
    while (count)
        release(&all[--count]);
}

/* --- one process ----------------------------------------------------------------------------------------- */

static void random_blocks(void)
{
    struct random random = {88172645463325252u};
    int fd = make_file(64 * MB);
    struct segment *slot = attach(fd, 256 * MB);
    close(fd);
    for (int turn = 0; turn < 20; turn++) {
        size_t limit_bytes = turn % 2 ? 64 * MB : 2 * MB;
        CHECK(onecopy_arena_enter(slot, limit_bytes) == 0);
        take_and_release(&random, 4000, MOST_HELD);
        struct usage usage = leave();
        CHECK(usage.live_blocks == 0 && usage.live_bytes == 0);
        CHECK(usage.footprint_bytes <= limit_bytes);
        CHECK(usage.peak_bytes > 3 * MB);
        if (turn % 2) {
            CHECK(usage.spilled_bytes == 0);
            CHECK(usage.footprint_bytes < usage.peak_bytes * 3 / 2);
        } else {
            CHECK(usage.spilled_bytes > MB && usage.spilled_bytes < usage.peak_bytes);
        }
    }
    /* What was cut to pieces is one piece again. */
    CHECK(onecopy_arena_enter(slot, 64 * MB) == 0);
    struct held whole = hold(64, 64 * MB, 1);
    CHECK(usage_now().spilled_bytes == 0 && usage_now().footprint_bytes == 64 * MB);
    release(&whole);
    CHECK(leave().live_blocks == 0);
    CHECK(onecopy_arena_detach(slot) == 0);
}

static void odd_requests(void)
{
    int fd = make_file(MB);
    struct segment *slot = attach(fd, MB);
    CHECK(onecopy_arena_enter(slot, MB) == 0);
    void *place = NULL;
    CHECK(allocate_as_torch(&place, 64, SIZE_MAX) == ENOMEM);
    CHECK(allocate_as_torch(&place, 64, SIZE_MAX - 100) == ENOMEM);
    CHECK(allocate_as_torch(&place, (size_t)1 << 62, 64) == ENOMEM);
    CHECK(allocate_as_torch(&place, 24, 64) == EINVAL);
    CHECK(allocate_as_torch(&place, 4, 64) == EINVAL);
    CHECK(allocate_as_torch(&place, 0, 64) == EINVAL);
    CHECK(usage_now().live_blocks == 0);
    struct held empty = hold(64, 0, 1), other = hold(64, 0, 2);
    CHECK(empty.bytes != other.bytes && usage_now().live_blocks == 2);
    struct held page = hold(4096, 100, 3), large = hold(128 * KB, 100, 4);
    CHECK(usage_now().live_blocks == 4 && usage_now().spilled_bytes == 0);
    /* The holes that alignment has left are used. */
    struct held hole = hold(64, 64 * KB, 5);
    CHECK(hole.bytes < large.bytes);
    CHECK(posix_memalign(&place, 64, 100) == 0 && usage_now().live_blocks == 5); /* nobody of torch's */
    free(place);
    free(NULL);
    for (struct held *one[] = {&empty, &other, &page, &large, &hole}, **at = one; at < one + 5; at++)
        release(*at);
    CHECK(leave().live_blocks == 0);
    /* Outside of a run torch's memory is anybody's. */
    struct held outside = hold(64, 100, 6);
    CHECK(usage_now().live_blocks == 0);
    release(&outside);
    close(fd);
    CHECK(onecopy_arena_detach(slot) == 0);
}

static void states(void)
{
    int fd = make_file(MB);
    struct segment *slot = attach(fd, 4 * MB), *other = attach(fd, 4 * MB), *unused = NULL;
    CHECK(onecopy_arena_attach(-1, MB, &unused) == EBADF);
    CHECK(onecopy_arena_attach(fd, 0, &unused) == EINVAL);
    CHECK(onecopy_arena_attach(fd, SIZE_MAX, &unused) == ENOMEM);
    CHECK(onecopy_arena_enter(slot, MB + 1) == ERANGE);
    CHECK(onecopy_arena_enter(NULL, MB) == EINVAL);
    CHECK(onecopy_arena_keep(&slot) == EINVAL);
    CHECK(leave().peak_bytes == 0);
    CHECK(onecopy_arena_enter(slot, MB) == 0);
    CHECK(onecopy_arena_enter(other, MB) == EBUSY);
    CHECK(onecopy_arena_keep(&slot) == EINVAL); /* it serves */
    CHECK(onecopy_arena_detach(slot) == EBUSY);
    struct held held = hold(64, 100, 1);
    CHECK(leave().live_blocks == 1);
    CHECK(onecopy_arena_enter(slot, MB) == EBUSY); /* not left yet */
    CHECK(onecopy_arena_keep(&other) == EINVAL);
    release(&held);
    struct usage usage = leave();
    CHECK(usage.live_blocks == 0 && usage.peak_bytes == 128);
    /* It grows where it is. */
    CHECK(ftruncate(fd, 3 * (off_t)MB) == 0);
    CHECK(onecopy_arena_enter(slot, 3 * MB) == 0);
    held = hold(64, 3 * MB, 2);
    CHECK(usage_now().spilled_bytes == 0);
    release(&held);
    CHECK(leave().live_blocks == 0);
    /* Where it must not spill, what does not fit is refused, and what was needed is told. */
    CHECK(onecopy_arena_enter(slot, MB) == 0);
    onecopy_arena_be_strict();
    held = hold(64, 600 * KB, 3);
    void *place = NULL;
    CHECK(allocate_as_torch(&place, 64, 600 * KB) == ENOMEM);
    CHECK(usage_now().refused_bytes == 1200 * KB && usage_now().spilled_bytes == 0);
    release(&held);
    CHECK(leave().live_blocks == 0);
    CHECK(onecopy_arena_enter(slot, MB) == 0); /* the next one may */
    held = hold(64, 2 * MB, 4);
    CHECK(usage_now().refused_bytes == 0 && usage_now().spilled_bytes == 2 * MB);
    release(&held);
    CHECK(leave().live_blocks == 0);
    CHECK(onecopy_arena_detach(slot) == 0 && onecopy_arena_detach(other) == 0);
    CHECK(onecopy_arena_detach(slot) == EINVAL);
    close(fd);
}

/* --- what escapes ---------------------------------------------------------------------------------------- */

static void keep(void)
{
    int fd = make_file(8 * MB);
    struct segment *slot = attach(fd, 8 * MB);
    unsigned char *theirs = map_as_another(fd, 8 * MB);
    struct held all[64];
    CHECK(onecopy_arena_enter(slot, 4 * MB) == 0);
    for (int at = 0; at < 64; at++) /* a third of them does not fit */
        all[at] = hold(64, 100 * KB, (uint64_t)at);
    for (int at = 0; at < 64; at += 2)
        release(&all[at]);
    CHECK(leave().live_blocks == 32);
    CHECK(onecopy_arena_keep(&slot) == 0);
    size_t kept_bytes = onecopy_arena_kept_bytes();
    CHECK(kept_bytes >= 32 * 100 * KB && kept_bytes <= 32 * 109 * KB);
    CHECK(leave().live_blocks == 0); /* they are counted elsewhere */
    /* Whatever becomes of the memfd is nothing to what was kept. */
    memset(theirs, 0xAB, 8 * MB);
    for (int at = 1; at < 64; at += 2)
        check_contents(&all[at]);
    CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 8 * (off_t)MB) == 0);
    for (int at = 1; at < 64; at += 2)
        check_contents(&all[at]);
    /* Nor is what was kept anything to the memfd. */
    memset(all[1].bytes, 0xCD, 100 * KB);
    for (size_t at = 0; at < 8 * MB; at += KB)
        CHECK(theirs[at] == 0);
    all[1] = (struct held){0};
    /* The slot can be used at once, and escapes again. */
    CHECK(onecopy_arena_enter(slot, 4 * MB) == 0);
    struct held more = hold(64, MB, 99);
    CHECK(usage_now().footprint_bytes == MB);
    CHECK(leave().live_blocks == 1 && onecopy_arena_keep(&slot) == 0);
    for (int at = 3; at < 64; at += 2)
        release(&all[at]);
    CHECK(onecopy_arena_kept_bytes() <= MB + 112 * KB);
    release(&more);
    munmap(theirs, 8 * MB);
    CHECK(onecopy_arena_detach(slot) == 0);
    close(fd);
}

static atomic_bool is_over;

static void *count_up(void *counters)
{
    uint64_t count = 0;
    for (; !is_over; count++)
        for (size_t at = 0; at < 64; at++)
            ((_Atomic uint64_t *)counters)[at * 512]++;
    return (void *)count;
}

/* A thread goes on writing while the memory below it is changed. */
static void keep_while_written(void)
{
    int fd = make_file(8 * MB);
    struct segment *slot = attach(fd, 8 * MB);
    for (int turn = 0; turn < 50; turn++) {
        CHECK(onecopy_arena_enter(slot, 8 * MB) == 0);
        void *place = NULL;
        CHECK(allocate_as_torch(&place, 4096, 64 * 4096) == 0);
        memset(place, 0, 64 * 4096);
        is_over = false;
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, count_up, place) == 0);
        while (((_Atomic uint64_t *)place)[63 * 512] < 100)
            ;
        CHECK(leave().live_blocks == 1 && onecopy_arena_keep(&slot) == 0);
        is_over = true;
        void *count;
        pthread_join(thread, &count);
        for (size_t at = 0; at < 64; at++)
            CHECK(((uint64_t *)place)[at * 512] == (uint64_t)count);
        free(place);
        CHECK(onecopy_arena_kept_bytes() == 0);
    }
    CHECK(onecopy_arena_detach(slot) == 0);
    close(fd);
}

/* --- threads --------------------------------------------------------------------------------------------- */

static void *hammer(void *seed)
{
    struct random random = {(uint64_t)(uintptr_t)seed};
    take_and_release(&random, 20000, 50);
    return NULL;
}

static void threads(void)
{
    int fd = make_file(8 * MB);
    struct segment *slot = attach(fd, 64 * MB);
    for (int turn = 0; turn < 3; turn++) {
        pthread_t all[4];
        for (uintptr_t at = 0; at < 4; at++)
            CHECK(pthread_create(&all[at], NULL, hammer, (void *)(12345 + at)) == 0);
        /* Slots come and go below them; blocks end in all of these. */
        for (int run = 0; run < 20; run++) {
            CHECK(onecopy_arena_enter(slot, run % 3 ? 8 * MB : MB) == 0);
            struct random random = {(uint64_t)run + 1};
            take_and_release(&random, 300, 50);
            if (leave().live_blocks)
                CHECK(onecopy_arena_keep(&slot) == 0);
        }
        for (int at = 0; at < 4; at++)
            pthread_join(all[at], NULL);
        CHECK(onecopy_arena_kept_bytes() == 0);
    }
    CHECK(onecopy_arena_detach(slot) == 0);
    close(fd);
}

/* --- fork ------------------------------------------------------------------------------------------------ */

static void check_child(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
}

static void fork_inside(void)
{
    int fd = make_file(8 * MB);
    struct segment *slot = attach(fd, 8 * MB);
    unsigned char *theirs = map_as_another(fd, 8 * MB);
    CHECK(onecopy_arena_enter(slot, 4 * MB) == 0);
    struct held small = hold(64, 1000, 1), large = hold(64, MB, 2), spilled = hold(64, 5 * MB, 3);
    unsigned char first = theirs[0];
    CHECK(first == small.bytes[0]);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        check_contents(&small), check_contents(&large), check_contents(&spilled);
        memset(large.bytes, 0xEE, MB);
        CHECK(onecopy_arena_kept_bytes() > 6 * MB); /* copies, its own */
        struct held served = hold(64, MB, 4);
        CHECK(leave().live_blocks == 0); /* it is served no more */
        CHECK(onecopy_arena_enter(slot, MB) == EINVAL || onecopy_arena_enter(slot, MB) == EBADF);
        release(&served), release(&small), release(&spilled);
        free(large.bytes);
        CHECK(onecopy_arena_kept_bytes() == 0);
        _exit(0);
    }
    check_child(child);
    check_contents(&small), check_contents(&large), check_contents(&spilled);
    CHECK(usage_now().spilled_bytes == usage_now().live_bytes);
    small.bytes[0]++; /* private now: the slot keeps what it had */
    CHECK(theirs[0] == first);
    small.bytes[0]--;
    struct held more = hold(64, MB, 5);
    for (size_t at = 2 * MB; at < 8 * MB; at += KB)
        CHECK(theirs[at] == 0);
    release(&small), release(&large), release(&spilled), release(&more);
    struct usage usage = leave();
    CHECK(usage.live_blocks == 0 && usage.peak_bytes >= 7 * MB && usage.footprint_bytes < 2 * MB);
    /* And shared again. */
    CHECK(onecopy_arena_enter(slot, 4 * MB) == 0);
    small = hold(64, 1000, 7);
    CHECK(theirs[0] == small.bytes[0] && usage_now().spilled_bytes == 0);
    /* A fork, and then something escapes. */
    child = fork();
    CHECK(child >= 0);
    if (child == 0)
        _exit(0);
    check_child(child);
    large = hold(64, MB, 8);
    CHECK(leave().live_blocks == 2 && onecopy_arena_keep(&slot) == 0);
    memset(theirs, 0, 8 * MB);
    release(&small), release(&large);
    CHECK(onecopy_arena_enter(slot, 4 * MB) == 0);
    small = hold(64, 1000, 9);
    CHECK(theirs[0] == small.bytes[0]);
    release(&small);
    CHECK(leave().live_blocks == 0);
    munmap(theirs, 8 * MB);
    CHECK(onecopy_arena_detach(slot) == 0);
    close(fd);
}

static size_t open_descriptors(void)
{
    size_t count = 0;
    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) != -1;
    return count;
}

static void fork_outside(void)
{
    int fd = make_file(MB);
    struct segment *slot = attach(fd, MB);
    close(fd);
    CHECK(onecopy_arena_enter(slot, MB) == 0);
    struct held held = hold(64, 100 * KB, 1);
    CHECK(leave().live_blocks == 1 && onecopy_arena_keep(&slot) == 0);
    size_t before = open_descriptors();
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(open_descriptors() == before - 1); /* the parent's memory does not live as long as its children */
        check_contents(&held);
        held.bytes[0]++;
        CHECK(onecopy_arena_enter(slot, MB) == EBADF);
        CHECK(onecopy_arena_detach(slot) == 0);
        /* With slots of its own it is as free as its parent. */
        fd = make_file(MB);
        slot = attach(fd, MB);
        CHECK(onecopy_arena_enter(slot, MB) == 0);
        struct held own = hold(64, 100 * KB, 2);
        CHECK(usage_now().live_blocks == 1 && usage_now().spilled_bytes == 0);
        release(&own);
        CHECK(leave().live_blocks == 0);
        _exit(0);
    }
    check_child(child);
    CHECK(onecopy_arena_enter(slot, MB) == 0);
    struct held own = hold(64, MB, 3);
    CHECK(usage_now().spilled_bytes == 0);
    release(&own), release(&held);
    CHECK(leave().live_blocks == 0);
    CHECK(onecopy_arena_detach(slot) == 0);
}

/* --- all ------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    void (*run)(void);
} scenarios[] = {
    {"random_blocks", random_blocks}, {"odd_requests", odd_requests}, {"states", states},
    {"keep", keep}, {"keep_while_written", keep_while_written}, {"threads", threads},
    {"fork_inside", fork_inside}, {"fork_outside", fork_outside},
    {"device_states", device_states}, {"device_spill", device_spill},
    {"device_random", device_random}, {"device_threads", device_threads},
};

int main(int count, char **arguments)
{
    for (size_t at = 0; at < sizeof scenarios / sizeof *scenarios; at++)
        if (count > 1 && strcmp(arguments[1], scenarios[at].name) == 0) {
            scenarios[at].run();
            return 0;
        }
    fprintf(stderr, "scenarios NAME, one of:");
    for (size_t at = 0; at < sizeof scenarios / sizeof *scenarios; at++)
        fprintf(stderr, " %s", scenarios[at].name);
    fprintf(stderr, "\n");
    return 2;
}
