"""Importing and mapping in a process that runs torch: where, and in which thread."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from .. import torch_side, vmm
from ..check import Check
from ..children import Child, Link
from ..holder import give
from ..units import MIB

#: What a worker does, in words -> its name.
CASES = {
    "in the main thread, after torch has started": "after",
    "in the main thread, before torch has started": "before",
    "in a second thread, with the primary context made current": "thread with context",
    "in a second thread, without a current context": "thread without context",
}


def check(check: Check) -> None:
    """A worker can import and map memory by cuda.bindings before or after torch starts, and in any thread."""
    vmm.start()
    with ExitStack() as stack:
        workers = {text: stack.enter_context(Child(work, case)) for text, case in CASES.items()}
        for worker in workers.values():
            region = vmm.create(64 * MIB)
            give(worker, region, size_bytes=region.size_bytes)
            region.release()
        for text, worker in workers.items():
            check.told(f"mapped and used {text}", worker)


def work(link: Link, case: str) -> None:
    """Map what is received, write all of it by torch, and read it back."""
    message = link.receive()
    size_bytes, fd = message["size_bytes"], message.fds[0]
    if case == "before":
        vmm.start()
        address, context, map_ms = map_timed(fd, size_bytes)
        torch_side.start()
        seen = use(address, size_bytes)
    else:
        torch_side.start()
        vmm.start()
        if case == "after":
            address, context, map_ms = map_timed(fd, size_bytes)
            seen = use(address, size_bytes)
        else:
            with ThreadPoolExecutor(1) as pool:
                if case == "thread with context":
                    pool.submit(vmm.use_primary_context).result()
                address, context, map_ms = pool.submit(map_timed, fd, size_bytes).result()
                seen = pool.submit(use, address, size_bytes).result()
    seen |= {"main thread reads the same": torch_side.shows_pattern(_tensor(address, size_bytes), seed=2)}
    link.send(
        holds=all(seen.values()),
        seen=f"context while mapping: {context:#x}; wrong: {[name for name, right in seen.items() if not right]}",
        figures={f"import and map, {case}, ms": map_ms},
    )


def map_timed(fd: int, size_bytes: int) -> tuple[int, int, float]:
    """Map; return the address, the context that was current, and the milliseconds."""
    context = vmm.current_context()
    started_at = time.perf_counter()
    return vmm.map_fd(fd, size_bytes), context, (time.perf_counter() - started_at) * 1e3


def use(address: int, size_bytes: int) -> dict[str, bool]:
    """Write and read; return what was as it ought to be."""
    tensor = _tensor(address, size_bytes)
    tensor.fill_(7)
    filled = int(tensor.sum(dtype=_torch().int64)) == 7 * size_bytes
    torch_side.write_pattern(tensor, seed=2)
    return {
        "the address is kept": tensor.data_ptr() == address,
        "a fill is read back": filled,
        "a pattern is read back": torch_side.shows_pattern(tensor, seed=2),
    }


def _tensor(address: int, size_bytes: int) -> Any:
    return torch_side.tensor_at(address, size_bytes, torch_side.gpu())


def _torch() -> Any:
    import torch

    return torch
