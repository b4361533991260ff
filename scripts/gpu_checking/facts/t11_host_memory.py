"""Shared host memory from which several processes copy to the GPU."""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .. import torch_side
from ..check import Check
from ..children import Child, Link
from ..units import GIB

SIZE_BYTES = GIB
#: cudaHostRegisterPortable: pinned for every context of the process.
PORTABLE = 1


def check(check: Check) -> None:
    """Two processes can pin one memfd, and copy from it to the GPU as fast as from memory that torch pinned."""
    memory = os.memfd_create("gpu-check", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, SIZE_BYTES)
    # Pages that are cut off under a registration would end its users with SIGBUS.
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    with ExitStack() as stack:
        workers = [stack.enter_context(Child(copy, number)) for number in range(2)]
        for number, worker in enumerate(workers):
            worker.send([memory])
            check.told(f"process {number + 1} registers the memfd, and torch sees it pinned", worker)
        alone = [worker.ask(go=True).values for worker in workers]
        check.claim("each copies what the other's mapping holds too", all(one["holds"] for one in alone))
        registered, pinned = (max(one[key] for one in alone) for key in ("registered", "pinned"))
        check.claim(
            "at 0.95 of the speed of torch's pinned memory", registered >= 0.95 * pinned,
            f"{registered:.1f} against {pinned:.1f} GB/s",
        )  # fmt: skip
        for worker in workers:
            worker.send(go=True)
        both = [worker.receive().values for worker in workers]
        together = sum(one["registered"] for one in both)
        check.claim("copies at once are right", all(one["holds"] for one in both))
        check.claim("... and together as fast as one", together >= 0.85 * registered, f"{together:.1f} GB/s")
        check.figure("host to device, torch's pinned memory, GB/s", pinned)
        check.figure("host to device, registered memfd, GB/s", registered)
        check.figure("host to device, two processes at once, GB/s", together)
        check.figure("host to device, pageable memfd, GB/s", max(one["pageable"] for one in alone))
        for worker in workers:
            check.told("it can be given up again", worker)
    os.close(memory)
    setting = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    check.figure("huge pages for shared memory", setting.read_text().strip() if setting.exists() else "no setting")
    with Child(register_huge) as worker:
        check.told("a memfd of huge pages is pinned faster", worker)


def copy(link: Link, number: int) -> None:
    """Register, and copy to the GPU whenever told."""
    import torch

    device = torch_side.start()
    mapped = mmap.mmap(link.receive().fds[0], SIZE_BYTES)
    host = torch.frombuffer(mapped, dtype=torch.uint8)
    started_at = time.perf_counter()
    host[number::4096] = (
        number + 1
    )  # every page is there before it is pinned, and each process writes its own bytes
    touched_at = time.perf_counter()
    pageable = torch.empty(SIZE_BYTES, dtype=torch.uint8, device=device)
    pageable_gb_s = speed_gb_s(pageable, host)
    begun_at = time.perf_counter()
    code = int(torch.cuda.cudart().cudaHostRegister(host.data_ptr(), SIZE_BYTES, PORTABLE))
    ended_at = time.perf_counter()
    link.send(
        holds=code == 0 and host.is_pinned(),
        seen=f"code {code}, pinned: {host.is_pinned()}",
        figures={
            f"touch {SIZE_BYTES / GIB:g} GiB, process {number + 1}, ms": (touched_at - started_at) * 1e3,
            f"register {SIZE_BYTES / GIB:g} GiB, process {number + 1}, ms": (ended_at - begun_at) * 1e3,
        },
    )
    own = torch.empty(SIZE_BYTES, dtype=torch.uint8, pin_memory=True)
    on_device = pageable
    for _ in range(2):
        link.receive()
        registered_gb_s, pinned_gb_s = speed_gb_s(on_device, host), speed_gb_s(on_device, own)
        on_device.zero_()
        on_device.copy_(host, non_blocking=True)
        torch.cuda.synchronize()
        is_right = bool((on_device[0::4096] == 1).all()) and bool((on_device[1::4096] == 2).all())
        link.send(holds=is_right, registered=registered_gb_s, pinned=pinned_gb_s, pageable=pageable_gb_s)
    code = int(torch.cuda.cudart().cudaHostUnregister(host.data_ptr()))
    link.send(holds=code == 0 and not host.is_pinned(), seen=f"code {code}")


def speed_gb_s(target: Any, source: Any) -> float:
    """Return how fast a copy is, from the median of several."""
    return target.nbytes / torch_side.median_ms(lambda: target.copy_(source, non_blocking=True), 6, 1) / 1e6


def register_huge(link: Link) -> None:
    """Compare the registration of a memfd with and without huge pages."""
    import torch

    torch_side.start()
    took_ms = {}
    for is_huge in (False, True):
        memory = os.memfd_create("gpu-check")
        os.ftruncate(memory, SIZE_BYTES)
        mapped = mmap.mmap(memory, SIZE_BYTES)
        if is_huge:
            mapped.madvise(mmap.MADV_HUGEPAGE)
        host = torch.frombuffer(mapped, dtype=torch.uint8)
        host.fill_(1)
        started_at = time.perf_counter()
        code = int(torch.cuda.cudart().cudaHostRegister(host.data_ptr(), SIZE_BYTES, PORTABLE))
        took_ms[is_huge] = (time.perf_counter() - started_at) * 1e3
        huge_kib = sum(int(line.split()[1]) for line in Path("/proc/self/smaps").read_text().splitlines()
                       if line.startswith("ShmemPmdMapped"))  # fmt: skip
        torch.cuda.cudart().cudaHostUnregister(host.data_ptr())
        if code:
            link.send(holds=False, seen=f"cudaHostRegister: code {code}")
            return
    if not huge_kib:
        link.send(untried="the kernel gave no huge pages")
        return
    link.send(
        holds=took_ms[True] < took_ms[False],
        seen=f"{took_ms[True]:.0f} against {took_ms[False]:.0f} ms, {huge_kib / 1024:.0f} MiB in huge pages",
        figures={"register 1 GiB of 4 KiB pages, ms": took_ms[False], "with MADV_HUGEPAGE, ms": took_ms[True]},
    )
