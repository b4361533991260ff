"""Torch's allocator on top of a slot."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from .. import slots, torch_side, vmm
from ..check import Check
from ..children import Child, Link
from ..units import MIB

LARGE_BYTES = 512 * MIB
SMALL_BLOCKS = 64
SLOT_BYTES = 640 * MIB
#: Live at once: so few and small that a gap for one more is left, however they lie.
LIVE, MOST_BYTES = 8, 16 * MIB
ALLOCATIONS = 1000

EXPANDABLE = "expandable_segments:True"
#: How a pool gets its memory -> arguments and environment of the worker.
CASES: dict[str, tuple[bool, dict[str, str]]] = {
    "called back in Python": (False, {}),
    "compiled": (True, {}),
    "compiled, expandable segments on": (
        True, {"PYTORCH_ALLOC_CONF": EXPANDABLE, "PYTORCH_CUDA_ALLOC_CONF": EXPANDABLE},
    ),
}  # fmt: skip


def check(check: Check) -> None:
    """A MemPool on our functions allocates in a slot, runs out of memory cleanly, and once primed asks no more."""
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Child(work, is_compiled, environment=environment))
            for name, (is_compiled, environment) in CASES.items()
        }
        for name, worker in workers.items():
            with check.part(f"{name}: the experiment ends"):
                while True:
                    values = worker.receive(40.0).values
                    if "end" in values:
                        break
                    check.claim(f"{name}: {values['text']}", values["holds"], values["seen"])


def work(link: Link, is_compiled: bool) -> None:
    """Try one sentence after the other."""
    import torch

    device = torch_side.start()
    _, address = vmm.make_here(SLOT_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        slot = (slots.CompiledSlot(address, SLOT_BYTES, folder) if is_compiled
                else slots.PythonSlot(address, SLOT_BYTES))  # fmt: skip

    def say(text: str, holds: object, seen: object = "") -> None:
        link.send(text=text, holds=bool(holds), seen=str(seen))

    say("the driver calls a mapping device memory", is_device_memory(address))
    say("__cuda_array_interface__ keeps the address", array_interface_address(address, device) == address)
    pool = slots.pool_in(slot)
    with slots.inside(pool):
        first = torch.empty(3 * MIB, dtype=torch.uint8, device=device).fill_(9)
    say("a tensor made in the pool lies in the slot", slots.contains(slot, first), hex(first.data_ptr()))
    say("it can be used", int(first.sum(dtype=torch.int64)) == 9 * 3 * MIB)
    outside = torch.empty(3 * MIB, dtype=torch.uint8, device=device)
    say("a tensor made outside it does not", not slots.contains(slot, outside))
    del first
    say("what does not fit raises OutOfMemoryError", *runs_out(slot, pool, device))
    with slots.inside(pool):
        smaller = torch.empty(30 * MIB, dtype=torch.uint8, device=device)
    say("a smaller one works after it", slots.contains(slot, smaller))
    del smaller
    say("nothing is live then", slots.live_bytes(pool) == 0, slots.live_bytes(pool))
    del pool
    torch.cuda.empty_cache()
    say(
        "a deleted pool gives back every segment",
        slot.freed == slot.allocated,
        f"{slot.freed} of {slot.allocated}",
    )

    pool = slots.pool_in(slot)
    slots.prime(pool, device, LARGE_BYTES, SMALL_BLOCKS)
    before = slot.allocated + slot.refused
    with slots.inside(pool):
        lies_in = allocate_at_random(lambda size: torch.empty(size, dtype=torch.uint8, device=device), slot)
    calls = slot.allocated + slot.refused - before
    say(f"a primed pool asks for nothing in {ALLOCATIONS} allocations", calls == 0, f"{calls} calls")
    say("all of them lie in the slot", lies_in)
    say("nothing is live in the end", slots.live_bytes(pool) == 0, slots.live_bytes(pool))
    link.send(end=True)


def is_device_memory(address: int) -> bool:
    """Ask the driver what an address is."""
    from cuda.bindings import driver

    wanted = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE
    return int(vmm.call(driver.cuPointerGetAttribute, wanted, address)) == int(
        driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
    )


def array_interface_address(address: int, device: Any) -> int:
    """Return where the tensor lies that torch makes of an object with the array interface."""
    import torch

    class Mapped:
        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            data = {"data": (address, False), "shape": (MIB,), "strides": None, "typestr": "|u1"}
            return {"version": 3, "stream": None, **data}

    return torch.as_tensor(Mapped(), device=device).data_ptr()


def runs_out(slot: Any, pool: Any, device: Any) -> tuple[bool, str]:
    """Ask for more than a slot has; return whether that raised what it should, and how often it was asked."""
    import torch

    refused = slot.refused
    try:
        with slots.inside(pool):
            torch.empty(2 * SLOT_BYTES, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError:
        return True, f"the slot was asked {slot.refused - refused} times"
    return False, "it was allocated"


def allocate_at_random(make: Callable[[int], Any], slot: Any) -> bool:
    """Make and drop tensors of all sizes; return whether all lay in the slot."""
    dice, live, lies_in = random.Random(7), [], True
    for _ in range(ALLOCATIONS):
        size_bytes = dice.randrange(1, MIB) if dice.random() < 0.5 else dice.randrange(MIB, MOST_BYTES)
        if len(live) == LIVE:
            live.pop(dice.randrange(LIVE))
        live.append(make(size_bytes))
        lies_in = lies_in and slots.contains(slot, live[-1])
    return lies_in
