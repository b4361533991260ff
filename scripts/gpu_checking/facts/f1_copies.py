"""How fast bytes move between host and device, and on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import torch_side
from ..check import Check
from ..children import Child, Link
from ..units import GIB, MIB

if TYPE_CHECKING:
    import torch


def check(check: Check) -> None:
    """So fast bytes move between host and device and on the device: the floor of loading and of transfers."""
    with Child(measure) as worker:
        for name, value in worker.receive()["figures"].items():
            check.figure(name, value)


def measure(link: Link) -> None:
    """Copy, one direction after the other; then while something is computed."""
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
    link.send(figures=figures | beside_computing(device))


def beside_computing(device: torch.device) -> dict[str, float]:
    """Copy 4 MiB from pinned memory on a stream of its own while the GPU computes some milliseconds."""
    import torch

    square = torch.ones(4096, 4096, device=device)
    product = torch.empty_like(square)
    host = torch.empty(4 * MIB, dtype=torch.uint8, pin_memory=True).fill_(1)
    there = torch.empty(4 * MIB, dtype=torch.uint8, device=device)
    stream = torch.cuda.Stream(device)

    def compute() -> None:
        for _ in range(4):
            torch.mm(square, square, out=product)

    def copy() -> None:
        with torch.cuda.stream(stream):
            there.copy_(host, non_blocking=True)

    def both() -> None:
        copy()
        compute()
        torch.cuda.current_stream(device).wait_stream(stream)

    computing_ms = torch_side.median_ms(compute)
    copying_ms = torch_side.median_ms(lambda: there.copy_(host, non_blocking=True))
    return {
        "computing and copying 4 MiB to the device, one after the other, ms": computing_ms + copying_ms,
        "the same, on two streams, ms": torch_side.median_ms(both),
    }
