"""Weights that are mapped for reading only."""

from __future__ import annotations

import time

from .. import kernel_log, torch_side, vmm
from ..check import Check
from ..children import Child, Link
from ..holder import give
from ..units import MIB

SIZE_BYTES = 32 * MIB
SIDE = 2048


def check(check: Check) -> None:
    """Weights mapped for reading serve kernels; a write to them ends its own process's context and no other's."""
    vmm.start()
    region = vmm.create(SIZE_BYTES)
    mark = kernel_log.mark()
    with Child(keep) as sibling, Child(read_then_write) as writer, Child(lift) as lifter:
        give(sibling, region, size_bytes=SIZE_BYTES)
        check.told("a sibling maps the memory for writing, and fills it", sibling)
        give(writer, region, size_bytes=SIZE_BYTES)
        check.told("the driver says that the mapping is for reading only", writer)
        check.told("a product and a sum of what is mapped for reading are right", writer)
        check.told("a write raises an error", writer)
        check.told("the writer's context is of no use after it", writer)
        with check.part("the sibling goes on to compute, and nothing was written"):
            answer = sibling.ask(20.0)
            check.claim("the sibling goes on to compute, and nothing was written", answer["holds"], answer["seen"])
        give(lifter, region, size_bytes=SIZE_BYTES)
        check.told("an importer can grant itself the right to write: it guards against mistakes alone", lifter)
        with check.part("the others see what it wrote"):
            answer = sibling.ask(20.0)
            check.claim("the others see what it wrote", answer["changed"] > 0, answer["seen"])
    with check.part("the kernel's log has Xid 31 for the write"):
        said = kernel_log.xids_since(mark)
        check.claim("the kernel's log has Xid 31 for the write", any("): 31" in line for line in said), said)


def keep(link: Link) -> None:
    """Fill the memory with ones of bfloat16; whenever asked, compute and say whether they are all still there."""
    import torch

    device = torch_side.start()
    message = link.receive()
    address = vmm.map_fd(message.fds[0], message["size_bytes"])
    ones = torch_side.tensor_at(address, message["size_bytes"], device).view(torch.bfloat16)
    ones.fill_(1)
    torch.cuda.synchronize()
    link.send(holds=vmm.is_writable(address))
    while True:
        link.receive(120.0)
        own = torch.full((SIDE, SIDE), 2.0, device=device)
        computes = bool((own @ own == 4 * SIDE).all())
        changed = int((ones != 1).sum())
        seen = f"computes: {computes}, changed values: {changed}"
        link.send(holds=computes and not changed, changed=changed, seen=seen)


def read_then_write(link: Link) -> None:
    """Map for reading; read, write, and see what the write does."""
    import torch

    device = torch_side.start()
    message = link.receive()
    address = vmm.map_fd(message.fds[0], message["size_bytes"], is_writable=False)
    ones = torch_side.tensor_at(address, message["size_bytes"], device).view(torch.bfloat16)
    link.send(holds=not vmm.is_writable(address))
    matrix = ones[: SIDE * SIDE].view(SIDE, SIDE)
    is_right = bool((matrix @ matrix == SIDE).all()) and float(ones.float().sum()) == ones.numel()
    link.send(holds=is_right)
    started_at = time.perf_counter()
    try:
        ones.add_(1)
        torch.cuda.synchronize()
        link.send(holds=False, seen="no error")
    except RuntimeError as error:
        figures = {"from the write to its error, ms": (time.perf_counter() - started_at) * 1e3}
        link.send(holds=True, seen=f"{type(error).__name__}: {error}"[:300], figures=figures)
    try:
        torch.ones(8, device=device).sum().item()
        link.send(holds=False, seen="a later kernel ran")
    except RuntimeError as error:
        link.send(holds=True, seen=f"{type(error).__name__}: {error}"[:120])


def lift(link: Link) -> None:
    """Map for reading, take the right to write, and write."""
    device = torch_side.start()
    message = link.receive()
    size_bytes = message["size_bytes"]
    address = vmm.map_fd(message.fds[0], size_bytes, is_writable=False)
    vmm.allow(address, size_bytes, is_writable=True)
    tensor = torch_side.tensor_at(address, size_bytes, device)
    torch_side.write_pattern(tensor, seed=3)
    link.send(holds=torch_side.shows_pattern(tensor, seed=3))
