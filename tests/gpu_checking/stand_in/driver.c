/* A CUDA driver without a GPU: enough of libcuda for the real binding to make, export, import and map memory.

   Device memory is a memfd, so that it outlives processes as the real one does; a mapping is one of this machine's
   memory, so that a tensor of the CPU can lie on it and a write through a read-only mapping faults. It is strict
   about granularity, exact ranges and handles, and about who may use whose memory: the mode of its file says whose
   it is. Result codes are those of cuda.h. A launched kernel is a thread.
   What GPUs there are stands in gpus.h; of these CUDA_VISIBLE_DEVICES chooses when the driver is initialised. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gpus.h"

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3 };
enum { MPS_ENABLED = 133, PRIORITY = 8, GREATEST_PRIORITY = -5 };
enum { NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, NOT_FOUND = 500 };
enum { GRAIN = 2 << 20, MOST = 4096, MOST_COPIES = 64, POSIX_FD = 1, READ = 1, READ_WRITE = 3, HOST_MEMORY = 1 };

typedef int Result;
typedef unsigned long long Handle, Address;

struct range {
    Address start;
    size_t size;
    int rights, gpu;
};

static int is_initialized;
static struct machine machine;
static int visible[MOST_GPUS], visible_count;
static __thread void *current;
static int descriptors[MOST];
static size_t sizes[MOST];
static Handle handles = 1;
static struct range reserved[MOST], mapped[MOST], pinned[MOST];

static int is_whole(unsigned long long value)
{
    return value % GRAIN == 0;
}

static struct range *find(struct range *ranges, Address start, size_t size)
{
    for (int i = 0; i < MOST; i++)
        if (ranges[i].size && ranges[i].start == start && (!size || ranges[i].size == size))
            return &ranges[i];
    return NULL;
}

static Result add(struct range *ranges, Address start, size_t size)
{
    for (int i = 0; i < MOST; i++)
        if (!ranges[i].size) {
            ranges[i] = (struct range){start, size, 0, 0};
            return SUCCESS;
        }
    return OUT_OF_MEMORY;
}

static Result remember(int descriptor, size_t size, Handle *handle)
{
    if (descriptor < 0)
        return INVALID_VALUE;
    if (handles == MOST)
        return OUT_OF_MEMORY;
    descriptors[handles] = descriptor;
    sizes[handles] = size;
    *handle = handles++;
    return SUCCESS;
}

static int is_held(Handle handle)
{
    return handle && handle < handles && descriptors[handle] >= 0;
}

static int make(size_t size, int gpu)
{
    int descriptor = memfd_create("stand-in-device", MFD_CLOEXEC);
    return ftruncate(descriptor, (off_t)size) || fchmod(descriptor, 0600 | gpu) ? -1 : descriptor;
}

static int gpu_of(int descriptor)
{
    struct stat found;
    return fstat(descriptor, &found) ? -1 : (int)found.st_mode & 07;
}

/* The number of the GPU that an entry of CUDA_VISIBLE_DEVICES means: a number, or the beginning of a UUID. */
static int chosen(const char *entry)
{
    char *end;
    long number = strtol(entry, &end, 10);
    if (!*end)
        return *entry && 0 <= number && number < machine.gpu_count ? (int)number : -1;
    for (int i = 0; i < machine.gpu_count; i++)
        if (!strncmp(machine.gpus[i].uuid, entry, strlen(entry)))
            return i;
    return -1;
}

/* As CUDA does, it takes no more of them from the first entry on that means nothing. */
static void choose(void)
{
    const char *given = getenv("CUDA_VISIBLE_DEVICES");
    read_machine(&machine);
    if (!given) {
        while (visible_count < machine.gpu_count) visible[visible_count] = visible_count, visible_count++;
        return;
    }
    char entries[1024], *rest = entries, *entry;
    snprintf(entries, sizeof entries, "%s", given);
    while ((entry = strsep(&rest, ",")) && visible_count < MOST_GPUS) {
        int number = chosen(entry);
        if (number < 0)
            return;
        visible[visible_count++] = number;
    }
}

static int is_device(int device)
{
    return 0 <= device && device < visible_count;
}

Result cuInit(unsigned flags)
{
    if (flags)
        return INVALID_VALUE;
    if (!is_initialized && !visible_count)
        choose();
    is_initialized = visible_count > 0;
    return is_initialized ? SUCCESS : NO_DEVICE;
}

