"""Torch's own part in a slot of a GPU: its pool of memory, which divides segments into the blocks of tensors.

This is the seam: `MemoryPool` is all that a slot asks of torch, and `TorchPool` does nothing else. It keeps to
what torch 2.13 documents (``torch/cuda/memory.py``) and to the sources of its allocator
(``CUDACachingAllocator.cpp``, ``MemPool.cpp``). That is believed: it was not seen on a card yet.

A model may capture graphs while a pool is in use, and replay them later: what they compute with lies in pools of
their own, because the pool that was entered last goes first. That holds from torch 2.13 on. With an older one the
pool that was entered first does: graphs that a model captures by itself would be recorded into its slot, which the
next run overwrites.
"""

from __future__ import annotations

import contextlib
from functools import cache
from typing import Any, Final, NamedTuple, Protocol

import torch

from .device_segments import ALLOCATE, FREE, path, spill_to_driver

#: The largest block that torch puts with small ones; two fill one of their segments. Its ``kSmallSize``.
SMALL_BLOCK_BYTES: Final = 1 << 20
#: What torch takes at once for small blocks. Its ``kSmallBuffer``.
SMALL_SEGMENT_BYTES: Final = 2 << 20
#: From here on a large block that has no segment yet gets one of its own, as large as the block is, in steps of
#: 2 MiB; a smaller one gets one of 20 MiB. Its ``kMinLargeAlloc``.
LARGE_BLOCK_BYTES: Final = 10 << 20

#: A block that some tensor lies in. Others are free, or will be once torch sees that the GPU has done with them.
_IN_USE: Final = "active_allocated"


class Peak(NamedTuple):
    """What lived at once at most since a pool was entered, in slots and outside.

    Attributes:
        all_bytes: in all.
        small_bytes: of blocks that lie with small ones.
    """

    all_bytes: int
    small_bytes: int


class Live(NamedTuple):
    """What lives in a pool.

    Attributes:
        blocks: how many blocks.
        size_bytes: their size.
    """

    blocks: int
    size_bytes: int


class MemoryPool(Protocol):
    """A pool of torch's. When nobody refers to it any more, and nothing lives in it, its segments go back."""

    def prime(self, small_bytes: int, large_bytes: int) -> None:
        """Take segments, so that none are asked for later as long as they suffice.

        Args:
            small_bytes: for small blocks, a multiple of `SMALL_SEGMENT_BYTES`.
            large_bytes: one for all others: at least `LARGE_BLOCK_BYTES`, and a multiple of 2 MiB; or 0.

        Raises:
            RuntimeError: they were refused.
        """
        ...

    def enter(self) -> None:
        """Let what this thread allocates come out of the pool."""
        ...

    def leave(self) -> None:
        """Do so no more, and wait until the GPU has done what it was told to.

        Raises:
            RuntimeError: something of that failed.
        """
        ...

    def peak(self) -> Peak:
        """Return what lived at once since the pool was entered, by whomever in this process it was allocated."""
        ...

    def live(self) -> Live:
        """Return what lives in the pool now."""
        ...


class TorchPool:
    """The pool of a slot on a real GPU; see `MemoryPool`.

    Args:
        device: the GPU.

    Raises:
        RuntimeError: there is no library that serves it.
        OSError: there is no driver.
    """

    def __init__(self, device: torch.device) -> None:
        spill_to_driver()
        self._device = device
        with torch.cuda.device(device):
            self._pool = torch.cuda.MemPool(_allocator().allocator())
        self._scope = contextlib.ExitStack()
        self._before = Peak(0, 0)

    def prime(self, small_bytes: int, large_bytes: int) -> None:
        """Take segments by allocating and freeing tensors, whose segments torch keeps."""
        sizes_bytes = [SMALL_BLOCK_BYTES] * (small_bytes // SMALL_BLOCK_BYTES)
        sizes_bytes += [large_bytes] if large_bytes else []
        with torch.cuda.use_mem_pool(self._pool, self._device):
            tensors = [torch.empty(size, dtype=torch.uint8, device=self._device) for size in sizes_bytes]
            del tensors

    def enter(self) -> None:
        """Enter the pool; gradients are computed by this thread too, as a pool serves one only."""
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = self._peak_of_process()
        self._scope.enter_context(torch.autograd.set_multithreading_enabled(False))
        self._scope.enter_context(torch.cuda.use_mem_pool(self._pool, self._device))

    def leave(self) -> None:
        """Leave the pool, and synchronise all streams of the GPU."""
        self._scope.close()
        torch.cuda.synchronize(self._device)

    def peak(self) -> Peak:
        """Return what torch counted; what is mapped of regions is not torch's, and does not count."""
        now = self._peak_of_process()
        return Peak(now.all_bytes - self._before.all_bytes, now.small_bytes - self._before.small_bytes)

    def live(self) -> Live:
        """Return what a snapshot shows: counters of torch do not tell one pool from another."""
        segments: list[dict[str, Any]] = self._pool.snapshot(include_traces=False)
        blocks = [block for segment in segments for block in segment["blocks"] if block["state"] == _IN_USE]
        return Live(len(blocks), sum(block["size"] for block in blocks))

    def _peak_of_process(self) -> Peak:
        stats = torch.cuda.memory_stats_as_nested_dict(self._device)["allocated_bytes"]
        return Peak(stats["all"]["peak"], stats["small_pool"]["peak"])


def trim(device: torch.device) -> None:
    """Give back what torch has of a GPU's memory outside of slots, and does not use."""
    with torch.cuda.device(device):
        torch.cuda.empty_cache()


@cache
def _allocator() -> Any:
    """One for all pools, and for good: torch calls into it as long as any segment lives."""
    return torch.cuda.memory.CUDAPluggableAllocator(path(), ALLOCATE, FREE)
