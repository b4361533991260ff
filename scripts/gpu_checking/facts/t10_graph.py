"""CUDA graphs whose memory is a slot."""

from __future__ import annotations

from typing import Any

from .. import slots, torch_side, vmm
from ..check import Check
from ..children import Child, Link
from ..units import MIB

SLOT_BYTES = 256 * MIB


def check(check: Check) -> None:
    """A graph captured in a slot's pool replays, also after other memory was put behind the same addresses."""
    with Child(work) as worker:
        check.told("a graph is captured into the slot", worker)
        check.told("a replay gives what the model gives", worker)
        check.told("other memory can be put behind the slot's addresses", worker)
        check.told("a replay on the other memory is right", worker)


def work(link: Link) -> None:
    """Capture, replay, put other memory there, replay."""
    import torch

    from ..models import encoder

    device = torch_side.start()
    first, address = vmm.make_here(SLOT_BYTES)
    slot = slots.PythonSlot(address, SLOT_BYTES)
    pool = slots.pool_in(slot)
    model = encoder(device)
    given = torch.randn(4, 64, 384, device=device, dtype=torch.bfloat16)
    with torch.inference_mode():
        side = torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            for _ in range(3):
                model(given)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool.id, stream=side):
            output = model(given)
        link.send(
            holds=slots.contains(slot, output),
            seen=f"{slot.allocated} segments were asked for while capturing",
            figures={"segments asked for while capturing": slot.allocated},
        )
        link.send(**replay(graph, model, given, output, device))
        torch.cuda.synchronize()  # unmapping does not wait for kernels that use the memory
        vmm.take_away(address, first.size_bytes)
        first.release()
        other = vmm.create(SLOT_BYTES)
        vmm.put(address, other.size_bytes, other)
        # Nothing of the first is left, and no zeros: read as bfloat16, all of it is NaN.
        torch_side.tensor_at(address, other.size_bytes, device).fill_(0xFF)
        torch.cuda.synchronize()
        link.send(holds=True)
        link.send(**replay(graph, model, given, output, device))


def replay(graph: Any, model: Any, given: Any, output: Any, device: Any) -> dict[str, Any]:
    """Replay on new input; return whether the output is what the model itself gives for it."""
    import torch

    given.copy_(torch.randn(given.shape, device=device))
    wanted = model(given).float()
    torch.cuda.synchronize()
    graph.replay()
    torch.cuda.synchronize()
    difference = float((output.float() - wanted).abs().max())
    # Other kernels may be chosen for a side stream's workspace; bfloat16 keeps 8 bits.
    return {"holds": difference < 0.05, "seen": f"largest difference {difference:g}"}