Result cuDriverGetVersion(int *version)
{
    *version = 13000;
    return SUCCESS;
}

Result cuDeviceGetCount(int *count)
{
    *count = visible_count;
    return is_initialized ? SUCCESS : NOT_INITIALIZED;
}

Result cuDeviceGet(int *device, int ordinal)
{
    *device = ordinal;
    return !is_initialized ? NOT_INITIALIZED : is_device(ordinal) ? SUCCESS : INVALID_DEVICE;
}

Result cuDeviceGetName(char *name, int size, int device)
{
    if (!is_device(device))
        return INVALID_DEVICE;
    snprintf(name, (size_t)size, "%s", machine.gpus[visible[device]].name);
    return SUCCESS;
}

Result cuDeviceGetUuid_v2(unsigned char *bytes, int device)
{
    if (!is_device(device))
        return INVALID_DEVICE;
    const char *text = strchr(machine.gpus[visible[device]].uuid, '-') + 1;
    for (int i = 0; i < 16; i++, text += 2) {
        text += *text == '-';
        sscanf(text, "%2hhx", &bytes[i]);
    }
    return SUCCESS;
}

Result cuDeviceTotalMem_v2(size_t *size, int device)
{
    if (!is_device(device))
        return INVALID_DEVICE;
    *size = machine.gpus[visible[device]].total;
    return SUCCESS;
}

Result cuDeviceGetAttribute(int *value, int name, int device)
{
    *value = name != MPS_ENABLED || getenv("CUDA_MPS_PIPE_DIRECTORY");
    return is_device(device) ? SUCCESS : INVALID_DEVICE;
}

static int can_use(int gpu, int of)
{
    return gpu == of || machine.peers[gpu][of];
}

Result cuDeviceCanAccessPeer(int *can, int device, int other)
{
    if (!is_device(device) || !is_device(other))
        return INVALID_DEVICE;
    *can = device != other && can_use(visible[device], visible[other]);
    return SUCCESS;
}

Result cuCtxGetCurrent(void **context)
{
    *context = current;
    return is_initialized ? SUCCESS : NOT_INITIALIZED;
}

Result cuCtxSetCurrent(void *context)
{
    current = context;
    return SUCCESS;
}

Result cuDevicePrimaryCtxRetain(void **context, int device)
{
    *context = &is_initialized;
    return SUCCESS;
}

Result cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *is_active)
{
    *flags = 0;
    *is_active = device == 0 && current;
    return is_device(device) ? SUCCESS : INVALID_DEVICE;
}

Result cuCtxSynchronize(void)
{
    return current ? SUCCESS : INVALID_CONTEXT;
}

Result cuPointerGetAttribute(int *value, int name, Address address)
{
    *value = HOST_MEMORY;  /* as it says at the top */
    return SUCCESS;
}


/* `properties` and `access` begin with what a CUmemAllocationProp and a CUmemAccessDesc begin with. */
Result cuMemGetAllocationGranularity(size_t *grain, const int *properties, int option)
{
    *grain = GRAIN;
    return SUCCESS;
}

Result cuMemCreate(Handle *handle, size_t size, const int *properties, unsigned long long flags)
{
    int pinned_with_fd_on_a_device[] = {1, POSIX_FD, 1};
    if (!is_initialized)
        return NOT_INITIALIZED;
    if (!size || !is_whole(size) || !is_device(properties[3])
        || memcmp(properties, pinned_with_fd_on_a_device, sizeof pinned_with_fd_on_a_device))
        return INVALID_VALUE;
    return size > (size_t)4 << 30 ? OUT_OF_MEMORY : remember(make(size, visible[properties[3]]), size, handle);
}

Result cuMemExportToShareableHandle(int *descriptor, Handle handle, int kind, unsigned long long flags)
{
    if (!is_held(handle) || kind != POSIX_FD)
        return INVALID_VALUE;
    *descriptor = fcntl(descriptors[handle], F_DUPFD_CLOEXEC, 3);
    return SUCCESS;
}

Result cuMemImportFromShareableHandle(Handle *handle, void *descriptor, int kind)
{
    struct stat found;
    if (kind != POSIX_FD || fstat((int)(intptr_t)descriptor, &found))
        return INVALID_VALUE;
    return remember(fcntl((int)(intptr_t)descriptor, F_DUPFD_CLOEXEC, 3), (size_t)found.st_size, handle);
}

