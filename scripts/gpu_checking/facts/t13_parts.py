"""Parts of a region, and regions at chosen addresses."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from .. import torch_side, vmm
from ..check import Check
from ..children import Child, Link
from ..holder import give
from ..units import GIB, MIB

#: Addresses far from what drivers choose by themselves, below 2^47.
HINTS = (0x6000_0000_0000, 0x4000_0000_0000, 0x1000_0000_0000)
WHOLE_BYTES, PART_BYTES, OFFSET_BYTES = 8 * MIB, 4 * MIB, 2 * MIB


def check(check: Check) -> None:
    """A part of a region can be mapped from an offset, and two processes get the same address if they ask."""
    vmm.start()
    region = vmm.create(WHOLE_BYTES)
    with ExitStack() as stack:
        workers = [stack.enter_context(Child(work)) for _ in range(2)]
        for worker in workers:
            give(worker, region)
        answers = [worker.receive().values for worker in workers]
        for hint in HINTS:
            got = [answer["reserved"][str(hint)] for answer in answers]
            check.claim(f"both reserve 1 GiB at {hint:#x}", got == [hint, hint], [f"{one:#x}" for one in got])
        free = [answer["reserved"]["0"] for answer in answers]
        check.figure("without a hint they get", " and ".join(f"{one:#x}" for one in free))
        for number, worker in enumerate(workers, 1):
            check.told(f"process {number} maps a part from an offset, and finds there what the whole has", worker)
            check.told(f"process {number} maps two regions back to back as one range", worker)


def work(link: Link) -> None:
    """Reserve by hints; map a part; map two regions in a row."""
    device = torch_side.start()
    vmm.start()
    region = vmm.adopt(link.receive().fds[0], WHOLE_BYTES)
    link.send(reserved={str(hint): reserved_at(hint) for hint in (0, *HINTS)})
    link.send(**map_part(region, device))
    link.send(**map_in_a_row(device))


def reserved_at(hint: int) -> int:
    """Reserve with a hint, give it up again, and return where it was; 0 if the driver refuses."""
    try:
        address = vmm.reserve(GIB, hint)
    except vmm.DriverError:
        return 0
    vmm.free_address(address, GIB)
    return address


def map_part(region: vmm.Region, device: Any) -> dict[str, Any]:
    """Map the whole and a part of it; write through one, read through the other."""
    import torch

    whole = vmm.reserve(WHOLE_BYTES)
    vmm.put(whole, WHOLE_BYTES, region)
    bytes_of_whole = torch_side.tensor_at(whole, WHOLE_BYTES, device)
    # Both processes write the same, so it does not matter who comes first.
    torch_side.write_pattern(bytes_of_whole, seed=5)
    part = vmm.reserve(PART_BYTES)
    vmm.put(part, PART_BYTES, region, offset_bytes=OFFSET_BYTES)
    bytes_of_part = torch_side.tensor_at(part, PART_BYTES, device)
    is_same = torch.equal(bytes_of_part, bytes_of_whole[OFFSET_BYTES : OFFSET_BYTES + PART_BYTES])
    return {"holds": is_same}


def map_in_a_row(device: Any) -> dict[str, Any]:
    """Put two regions behind one reservation, and use them as one."""
    regions = [vmm.create(PART_BYTES) for _ in range(2)]
    address = vmm.reserve(2 * PART_BYTES)
    for number, region in enumerate(regions):
        vmm.put(address + number * PART_BYTES, PART_BYTES, region)
    both = torch_side.tensor_at(address, 2 * PART_BYTES, device)
    torch_side.write_pattern(both, seed=6)
    is_right = torch_side.shows_pattern(both, seed=6)
    for number in range(2):
        vmm.take_away(address + number * PART_BYTES, PART_BYTES)
    vmm.free_address(address, 2 * PART_BYTES)
    return {"holds": is_right}
