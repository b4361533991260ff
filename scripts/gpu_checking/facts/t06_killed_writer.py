"""Memory that a killed process was writing to."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from contextlib import ExitStack

from .. import torch_side, vmm
from ..check import Check
from ..children import Child, ChildFailed, Link, is_readable
from ..holder import give
from ..nvml import Gpu
from ..units import GIB, MIB

SIZE_BYTES = 64 * MIB
REPEATS, BATCH = 24, 6
BUDGET_S = 22.0
WATCH_S = 0.15
#: As many rounds over the memory as take 10 to 60 s: longer than any writer lives, and bounded should a kill fail.
ROUNDS = 400_000
PATTERN = 0x5A5A5A5A

#: Writes a pattern over and over; what nvcc 13.0 makes of such a loop, with the names shortened.
PTX = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .entry scribble(.param .u64 base, .param .u64 words, .param .u32 pattern, .param .u32 rounds)
{
  .reg .pred %p<4>;
  .reg .b32 %r<8>;
  .reg .b64 %rd<10>;
  ld.param.u64 %rd1, [base];
  ld.param.u64 %rd2, [words];
  ld.param.u32 %r1, [pattern];
  ld.param.u32 %r2, [rounds];
  cvta.to.global.u64 %rd1, %rd1;
  mov.u32 %r3, %ntid.x;
  mov.u32 %r4, %ctaid.x;
  mov.u32 %r5, %nctaid.x;
  mov.u32 %r6, %tid.x;
  mul.wide.u32 %rd3, %r4, %r3;
  cvt.u64.u32 %rd4, %r6;
  add.s64 %rd3, %rd3, %rd4;
  mul.wide.u32 %rd5, %r5, %r3;
  mov.u32 %r7, 0;
again:
  mov.u64 %rd6, %rd3;
  setp.ge.u64 %p1, %rd6, %rd2;
  @%p1 bra done;
next:
  shl.b64 %rd7, %rd6, 2;
  add.s64 %rd8, %rd1, %rd7;
  st.volatile.global.u32 [%rd8], %r1;
  add.s64 %rd6, %rd6, %rd5;
  setp.lt.u64 %p2, %rd6, %rd2;
  @%p2 bra next;
  add.s32 %r7, %r7, 1;
  setp.lt.u32 %p3, %r7, %r2;
  @%p3 bra again;
done:
  ret;
}
\0"""