Result cuMemRelease(Handle handle)
{
    if (!is_held(handle))
        return INVALID_VALUE;
    close(descriptors[handle]);
    descriptors[handle] = -1;
    return SUCCESS;
}

Result cuMemAddressReserve(Address *address, size_t size, size_t alignment, Address hint, unsigned long long flags)
{
    if (!is_whole(size) || !is_whole(hint))
        return INVALID_VALUE;
    char *found = mmap((void *)hint, size + GRAIN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED)
        return OUT_OF_MEMORY;
    *address = ((Address)found + GRAIN - 1) / GRAIN * GRAIN;
    return add(reserved, *address, size);
}

Result cuMemAddressFree(Address address, size_t size)
{
    struct range *range = find(reserved, address, size);
    if (!range)
        return INVALID_VALUE;
    range->size = 0;
    return munmap((void *)address, size) ? INVALID_VALUE : SUCCESS;
}

Result cuMemMap(Address address, size_t size, size_t offset, Handle handle, unsigned long long flags)
{
    if (!is_held(handle) || !size || !is_whole(address | size | offset) || offset + size > sizes[handle])
        return INVALID_VALUE;
    for (int i = 0; i < MOST; i++)
        if (mapped[i].size && mapped[i].start < address + size && address < mapped[i].start + mapped[i].size)
            return INVALID_VALUE;
    int flags_of_map = MAP_SHARED | MAP_FIXED;
    void *found = mmap((void *)address, size, PROT_NONE, flags_of_map, descriptors[handle], (off_t)offset);
    if (found == MAP_FAILED || add(mapped, address, size))
        return INVALID_VALUE;
    find(mapped, address, size)->gpu = gpu_of(descriptors[handle]);
    return SUCCESS;
}

Result cuMemUnmap(Address address, size_t size)
{
    struct range *range = find(mapped, address, size);
    if (!range)
        return INVALID_VALUE;
    range->size = 0;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
    return mmap((void *)address, size, PROT_NONE, flags, -1, 0) == MAP_FAILED ? INVALID_VALUE : SUCCESS;
}

Result cuMemSetAccess(Address address, size_t size, const int *access, size_t count)
{
    struct range *range = find(mapped, address, size);
    int rights = access[2];
    if (!range || count != 1 || access[0] != 1 || !is_device(access[1]) || (rights != READ && rights != READ_WRITE))
        return INVALID_VALUE;
    if (!can_use(visible[access[1]], range->gpu))
        return INVALID_DEVICE;
    range->rights = rights;
    return mprotect((void *)address, size, rights == READ ? PROT_READ : PROT_READ | PROT_WRITE);
}

Result cuMemGetAccess(unsigned long long *rights, const void *location, Address address)
{
    struct range *range = find(mapped, address, 0);
    if (!range)
        return INVALID_VALUE;
    *rights = (unsigned long long)range->rights;
    return SUCCESS;
}

Result cuMemAlloc_v2(Address *address, size_t size)
{
    if (!current)
        return INVALID_CONTEXT;
    *address = (Address)mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, make(size, visible[0]), 0);
    return SUCCESS;
}

/* Like the device, it faults where it may not read or write. */
Result cuMemcpyHtoD_v2(Address to, const void *from, size_t size)
{
    if (!current)
        return INVALID_CONTEXT;
    memcpy((void *)to, from, size);
    return SUCCESS;
}

Result cuMemcpyDtoH_v2(void *to, Address from, size_t size)
{
    if (!current)
        return INVALID_CONTEXT;
    memcpy(to, (const void *)from, size);
    return SUCCESS;
}

/* A stream does nothing until it is waited for: who reuses a buffer before that, or unmaps, is found out. */
struct copy {
    void *to;
    const void *from;
    size_t size;
};

struct stream {
    struct copy copies[MOST_COPIES];
    int count, priority;
};

static int last_priority;

Result cuMemHostAlloc(void **memory, size_t size, unsigned flags)
{
    if (!current)
        return INVALID_CONTEXT;
    int kind = MAP_PRIVATE | MAP_ANONYMOUS;
    *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, kind, -1, 0);
    return *memory == MAP_FAILED ? OUT_OF_MEMORY : add(pinned, (Address)*memory, size);
}

