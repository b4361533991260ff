#include "harness.h"

#include <sys/mman.h>
#include <unistd.h>

/* xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled", 2016. */
uint64_t next_random(struct random *random)
{
    random->state ^= random->state >> 12;
    random->state ^= random->state << 25;
    random->state ^= random->state >> 27;
    return random->state * UINT64_C(0x2545F4914F6CDD1D);
}

/* One byte in each 64 and the last: enough to see who else has written, and quick under valgrind. */
static void visit(const struct held *held, void (*look)(unsigned char *, unsigned char))
{
    for (size_t at = 0; at < held->size_bytes; at += 64)
        look(&held->bytes[at], (unsigned char)(held->seed + at / 64 * 31));
    if (held->size_bytes)
        look(&held->bytes[held->size_bytes - 1], (unsigned char)held->seed);
}

static void set(unsigned char *place, unsigned char value)
{
    *place = value;
}

static void check(unsigned char *place, unsigned char value)
{
    CHECK(*place == value);
}

struct held hold(size_t alignment, size_t size_bytes, uint64_t seed)
{
    void *place = NULL;
    CHECK(allocate_as_torch(&place, alignment, size_bytes) == 0);
    CHECK((uintptr_t)place % alignment == 0);
    /* The first byte of a block that is its last as well has the last one's value. */
    struct held held = {place, size_bytes, alignment, seed};
    visit(&held, set);
    return held;
}

void check_contents(const struct held *held)
{
    if (held->size_bytes % 64 != 1)
        visit(held, check);
}

void release(struct held *held)
{
    check_contents(held);
    free(held->bytes);
    held->bytes = NULL;
}

int make_file(size_t size_bytes)
{
    int fd = memfd_create("slot", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)size_bytes) == 0);
    return fd;
}

struct segment *attach(int fd, size_t window_bytes)
{
    struct segment *slot = NULL;
    CHECK(onecopy_arena_attach(fd, window_bytes, &slot) == 0);
    return slot;
}

struct usage usage_now(void)
{
    struct usage usage;
    onecopy_arena_usage(&usage);
    return usage;
}

struct usage leave(void)
{
    onecopy_arena_leave();
    return usage_now();
}

unsigned char *map_as_another(int fd, size_t size_bytes)
{
    void *place = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(place != MAP_FAILED);
    return place;
}
