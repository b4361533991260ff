"""What a model leaves behind in a pool."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from .. import slots, torch_side, vmm
from ..check import Check
from ..children import Child, Link
from ..units import MIB

SLOT_BYTES = 512 * MIB
CYCLES = 1000


def check(check: Check) -> None:
    """Only libraries' workspaces stay in a pool after a request, and a warm-up outside of it keeps them out."""
    with ExitStack() as stack:
        cold, warm, cycling = (stack.enter_context(Child(role)) for role in (start_cold, start_warm, cycle))
        check.told("a first product inside a pool leaves a workspace there", cold)
        check.told("clearing cuBLAS workspaces empties the pool", cold)
        check.told("after a warm-up outside, the same products leave nothing", warm)
        check.told("the same holds for a new shape and another dtype", warm)
        check.told("a live tensor is seen", warm)
        check.told(f"{CYCLES} pools, one after another, give back every segment", cycling)


def open_pool() -> tuple[Any, Any, Any]:
    """Start torch with a slot; return the device, the slot and a pool in it."""
    device = torch_side.start()
    _, address = vmm.make_here(SLOT_BYTES)
    slot = slots.PythonSlot(address, SLOT_BYTES)
    return device, slot, slots.pool_in(slot)


def products(device: Any, dtype: Any, side: int = 512) -> float:
    """Run what models run: a product, one with a bias (cuBLASLt), attention and a norm; keep nothing."""
    import torch
    from torch.nn import functional

    left = torch.ones(side, side, device=device, dtype=dtype)
    linear = functional.linear(left @ left, left, left[0])
    heads = linear.view(1, 8, side, side // 8)
    attended = functional.scaled_dot_product_attention(heads, heads, heads)
    return float(functional.layer_norm(attended, [side // 8]).float().sum())


def residue_bytes(pool: Any) -> int:
    """Return what is still live once the GPU has finished."""
    import torch

    torch.cuda.synchronize()
    return slots.live_bytes(pool)


def start_cold(link: Link) -> None:
    """Let the first product of the process happen inside the pool."""
    import torch

    device, _, pool = open_pool()
    with slots.inside(pool):
        products(device, torch.bfloat16)
    left = residue_bytes(pool)
    link.send(holds=left > 0, seen=f"{left} bytes", figures={"workspaces left, MiB": left / MIB})
    torch._C._cuda_clearCublasWorkspaces()
    left = residue_bytes(pool)
    link.send(holds=left == 0, seen=f"{left} bytes")


def start_warm(link: Link) -> None:
    """Warm up outside, then do the same inside, then more."""
    import torch

    device, _, pool = open_pool()
    with torch.inference_mode():
        products(device, torch.bfloat16)
    with slots.inside(pool):
        products(device, torch.bfloat16)
    left = residue_bytes(pool)
    link.send(holds=left == 0, seen=f"{left} bytes")
    with slots.inside(pool):
        products(device, torch.bfloat16, side=1536)
        products(device, torch.float32)
    left = residue_bytes(pool)
    link.send(holds=left == 0, seen=f"{left} bytes")
    with slots.inside(pool):
        kept = torch.ones(1000, device=device)
    left = residue_bytes(pool)
    link.send(holds=left >= kept.nbytes, seen=f"{left} bytes for {kept.nbytes}")


def cycle(link: Link) -> None:
    """Make, use and delete pools."""
    import time

    import torch

    device, slot, pool = open_pool()
    del pool
    started_at = time.perf_counter()
    reserved = set()
    for _ in range(CYCLES):
        pool = slots.pool_in(slot)
        with slots.inside(pool):
            torch.empty(4 * MIB, dtype=torch.uint8, device=device)
            torch.empty(1000, device=device)
        del pool
        reserved.add(torch.cuda.memory_reserved())
    per_cycle_us = (time.perf_counter() - started_at) / CYCLES * 1e6
    link.send(
        holds=slot.allocated == slot.freed >= 2 * CYCLES and len(reserved) == 1,
        seen=f"{slot.allocated} segments taken, {slot.freed} given back; reserved: {sorted(reserved)[:5]}",
        figures={"a pool made, used and deleted, us": per_cycle_us},
    )
