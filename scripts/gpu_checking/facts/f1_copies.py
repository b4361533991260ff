"""How fast bytes move between host and device, and on the device."""

from __future__ import annotations

from .. import torch_side
from ..check import Check
from ..children import Child, Link
from ..units import GIB, MIB


def check(check: Check) -> None:
    """So fast bytes move between host and device and on the device: the floor of loading and of transfers."""
    with Child(measure) as worker:
        for name, value in worker.receive()["figures"].items():
            check.figure(name, value)


def measure(link: Link) -> None:
    """Copy, one direction after the other."""
    import torch

    device = torch_side.start()
    figures = {}
    for size_bytes, name in ((GIB, "1 GiB"), (4 * MIB, "4 MiB"), (64 << 10, "64 KiB")):
        host = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True).fill_(1)
        first, second = (torch.ones(size_bytes, dtype=torch.uint8, device=device) for _ in range(2))
        copies = {
            f"pinned host to device, {name}, GB/s": (first, host, 1),
            f"device to pinned host, {name}, GB/s": (host, first, 1),
            f"device to device, read and written, {name}, GB/s": (first, second, 2),
        }
        for text, (target, source, passes) in copies.items():
            ms = torch_side.median_ms(lambda target=target, source=source: target.copy_(source, non_blocking=True))
            figures[text] = passes * size_bytes / ms / 1e6
    link.send(figures=figures)
