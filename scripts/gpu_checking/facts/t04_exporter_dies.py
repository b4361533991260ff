"""What becomes of mapped memory when the process that made it is killed."""

from __future__ import annotations

import os
from typing import Any

from .. import torch_side, vmm
from ..check import Check
from ..children import Child, Link
from ..holder import hold
from ..nvml import Gpu
from ..units import GIB, MIB


def check(check: Check) -> None:
    """Memory outlives the process that made it for as long as anyone maps it or holds a descriptor, unchanged."""
    gpu = Gpu()
    before = gpu.settled_free_bytes()
    with Child(hold, GIB, GIB) as holder, Child(work) as worker:
        held = holder.receive()
        mapped_fd, kept_fd = held.fds
        check.claim("the process that makes it has no context", held["context"] == 0)
        worker.ask(fds=held.fds, write=True)
        os.close(mapped_fd)  # now the worker's mapping and the holder's handle are all there is of the first
        with_all = gpu.settled_free_bytes()
        check.figure("pidfd of the killed holder, ms", holder.kill())
        given_back = gpu.settled_free_bytes() - with_all
        check.claim(
            "killing it frees nothing", given_back < vmm.SLACK_BYTES, f"{given_back / MIB:.0f} MiB became free"
        )
        answer = worker.ask(write=False)
        check.claim("the worker still reads all of both", answer["right"] == [True, True], answer["right"])
        worker.join()
        # The second half is still held, by a descriptor in this process, which has no context.
        back_ms = gpu.wait_until_free(before - GIB - vmm.SLACK_BYTES)
        check.claim("what only the worker mapped is free once that has ended", back_ms is not None)
        check.figure("free after the worker's end, ms", "never" if back_ms is None else back_ms)
        held_bytes = before - gpu.settled_free_bytes()
        check.claim("what a descriptor holds is not", held_bytes >= GIB, f"{held_bytes / MIB:.0f} MiB taken")
    with check.part("a new worker maps it from that descriptor, unchanged"), Child(work) as heir:
        answer = heir.ask(fds=[kept_fd], write=False)
        check.claim("a new worker maps it from that descriptor, unchanged", answer["right"] == [True])
    os.close(kept_fd)
    back_ms = gpu.wait_until_free(before - vmm.SLACK_BYTES)
    check.claim("all is free after the last descriptor", back_ms is not None, f"{back_ms} ms")


def work(link: Link) -> None:
    """Map regions; write patterns into them, or say whether those are there, until the link is closed."""
    device = torch_side.start()
    tensors: list[tuple[int, Any]] = []
    while True:
        try:
            message = link.receive(120.0)
        except EOFError:
            return
        for fd in message.fds:
            tensor = torch_side.tensor_at(vmm.map_fd(fd, GIB), GIB, device)
            # The last region, which alone outlives its writer, always gets the same seed.
            tensors.append((len(message.fds) - len(tensors), tensor))
        for seed, tensor in tensors:
            if message["write"]:
                torch_side.write_pattern(tensor, seed)
        link.send(right=[torch_side.shows_pattern(tensor, seed) for seed, tensor in tensors])
