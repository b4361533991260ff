"""Device memory made by a process without a context."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from .. import vmm
from ..check import Check
from ..nvml import Gpu
from ..units import GIB, MIB


def check(check: Check) -> None:
    """A process without a CUDA context can make and export device memory, and takes no more than that memory."""
    gpu = Gpu()
    before = gpu.settled_free_bytes()
    timed(check, "cuInit, ms", vmm.start)
    check.figure("cuInit takes, MiB", (before - gpu.settled_free_bytes()) / MIB)
    for name, value in vmm.device_attributes().items():
        if "RDMA" in name:  # wanted for storage alone
            check.figure(name, value)
        else:
            check.claim(f"{name} is 1", value == 1, value)
    check.figure("granularity, MiB", vmm.granularity_bytes() / MIB)
    initialised = gpu.settled_free_bytes()
    region = timed(check, "create 1 GiB, ms", lambda: vmm.create(GIB))
    fd = timed(check, "export, ms", region.export)
    check.claim("no context is current afterwards", vmm.current_context() == 0, hex(vmm.current_context()))
    taken = initialised - gpu.settled_free_bytes()
    check.claim(
        "free memory drops by what was made, and little more",
        GIB <= taken <= GIB + vmm.SLACK_BYTES,
        f"{taken / MIB:.0f} MiB for {GIB / MIB:.0f}",
    )
    with check.part("NVML does not list the process"):
        listed = gpu.processes()
        check.claim("NVML does not list the process", os.getpid() not in listed, listed)
    timed(check, "release, ms", region.release)
    still = initialised - gpu.settled_free_bytes()
    check.claim("a descriptor alone holds the memory", still >= GIB, f"{still / MIB:.0f} MiB still taken")
    os.close(fd)
    back_ms = gpu.wait_until_free(initialised - vmm.SLACK_BYTES)
    check.claim("it is free once the last descriptor is closed", back_ms is not None)
    if back_ms is not None:
        check.figure("free after the last close, ms", back_ms)
    whole = timed(check, "create 16 GiB, ms", lambda: vmm.create(16 * GIB))
    timed(check, "release 16 GiB, ms", whole.release)
    try:
        vmm.create(1024 * GIB)
        check.claim("more than there is is refused", False, "1 TiB was made")
    except vmm.DriverError as error:
        refused = error.result == "CUDA_ERROR_OUT_OF_MEMORY"
        check.claim("more than there is is refused as out of memory", refused, error.result)


def timed(check: Check, name: str, run: Callable[[], Any]) -> Any:
    """Tell how long something takes; return what it does."""
    started_at = time.perf_counter()
    value = run()
    check.figure(name, (time.perf_counter() - started_at) * 1e3)
    return value
