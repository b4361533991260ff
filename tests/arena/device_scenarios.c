/* Scenarios of slots in the memory of a GPU. Their addresses are made up: nobody may touch what is there. */
#include "device_scenarios.h"
#include "harness.h"

#include <errno.h>
#include <pthread.h>

struct device_slot;
struct device_run {
    size_t spilled_bytes, refused_bytes;
};

extern struct device_run onecopy_device_run;
void *onecopy_device_allocate(size_t size_bytes, int device, void *stream);
void onecopy_device_free(void *place, size_t size_bytes, int device, void *stream);
void onecopy_device_spill(int (*allocate)(unsigned long long *, size_t), int (*free_it)(unsigned long long));
int onecopy_device_attach(uintptr_t base, size_t size_bytes, struct device_slot **attached);
int onecopy_device_detach(struct device_slot *slot);
int onecopy_device_enter(struct device_slot *slot, bool strictly);
void onecopy_device_leave(void);
size_t onecopy_device_held_bytes(const struct device_slot *slot);

/* An address space of 47 bits has nothing there in a small program; a read or write would end it. */
#define BASE ((uintptr_t)0x123400000000)
#define OUTSIDE ((uintptr_t)0x234500000000)
#define GRAIN (2 * MB)

enum { MOST_SEGMENTS = 200, TURNS = 20000, THREADS = 4 };

static void *take(size_t size_bytes)
{
    return onecopy_device_allocate(size_bytes, 0, NULL);
}

static void give(void *place, size_t size_bytes)
{
    onecopy_device_free(place, size_bytes, 0, NULL);
}

static struct device_slot *slot_at(uintptr_t base, size_t size_bytes)
{
    struct device_slot *slot = NULL;
    CHECK(onecopy_device_attach(base, size_bytes, &slot) == 0);
    return slot;
}

/* --- outside --------------------------------------------------------------------------------------------- */

static size_t spilled_bytes[MOST_SEGMENTS];
static int spilled_count;
static bool is_exhausted;

static int spill(unsigned long long *place, size_t size_bytes)
{
    if (is_exhausted)
        return 2;
    free(malloc(100)); /* as the driver may: nothing of ours is locked */
    spilled_bytes[spilled_count] = size_bytes;
    *place = OUTSIDE + (uintptr_t)spilled_count++ * GRAIN;
    return 0;
}

static int unspill(unsigned long long place)
{
    size_t at = (place - OUTSIDE) / GRAIN;
    CHECK(place % GRAIN == OUTSIDE % GRAIN && spilled_bytes[at]);
    spilled_bytes[at] = 0;
    return 0;
}

void device_spill(void)
{
    struct device_slot *slot = slot_at(BASE, 4 * GRAIN);
    CHECK(onecopy_device_enter(slot, false) == 0);
    void *inside = take(4 * GRAIN);
    CHECK(inside == (void *)BASE && !take(GRAIN)); /* there is no outside yet */
    onecopy_device_spill(spill, unspill);
    void *first = take(GRAIN), *second = take(3 * GRAIN);
    CHECK(first == (void *)OUTSIDE && second == (void *)(OUTSIDE + GRAIN));
    give(first, GRAIN);
    CHECK(onecopy_device_run.spilled_bytes == 4 * GRAIN && !spilled_bytes[0]);
    is_exhausted = true;
    CHECK(!take(GRAIN) && onecopy_device_run.spilled_bytes == 4 * GRAIN);
    CHECK(onecopy_device_run.refused_bytes == 0);
    onecopy_device_leave();
    CHECK(!take(GRAIN)); /* not for anybody who is in no slot */
    /* What one run has left outside is not the next one's. */
    is_exhausted = false;
    CHECK(onecopy_device_enter(slot, false) == 0 && onecopy_device_run.spilled_bytes == 0);
    void *third = take(GRAIN);
    CHECK(onecopy_device_run.spilled_bytes == GRAIN);
    onecopy_device_leave();
    give(second, 3 * GRAIN), give(third, GRAIN), give(inside, 4 * GRAIN), give(NULL, 0);
    CHECK(!spilled_bytes[1] && !spilled_bytes[2]);
    CHECK(onecopy_device_detach(slot) == 0);
}

/* --- states ---------------------------------------------------------------------------------------------- */

void device_states(void)
{
    struct device_slot *unused = NULL, *slot = slot_at(BASE, 8 * GRAIN), *other = slot_at(OUTSIDE, 2 * GRAIN);
    CHECK(onecopy_device_attach(0, GRAIN, &unused) == EINVAL);
    CHECK(onecopy_device_attach(BASE + 64, GRAIN, &unused) == EINVAL);
    CHECK(onecopy_device_attach(BASE, 0, &unused) == EINVAL && !unused);
    CHECK(onecopy_device_enter(slot, true) == 0 && onecopy_device_enter(other, false) == EBUSY);
    CHECK(onecopy_device_detach(slot) == EBUSY);
    void *all = take(8 * GRAIN - 100); /* whatever torch asks for, the next one begins where a block may */
    CHECK(all == (void *)BASE && onecopy_device_held_bytes(slot) == 8 * GRAIN);
    CHECK(!take(GRAIN) && !take(100));
    CHECK(onecopy_device_run.refused_bytes == 9 * GRAIN && onecopy_device_run.spilled_bytes == 0);
    onecopy_device_leave();
    CHECK(onecopy_device_detach(slot) == EBUSY);
    /* Each slot has its own, and a segment is known by its address whichever is entered. */
    CHECK(onecopy_device_enter(other, true) == 0 && onecopy_device_run.refused_bytes == 0);
    void *others = take(GRAIN);
    CHECK(others == (void *)OUTSIDE);
    give(all, 8 * GRAIN - 100);
    CHECK(!onecopy_device_held_bytes(slot) && onecopy_device_held_bytes(other) == GRAIN);
    CHECK(!take(0) && !take(SIZE_MAX) && !take(SIZE_MAX - 100));
    give(others, GRAIN);
    onecopy_device_leave();
    CHECK(onecopy_device_detach(slot) == 0 && onecopy_device_detach(other) == 0);
}

