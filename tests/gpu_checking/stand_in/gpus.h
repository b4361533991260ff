/* The GPUs that the stand-ins for CUDA's driver and for NVML speak of, so that both speak of the same.

   A file tells, which the environment names (STAND_IN_GPUS); it is read anew whenever NVML is asked. A line each:

       gpu UUID TOTAL_BYTES USED_BYTES NAME          from number 0 on, as NVML counts
       process GPU PID USED_BYTES compute|mps        USED_BYTES may be - where NVML would not tell
       lost GPU                                      it has fallen off the bus
       peers GPU GPU                                 each can use the memory of the other

   Without a file there is one GPU of 8 GiB that nobody uses. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_GPUS = 8, MOST_PROCESSES = 64, TEXT = 96 };
#define NOT_TOLD (~0ULL)

struct gpu {
    char uuid[TEXT], name[TEXT];
    unsigned long long total, used;
    int is_lost;
};

struct process {
    int gpu, is_mps;
    unsigned pid;
    unsigned long long used;
};

struct machine {
    struct gpu gpus[MOST_GPUS];
    struct process processes[MOST_PROCESSES];
    int gpu_count, process_count;
    int peers[MOST_GPUS][MOST_GPUS];
};

static void read_line(struct machine *machine, const char *line)
{
    struct gpu gpu = {0};
    struct process process = {0};
    char used[TEXT], kind[TEXT];
    int number, other;
    if (sscanf(line, "gpu %95s %llu %llu %95[^\n]", gpu.uuid, &gpu.total, &gpu.used, gpu.name) == 4
        && machine->gpu_count < MOST_GPUS)
        machine->gpus[machine->gpu_count++] = gpu;
    else if (sscanf(line, "process %d %u %95s %95s", &process.gpu, &process.pid, used, kind) == 4
             && machine->process_count < MOST_PROCESSES) {
        process.used = strcmp(used, "-") ? strtoull(used, NULL, 10) : NOT_TOLD;
        process.is_mps = !strcmp(kind, "mps");
        machine->processes[machine->process_count++] = process;
    } else if (sscanf(line, "lost %d", &number) == 1 && 0 <= number && number < machine->gpu_count)
        machine->gpus[number].is_lost = 1;
    else if (sscanf(line, "peers %d %d", &number, &other) == 2 && 0 <= number && number < machine->gpu_count
             && 0 <= other && other < machine->gpu_count)
        machine->peers[number][other] = machine->peers[other][number] = 1;
    else {
        fprintf(stderr, "STAND_IN_GPUS has a line that tells nothing: %s\n", line);
        abort();
    }
}

static void read_machine(struct machine *machine)
{
    const char *path = getenv("STAND_IN_GPUS");
    char line[4 * TEXT];
    memset(machine, 0, sizeof *machine);
    if (!path) {
        read_line(machine, "gpu GPU-00000000-0000-4000-8000-000000000001 8589934592 0 Stand-in");
        return;
    }
    FILE *file = fopen(path, "re");
    if (!file) {
        perror(path);
        abort();
    }
    while (fgets(line, sizeof line, file)) read_line(machine, line);
    fclose(file);
}