def check(check: Check) -> None:
    """Once the pidfd of a killed process is readable, no kernel of it writes, and its memory is free soon."""
    gpu = Gpu()
    vmm.start()
    region = vmm.create(SIZE_BYTES)
    with Child(watch) as watcher:
        give(watcher, region)
        watcher.receive()
        free_bytes = gpu.settled_free_bytes()
        kills_ms: list[float] = []
        backs_ms: list[float | None] = []
        dirty = seen_running = 0
        until = time.monotonic() + BUDGET_S
        while seen_running == len(kills_ms) < REPEATS and time.monotonic() < until:
            # A batch starts at once, and nothing else takes memory while single ones die.
            with ExitStack() as stack:
                writers = [stack.enter_context(Child(write)) for _ in range(BATCH)]
                for writer in writers:
                    give(writer, region)
                for writer in writers:
                    writer.receive()  # ready
                for writer in writers:
                    writer.ask(go=True)
                    seen_running += watcher.ask(look="while it runs")["written"]
                    with_writer = gpu.free_bytes()
                    kills_ms.append(writer.kill())
                    dirty += watcher.ask(look="after its end")["written"]
                    backs_ms.append(gpu.wait_until_free(with_writer + GIB // 2, timeout_s=1.0))
        times = len(kills_ms)
        check.claim(
            "a running writer is seen writing (so the experiment works)", seen_running == times, seen_running
        )
        check.claim("nothing is written after the pidfd", dirty == 0, f"{dirty} of {times} times")
        back = [one for one in backs_ms if one is not None]
        check.claim(
            "the memory of each is back within a second", len(back) == times, f"{len(back)} of {times} times"
        )
        check.figure("writers killed", times)
        check.figure("from SIGKILL to the pidfd, median, ms", statistics.median(kills_ms))
        check.figure("from SIGKILL to the pidfd, longest, ms", max(kills_ms))
        check.figure("from the look after it to its memory back, longest, ms", max(back, default=-1.0))
        check.figure("short of all free in the end, MiB", (free_bytes - gpu.settled_free_bytes()) / MIB)
        early_ms = check.works("the socket of a killed process ends too", gap_ms, region)
        if early_ms is not None:
            check.figure("... earlier than its pidfd tells, ms", early_ms)
        text = "who waits for the memory of a killed process gets it"
        waited_ms = check.works(text, wait_for_memory_ms, gpu, region)
        if waited_ms is not None:
            check.figure("from the pidfd to its memory in a new region, ms", waited_ms)


def gap_ms(region: vmm.Region) -> float:
    """Kill one more writer; return how much earlier the end of its socket is seen than its pidfd."""
    with Child(write) as writer:
        give(writer, region)
        writer.receive()
        writer.ask(go=True)
        os.kill(writer.pid, 9)
        if not is_readable(writer.link.fileno(), 20.0):
            raise ChildFailed("the socket stays open")
        ended_at = time.perf_counter()
        is_readable(writer.pidfd, 20.0)
        return (time.perf_counter() - ended_at) * 1e3


def wait_for_memory_ms(gpu: Gpu, region: vmm.Region) -> float:
    """Take all memory but that of one writer, kill it, and return how long it takes until some can be made."""
    with Child(write) as writer:
        give(writer, region)
        writer.receive()
        taken: list[vmm.Region] = []
        try:
            for size_bytes in (4 * GIB, GIB // 4):
                for _ in range(gpu.free_bytes() // size_bytes):
                    try:
                        taken.append(vmm.create(size_bytes))
                    except vmm.DriverError:
                        break
            writer.kill()
            started_at = time.perf_counter()
            while True:
                try:
                    taken.append(vmm.create(GIB))
                    return (time.perf_counter() - started_at) * 1e3
                except vmm.DriverError:
                    if time.perf_counter() - started_at > 3.0:
                        raise
        finally:
            for one in taken:
                one.release()


def watch(link: Link) -> None:
    """Clear the memory whenever asked, and say whether something was written to it within a moment."""
    import torch

    device = torch_side.start()
    tensor = torch_side.tensor_at(vmm.map_fd(link.receive().fds[0], SIZE_BYTES), SIZE_BYTES, device)
    link.send(ready=True)
    while True:
        look = link.receive(120.0)["look"]
        tensor.zero_()
        torch.cuda.synchronize()
        until, written = time.perf_counter() + (2.0 if look == "while it runs" else WATCH_S), False
        while time.perf_counter() < until and not (written and look == "while it runs"):
            written = bool(tensor.count_nonzero()) or written
        link.send(written=written)


def write(link: Link) -> None:
    """Take memory of its own too, and start a kernel that writes for as long as the process lives."""
    from cuda.bindings import driver

    vmm.start()
    vmm.use_primary_context()
    address = vmm.map_fd(link.receive(120.0).fds[0], SIZE_BYTES)
    module = vmm.call(driver.cuModuleLoadData, PTX)
    function = vmm.call(driver.cuModuleGetFunction, module, b"scribble")
    vmm.call(driver.cuMemAlloc, GIB)
    link.send(ready=True)
    link.receive(120.0)
    values = (address, SIZE_BYTES // 4, PATTERN, ROUNDS)
    kinds = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32)
    vmm.call(driver.cuLaunchKernel, function, 64, 1, 1, 256, 1, 1, 0, 0, (values, kinds), 0)
    link.send(launched=True)
    link.receive(120.0)