/* --- against a model ------------------------------------------------------------------------------------- */

struct taken {
    uintptr_t begin;
    size_t size_bytes;
};

/* Ordered by address, so that gaps are what lies between two of them. */
static size_t largest_gap(const struct taken *all, size_t count, size_t limit_bytes)
{
    size_t largest = 0;
    uintptr_t end = BASE;
    for (size_t at = 0; at <= count; at++) {
        uintptr_t begin = at < count ? all[at].begin : BASE + limit_bytes;
        CHECK(begin >= end);
        largest = begin - end > largest ? begin - end : largest;
        end = at < count ? begin + all[at].size_bytes : end;
    }
    return largest;
}

static size_t insert(struct taken *all, size_t count, struct taken one)
{
    size_t at = count;
    for (; at && all[at - 1].begin > one.begin; at--)
        all[at] = all[at - 1];
    all[at] = one;
    return count + 1;
}

static size_t random_segment(struct random *random)
{
    switch (next_random(random) % 3) {
    case 0: return GRAIN;      /* small blocks come in these, ... */
    case 1: return 10 * GRAIN; /* ... larger ones in these, ... */
    default: return (5 + next_random(random) % 20) * GRAIN; /* ... and the largest alone */
    }
}

/* A segment is refused if, and only if, no gap is large enough. */
void device_random(void)
{
    struct random random = {88172645463325252u};
    size_t limit_bytes = 128 * GRAIN, count = 0, refused = 0;
    struct device_slot *slot = slot_at(BASE, limit_bytes);
    struct taken all[MOST_SEGMENTS];
    CHECK(onecopy_device_enter(slot, true) == 0);
    for (int turn = 0; turn < TURNS; turn++) {
        size_t size_bytes = random_segment(&random), held_bytes = 0;
        if (next_random(&random) % 5 < 3) {
            void *place = take(size_bytes);
            CHECK(!place == (largest_gap(all, count, limit_bytes) < size_bytes));
            refused += !place;
            if (place)
                count = insert(all, count, (struct taken){(uintptr_t)place, size_bytes});
        } else if (count) {
            size_t at = next_random(&random) % count;
            give((void *)all[at].begin, all[at].size_bytes);
            memmove(&all[at], &all[at + 1], (--count - at) * sizeof *all);
        }
        for (size_t at = 0; at < count; at++)
            held_bytes += all[at].size_bytes;
        CHECK(onecopy_device_held_bytes(slot) == held_bytes);
        largest_gap(all, count, limit_bytes); /* none lies in another, or outside */
    }
    CHECK(refused > TURNS / 100 && refused < TURNS / 2);
    while (count--)
        give((void *)all[count].begin, all[count].size_bytes);
    CHECK(take(limit_bytes) == (void *)BASE); /* what was cut to pieces is one piece again */
    give((void *)BASE, limit_bytes);
    onecopy_device_leave();
    CHECK(onecopy_device_detach(slot) == 0);
}

/* --- threads --------------------------------------------------------------------------------------------- */

static void *take_and_give(void *seed)
{
    struct random random = {*(uint64_t *)seed};
    struct taken mine[8] = {{0, 0}};
    for (int turn = 0; turn < TURNS; turn++) {
        struct taken *one = &mine[next_random(&random) % 8];
        if (one->begin)
            give((void *)one->begin, one->size_bytes), one->begin = 0;
        else if ((one->begin = (uintptr_t)take(GRAIN)))
            one->size_bytes = GRAIN;
    }
    for (struct taken *one = mine; one < mine + 8; one++)
        give((void *)one->begin, one->size_bytes);
    return NULL;
}

void device_threads(void)
{
    pthread_t threads[THREADS];
    uint64_t seeds[THREADS] = {11, 22, 33, 44};
    struct device_slot *slot = slot_at(BASE, 24 * GRAIN);
    CHECK(onecopy_device_enter(slot, true) == 0);
    for (int at = 0; at < THREADS; at++)
        CHECK(pthread_create(&threads[at], NULL, take_and_give, &seeds[at]) == 0);
    for (int at = 0; at < THREADS; at++)
        CHECK(pthread_join(threads[at], NULL) == 0);
    CHECK(onecopy_device_held_bytes(slot) == 0);
    onecopy_device_leave();
    CHECK(onecopy_device_detach(slot) == 0);
}