Result cuMemFreeHost(void *memory)
{
    struct range *range = find(pinned, (Address)memory, 0);
    if (!range)
        return INVALID_VALUE;
    munmap(memory, range->size);
    range->size = 0;
    return SUCCESS;
}

Result cuStreamCreate(void **stream, unsigned flags)
{
    *stream = calloc(1, sizeof(struct stream));
    return current ? SUCCESS : INVALID_CONTEXT;
}

Result cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0, *greatest = GREATEST_PRIORITY;
    return current ? SUCCESS : INVALID_CONTEXT;
}

Result cuStreamCreateWithPriority(void **stream, unsigned flags, int priority)
{
    if (cuStreamCreate(stream, flags))
        return INVALID_CONTEXT;
    last_priority = ((struct stream *)*stream)->priority = priority;
    return SUCCESS;
}

Result cuStreamSetAttribute(void *stream, int name, const int *value)
{
    if (name != PRIORITY || *value > 0 || *value < GREATEST_PRIORITY)
        return INVALID_VALUE;
    last_priority = ((struct stream *)stream)->priority = *value;
    return SUCCESS;
}

Result cuStreamGetPriority(void *stream, int *priority)
{
    *priority = ((struct stream *)stream)->priority;
    return SUCCESS;
}

/* For models of tests, which do not know the stream of their worker. */
int stand_in_priority(void)
{
    return last_priority;
}

Result cuStreamSynchronize(void *given)
{
    struct stream *stream = given;
    for (int i = 0; i < stream->count; i++)
        memcpy(stream->copies[i].to, stream->copies[i].from, stream->copies[i].size);
    stream->count = 0;
    return SUCCESS;
}

Result cuStreamDestroy_v2(void *stream)
{
    free(stream);
    return SUCCESS;
}

static int is_within(const struct range *ranges, Address start, size_t size)
{
    for (int i = 0; i < MOST; i++)
        if (ranges[i].size && ranges[i].start <= start && start + size <= ranges[i].start + ranges[i].size)
            return 1;
    return 0;
}

static Result copy_later(struct stream *stream, void *to, const void *from, size_t size, Address there, void *here)
{
    if (!is_within(mapped, there, size) || !is_within(pinned, (Address)here, size))
        return INVALID_VALUE;
    if (stream->count == MOST_COPIES)
        return OUT_OF_MEMORY;
    stream->copies[stream->count++] = (struct copy){to, from, size};
    return SUCCESS;
}

Result cuMemcpyHtoDAsync_v2(Address to, void *from, size_t size, void *stream)
{
    return copy_later(stream, (void *)to, from, size, to, from);
}

Result cuMemcpyDtoHAsync_v2(void *to, Address from, size_t size, void *stream)
{
    return copy_later(stream, to, (const void *)from, size, from, to);
}

Result cuModuleLoadData(void **module, const char *image)
{
    *module = (void *)image;
    return strstr(image, ".visible .entry scribble(") ? SUCCESS : INVALID_VALUE;
}

Result cuModuleGetFunction(void **function, void *module, const char *name)
{
    *function = module;
    return strcmp(name, "scribble") ? NOT_FOUND : SUCCESS;
}

struct launch {
    volatile uint32_t *base;
    uint64_t words;
    uint32_t pattern, rounds;
};

static void *scribble(void *given)
{
    struct launch *launch = given;
    for (uint32_t round = 0; round < launch->rounds; round++)
        for (uint64_t word = 0; word < launch->words; word++) launch->base[word] = launch->pattern;
    return NULL;
}

Result cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void *stream, void **given, void **extra)
{
    struct launch *launch = malloc(sizeof *launch);
    launch->base = *(void **)given[0];
    launch->words = *(uint64_t *)given[1];
    launch->pattern = *(uint32_t *)given[2];
    launch->rounds = *(uint32_t *)given[3];
    pthread_t thread;
    return pthread_create(&thread, NULL, scribble, launch) ? OUT_OF_MEMORY : SUCCESS;
}

/* How bindings from 13.1 on find all of the above: by the name without its version. */
Result cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *status)
{
    char versioned[128];
    Dl_info here;
    dladdr((void *)cuInit, &here);
    void *library = dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    snprintf(versioned, sizeof versioned, "%s_v2", name);
    *function = dlsym(library, versioned);
    if (!*function)
        *function = dlsym(library, name);
    return *function ? SUCCESS : NOT_FOUND;
}
