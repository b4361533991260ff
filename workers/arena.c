/* The slot's allocator: while a slot is entered, torch's CPU memory comes out of its pages.
 *
 * A slot is a memfd that many processes map and one at a time uses, so activations are bounded, and whoever comes
 * next finds pages that are there already. The library is preloaded (LD_PRELOAD) and stands before libc:
 *
 *     posix_memalign ── a slot is entered, and libc10.so calls? ── yes ──► slot ── full ──► spill
 *                                                               └─ no ───► whoever comes next
 *     free ──────────── inside the window of addresses? ────────── yes ──► its block's segment
 *                                                               └─ no ───► whoever comes next
 *
 * "Whoever comes next" is libc, or an allocator that the user preloads. Torch's own memory is told from anything
 * else by the return address: in libc10.so only `c10::alloc_cpu` calls `posix_memalign`.
 *
 * A run: enter, leave. If blocks live on the slot is not left; leave again, or keep: what lives moves out of the
 * slot's pages into private ones at the same addresses.
 */
#define _GNU_SOURCE
#include "arena_run.h"
#include "arena_segments.h"

#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

/* --- whoever comes next ---------------------------------------------------------------------------------- */

typedef int allocate_function(void **, size_t, size_t);
typedef void free_function(void *);

static _Atomic(allocate_function *) next_allocate;
static _Atomic(free_function *) next_free;

/* When first needed: the loader frees memory before any constructor has run, and has one thread then. */
static void find_next(void)
{
    static bool is_finding;
    if (is_finding)
        return;
    is_finding = true;
    atomic_store(&next_allocate, (allocate_function *)dlsym(RTLD_NEXT, "posix_memalign"));
    atomic_store(&next_free, (free_function *)dlsym(RTLD_NEXT, "free"));
    is_finding = false;
}

/* Before there are threads, at the latest: one must not go without because another is searching. */
__attribute__((constructor)) static void find_next_in_time(void)
{
    if (!next_free)
        find_next();
}

static void pass_on(void *place)
{
    if (!next_free)
        find_next();
    free_function *next = next_free;
    if (next) /* else it is the search for it that frees */
        next(place);
}

/* --- torch ----------------------------------------------------------------------------------------------- */

static _Atomic uintptr_t torch_begin;
static _Atomic size_t torch_bytes;

/* Note where the code of libc10.so lies. */
static int look_at_library(struct dl_phdr_info *library, size_t size, void *unused)
{
    (void)size, (void)unused;
    const char *name = strrchr(library->dlpi_name, '/');
    if (strcmp(name ? name + 1 : library->dlpi_name, "libc10.so") != 0)
        return 0;
    for (int at = 0; at < library->dlpi_phnum; at++) {
        const ElfW(Phdr) *part = &library->dlpi_phdr[at];
        if (part->p_type == PT_LOAD && part->p_flags & PF_X) {
            torch_begin = library->dlpi_addr + part->p_vaddr;
            torch_bytes = part->p_memsz;
            return 1;
        }
    }
    return 0;
}

bool torch_is_found(void)
{
    return torch_bytes || dl_iterate_phdr(look_at_library, NULL);
}

/* --- what stands before libc ----------------------------------------------------------------------------- */

API int posix_memalign(void **place, size_t alignment, size_t size_bytes)
{
    if (is_serving && (uintptr_t)__builtin_return_address(0) - torch_begin < torch_bytes
        && alignment >= sizeof(void *) && !(alignment & (alignment - 1))) {
        int error = arena_allocate(place, alignment, size_bytes);
        if (error != EAGAIN)
            return error;
    }
    if (!next_allocate)
        find_next();
    allocate_function *next = next_allocate;
    return next ? next(place, alignment, size_bytes) : ENOMEM;
}

API void free(void *place)
{
    if ((uintptr_t)place - reserved_base >= reserved_bytes || !arena_free(place))
        pass_on(place);
}
