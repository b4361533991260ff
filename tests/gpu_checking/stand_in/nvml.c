/* NVML without a GPU: enough of libnvidia-ml for the real binding to ask what GPUs there are, what of their memory
   is free, and who uses it. What it tells stands in gpus.h; result codes are those of nvml.h. It is strict: nothing
   is answered before it is initialised, nor by a handle that it did not give. Like the real one it knows nothing
   of CUDA_VISIBLE_DEVICES. */
#include <stddef.h>

#include "gpus.h"

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };
#define VERSION_2_OF_MEMORY 0x02000028u

typedef int Result;
typedef const char *Device;

struct memory {
    unsigned long long total, free, used;
};

struct memory_v2 {
    unsigned version;
    unsigned long long total, reserved, free, used;
};

struct process_info {
    unsigned pid;
    unsigned long long used;
    unsigned gpu_instance, compute_instance;
};

static int users;
static const char handles[MOST_GPUS];

static Result find(Device device, struct machine *machine, struct gpu **gpu)
{
    if (!users)
        return UNINITIALIZED;
    read_machine(machine);
    ptrdiff_t number = device - handles;
    if (!device || number < 0 || number >= machine->gpu_count)
        return INVALID_ARGUMENT;
    *gpu = &machine->gpus[number];
    return (*gpu)->is_lost ? GPU_IS_LOST : SUCCESS;
}

static Result copy(char *to, unsigned size, const char *from)
{
    return snprintf(to, size, "%s", from) < (int)size ? SUCCESS : INSUFFICIENT_SIZE;
}

Result nvmlInitWithFlags(unsigned flags)
{
    users++;
    return flags ? INVALID_ARGUMENT : SUCCESS;
}

Result nvmlShutdown(void)
{
    return users-- ? SUCCESS : UNINITIALIZED;
}

const char *nvmlErrorString(Result result)
{
    return result == GPU_IS_LOST ? "GPU is lost" : result == NOT_FOUND ? "Not Found" : "Stand-in Error";
}

Result nvmlSystemGetDriverVersion(char *version, unsigned size)
{
    return users ? copy(version, size, "580.00.00") : UNINITIALIZED;
}

Result nvmlDeviceGetCount_v2(unsigned *count)
{
    struct machine machine;
    read_machine(&machine);
    *count = (unsigned)machine.gpu_count;
    return users ? SUCCESS : UNINITIALIZED;
}

Result nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device)
{
    struct machine machine;
    struct gpu *gpu;
    *device = handles + (index < MOST_GPUS ? index : MOST_GPUS);
    return find(*device, &machine, &gpu);
}

Result nvmlDeviceGetHandleByUUID(const char *uuid, Device *device)
{
    struct machine machine;
    if (!users)
        return UNINITIALIZED;
    read_machine(&machine);
    for (int number = 0; number < machine.gpu_count; number++)
        if (!strcmp(machine.gpus[number].uuid, uuid)) {
            *device = handles + number;
            return machine.gpus[number].is_lost ? GPU_IS_LOST : SUCCESS;
        }
    return NOT_FOUND;
}

Result nvmlDeviceGetUUID(Device device, char *uuid, unsigned size)
{
    struct machine machine;
    struct gpu *gpu;
    Result result = find(device, &machine, &gpu);
    return result ? result : copy(uuid, size, gpu->uuid);
}

Result nvmlDeviceGetName(Device device, char *name, unsigned size)
{
    struct machine machine;
    struct gpu *gpu;
    Result result = find(device, &machine, &gpu);
    return result ? result : copy(name, size, gpu->name);
}

Result nvmlDeviceGetMemoryInfo(Device device, struct memory *memory)
{
    struct machine machine;
    struct gpu *gpu;
    Result result = find(device, &machine, &gpu);
    if (!result)
        *memory = (struct memory){gpu->total, gpu->total - gpu->used, gpu->used};
    return result;
}

Result nvmlDeviceGetMemoryInfo_v2(Device device, struct memory_v2 *memory)
{
    struct machine machine;
    struct gpu *gpu;
    if (memory->version != VERSION_2_OF_MEMORY)
        return INVALID_ARGUMENT;
    Result result = find(device, &machine, &gpu);
    if (!result)
        *memory = (struct memory_v2){memory->version, gpu->total, 0, gpu->total - gpu->used, gpu->used};
    return result;
}

/* As nvml.h wants it, the count says how much room there is, and then how much is needed. */
static Result list(Device device, unsigned *count, struct process_info *infos, int is_mps)
{
    struct machine machine;
    struct gpu *gpu;
    Result result = find(device, &machine, &gpu);
    if (result)
        return result;
    unsigned room = *count;
    *count = 0;
    for (int at = 0; at < machine.process_count; at++) {
        const struct process *one = &machine.processes[at];
        if (handles + one->gpu != device || one->is_mps != is_mps)
            continue;
        if (infos && *count < room)
            infos[*count] = (struct process_info){one->pid, one->used, ~0u, ~0u};
        ++*count;
    }
    return *count > (infos ? room : 0) ? INSUFFICIENT_SIZE : SUCCESS;
}

Result nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned *count, struct process_info *infos)
{
    return list(device, count, infos, 0);
}

Result nvmlDeviceGetMPSComputeRunningProcesses_v3(Device device, unsigned *count, struct process_info *infos)
{
    return list(device, count, infos, 1);
}
