"""One GPU that computes with the memory of another, on which its process has no context."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .. import torch_side, vmm
from ..check import Check, Untried
from ..children import Child, Link
from ..holder import give_on
from ..units import MIB

if TYPE_CHECKING:
    import torch

SIZE_BYTES = 256 * MIB
#: The one that computes, and the one whose memory it uses.
OWN, OTHER = 0, 1


def check(check: Check) -> None:
    """A process can map memory of another GPU through its descriptor, and compute with it on its own."""
    # Others are narrowed to the first GPU; where there is no second one, this shows the first alone.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1")
    environment = {"CUDA_VISIBLE_DEVICES": "0,1" if visible == "0" else visible}
    with Child(hold_both, environment=environment) as holder:
        answer = holder.receive()
        if "untried" in answer.values:
            raise Untried(answer["untried"])
        with Child(work, environment=environment) as worker:
            worker.send(answer.fds)
            for fd in answer.fds:
                os.close(fd)
            check.told("it maps that memory and finds there what it has written", worker)
            check.told("it may be mapped read-only as well", worker)
            check.told("its process has no context on the other GPU", worker)
            check.told("products with matrices in it are those with matrices in its own", worker)


def hold_both(link: Link) -> None:
    """Make memory on both, as a supervisor does, and send its descriptors; keep it until told to end."""
    vmm.start()
    if reason := vmm.why_no_peers(OWN, OTHER):
        link.send(untried=reason)
        return
    give_on(link, {OWN: SIZE_BYTES, OTHER: SIZE_BYTES})
    link.receive(timeout_s=600.0)  # what was made lives meanwhile


def work(link: Link) -> None:
    """Use both on the first GPU."""
    device = torch_side.start()
    vmm.start()
    own_fd, other_fd = link.receive().fds
    read_only = os.dup(other_fd)
    other = torch_side.tensor_at(vmm.map_fd(other_fd, SIZE_BYTES), SIZE_BYTES, device)
    own = torch_side.tensor_at(vmm.map_fd(own_fd, SIZE_BYTES), SIZE_BYTES, device)
    torch_side.write_pattern(other, seed=7)
    link.send(holds=torch_side.shows_pattern(other, seed=7))
    again = torch_side.tensor_at(vmm.map_fd(read_only, SIZE_BYTES, is_writable=False), SIZE_BYTES, device)
    link.send(holds=torch_side.shows_pattern(again, seed=7))
    link.send(holds=not vmm.has_context(OTHER))
    link.send(**products(own, other))


def products(own: torch.Tensor, other: torch.Tensor) -> dict[str, object]:
    """Multiply matrices that lie in either memory by the same one; tell how long that takes."""
    import torch

    width = 1024
    with torch.inference_mode():
        matrices = [one.view(torch.float32)[: width * width].view(width, width) for one in (own, other)]
        matrices[0].copy_(torch.arange(width * width, device=own.device).view(width, width) % 7)
        matrices[1].copy_(matrices[0])
        results = [one @ one for one in matrices]
        is_same = bool((results[0] == results[1]).all())
        sums = {"own": own.view(torch.float32), "other": other.view(torch.float32)}
        figures = {
            f"read from the {name} memory, GB/s": one.nbytes / torch_side.median_ms(one.sum) / 1e6
            for name, one in sums.items()
        }
    return {"holds": is_same, "figures": figures}
