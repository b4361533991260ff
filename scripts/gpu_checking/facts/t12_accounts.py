"""Whom NVML charges for memory that one process made and others map."""

from __future__ import annotations

import os

from .. import torch_side, vmm
from ..check import Check
from ..children import Child, Link
from ..holder import give
from ..nvml import Gpu
from ..units import GIB, MIB


def check(check: Check) -> None:
    """NVML counts shared memory once on the device; what it says of single processes is no account of it."""
    gpu = Gpu()
    with Child(work, False) as plain, Child(work, True) as first, Child(work, True) as second:
        for worker in (plain, first, second):
            worker.receive()  # each has a context now
        vmm.start()
        without = gpu.settled_free_bytes()
        listed_without = gpu.processes()
        region = vmm.create(2 * GIB)
        made = without - gpu.settled_free_bytes()
        check.claim("the device counts it once it is made", abs(made - 2 * GIB) < vmm.SLACK_BYTES, mib(made))
        for worker in (first, second):
            give(worker, region)
            worker.receive()
        mapped = without - gpu.settled_free_bytes()
        check.claim("two who map it add less than 1 % of it", mapped - made < 0.01 * 2 * GIB, mib(mapped - made))
        listed = gpu.processes()
        pids = {"a worker without it": plain.pid, "the first who maps it": first.pid,
                "the second who maps it": second.pid, "who made it": os.getpid()}  # fmt: skip
        for name, pid in pids.items():
            check.figure(f"{name}, MiB by NVML", mib(listed[pid]) if pid in listed else "not listed")
        if not {first.pid, second.pid} <= set(listed):
            check.untried("process ids are those of this namespace", f"NVML lists {sorted(listed)}")
            return
        charged = [(listed[one] or 0) - (listed_without.get(one) or 0) for one in (first.pid, second.pid)]
        check.figure("charged to those who map it, MiB", ", ".join(mib(one) for one in charged))
        total = sum(value or 0 for value in listed.values())
        check.figure("sum over processes, MiB", total / MIB)
        check.figure("used on the device, MiB", gpu.used_bytes() / MIB)
        check.claim("who made it without a context is not listed", os.getpid() not in listed)
        check.claim(
            "the sum over processes is at most what is used", total <= gpu.used_bytes() + vmm.SLACK_BYTES,
            f"{mib(total)} against {mib(gpu.used_bytes())}",
        )  # fmt: skip


def mib(size_bytes: int | None) -> str:
    """Write a size down."""
    return "unknown" if size_bytes is None else f"{size_bytes / MIB:.0f} MiB"


def work(link: Link, maps: bool) -> None:
    """Have a context, and map a region if told; keep both until the link is closed."""
    torch_side.start()
    link.send(ready=True)
    if maps:
        vmm.start()
        vmm.map_fd(link.receive(120.0).fds[0], 2 * GIB)
        link.send(mapped=True)
    try:
        link.receive(120.0)
    except EOFError:
        return
