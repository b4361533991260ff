"""A stream with a priority, on which a thread makes all its calls."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from .. import torch_side, vmm
from ..check import Check
from ..children import Child, Link

if TYPE_CHECKING:
    import torch

SIZE = 4096
ROUNDS = 20


def check(check: Check) -> None:
    """A stream's priority can be changed, and a thread can make all its calls on one in the usual order."""
    with Child(work) as worker:
        check.told("there is more than one priority", worker)
        check.told("the driver changes the priority of a stream", worker)
        check.told("torch makes this thread's calls on it", worker)
        check.told("the default stream of another thread comes in its turn", worker)


def work(link: Link) -> None:
    """Make one, change it, and compute on it."""
    import torch
    from cuda.bindings import driver

    device = torch_side.start()
    vmm.start()
    least, greatest = vmm.call(driver.cuCtxGetStreamPriorityRange)
    link.send(holds=greatest < least, seen=f"from {least} to {greatest}")
    stream = vmm.call(driver.cuStreamCreateWithPriority, int(driver.CUstream_flags.CU_STREAM_DEFAULT), least)
    link.send(**changed(stream, greatest))
    torch.cuda.set_stream(torch.cuda.ExternalStream(int(stream), device))
    is_current = torch.cuda.current_stream(device).cuda_stream == int(stream)
    link.send(holds=is_current and bool((torch.ones(8, device=device) + 1 == 2).all()))
    link.send(holds=all(is_in_order(device) for _ in range(ROUNDS)))


def changed(stream: Any, level: int) -> dict[str, Any]:
    """Change a stream's priority; tell what the driver says it is then."""
    from cuda.bindings import driver

    value = driver.CUstreamAttrValue()
    value.priority = level
    kind = driver.CUstreamAttrID.CU_LAUNCH_ATTRIBUTE_PRIORITY
    vmm.call(driver.cuStreamSetAttribute, stream, kind, value)
    now = vmm.call(driver.cuStreamGetPriority, stream)
    return {"holds": now == level, "seen": f"{now}, and {level} was asked for"}


def is_in_order(device: torch.device) -> bool:
    """Write here, copy in a thread on the default stream, and write over it here, with nothing waited for."""
    import torch

    square = torch.full((SIZE, SIZE), 1 / SIZE, device=device)
    written = torch.zeros(SIZE, SIZE, device=device)
    copies: list[torch.Tensor] = []
    torch.cuda.synchronize()
    for _ in range(4):
        torch.mm(square, square, out=written)
    thread = threading.Thread(target=lambda: copies.append(written.clone()))
    thread.start()
    thread.join()
    written.zero_()
    torch.cuda.synchronize()
    return bool((copies[0] > 0).all())
