"""A slot in the memory of a GPU, as a run takes it: torch's pool on top of a region that this process has mapped.

::

    ├── small ───┼──────── large ────────┤     all of it is torch's from the beginning, in segments:
     2 MiB each   one, which it divides        so a run asks for none, and no gaps are left between them

What does not fit all the same comes from the driver, outside of the slot. Torch would not give that back as long
as the pool lives. So the pool is made anew after such a run; with more for small blocks, if those found no place.

What lives in a slot when it is left cannot be moved out of it, as it can on the processor: the slot stays as it is
for as long as this process lives, and nobody enters it again.

The first run of a model should be in no slot: libraries take working memory then that they never give back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Final

from ..protocol.gpu import Gpu
from .arena import Usage
from .device_pool import LARGE_BLOCK_BYTES, SMALL_SEGMENT_BYTES, MemoryPool, Peak, TorchPool
from .device_segments import Segments

#: The part of a slot that is for small blocks at first, ...
_SMALL_PART: Final = 16
#: ... but no more than this, because each segment takes time whenever it is asked what lives in a slot; ...
_MOST_SMALL_BYTES: Final = 64 << 20
#: ... and how much more than what they needed they get, once it did not suffice.
_SMALL_GAPS: Final = 1.25
#: How much more a slot must have than what lived at once: there are gaps between blocks.
_GAPS: Final = 1.125
_NOTHING: Final = Usage(0, 0, 0, 0, 0, 0)


class DeviceSlot:
    """A mapped slot of a GPU, with the face of `arena.Slot`.

    Args:
        gpu: whose memory it is.
        fd: the region, which the caller may close afterwards.
        size_bytes: its size.
        make_pool: makes a pool of torch's; None: on the GPU itself.

    Raises:
        OSError: it cannot be mapped, or there is no driver.
        RuntimeError: torch cannot be served from it.
    """

    def __init__(
        self, gpu: Gpu, fd: int, size_bytes: int, make_pool: Callable[[], MemoryPool] | None = None
    ) -> None:
        self._gpu = gpu
        self._make_pool = make_pool or partial(TorchPool, gpu.device)
        memory = gpu.map(fd, size_bytes, is_writable=True)
        self._size_bytes = len(memory)
        self._segments = Segments(memory.storage(0, self._size_bytes).data_ptr(), self._size_bytes)
        self._memory = [memory]  # empty once it is unmapped
        self._small_bytes = _whole(min(self._size_bytes // _SMALL_PART, _MOST_SMALL_BYTES))
        self._is_entered = False
        self._is_kept = False
        self._has_spilled = False
        self._usage = _NOTHING
        self._pools = [self._primed()]  # none while the next one is made: each wants all of the slot

    def enter(self, limit_bytes: int, *, is_strict: bool = False) -> None:
        """Let what this thread allocates on the GPU come out of the slot, which is empty, from here on.

        Args:
            limit_bytes: how much of it may be used; all of it can be, as its memory is taken anyway.
            is_strict: refuse what does not fit, which torch raises as an ``OutOfMemoryError``.

        Raises:
            ValueError: the slot is smaller than that.
            RuntimeError: a slot is entered already, or something that was kept lives in this one.
        """
        if limit_bytes > self._size_bytes:
            raise ValueError(f"{limit_bytes} bytes of a slot of {self._size_bytes} were to be used")
        if self._is_kept:
            raise RuntimeError("cannot enter the slot: something lives in it")
        self._segments.enter(is_strict=is_strict)
        self._is_entered = True
        self._usage = _NOTHING
        self._pools[0].enter()

    def usage(self) -> Usage:
        """Return what the run that has left the slot used."""
        return self._usage

    def try_leave(self) -> bool:
        """Stop serving, wait for the GPU, and return whether nothing lives in the slot.

        Raises:
            RuntimeError: what the GPU was told to do failed.
        """
        return not self.leave().live_blocks

    def leave(self) -> Usage:
        """Do what `try_leave` does, and return what the run used.

        If `live_blocks` of that is not 0: drop what refers to them and leave again, or `keep` them.
        """
        if self._is_entered:
            self._end_run()
        live = self._pools[0].live()
        self._usage = self._usage._replace(live_blocks=live.blocks, live_bytes=live.size_bytes)
        if not live.blocks and self._has_spilled:
            self._renew()
        return self._usage

    @property
    def peak_bytes(self) -> int:
        """That of `usage`, of a run that goes on too."""
        return self._pools[0].peak().all_bytes if self._is_entered else self._usage.peak_bytes

    def take_refusal(self) -> int:
        """Return the `refused_bytes` of `Usage`; what is refused from here on is told of anew."""
        return self._segments.take_refusal()

    def keep(self) -> None:
        """Let live what lives in the slot, which cannot be entered again."""
        self._is_kept = True

    @property
    def is_empty(self) -> bool:
        """Whether nothing lives in it, or not any more."""
        return not self._pools[0].live().blocks

    def detach(self) -> None:
        """Unmap the slot.

        Raises:
            RuntimeError: it is not left, or something lives in it.
        """
        self._gpu.synchronize()
        self._pools.clear()
        self._segments.close()
        self._memory.clear()

    def _end_run(self) -> None:
        self._is_entered = False
        try:
            self._pools[0].leave()
        finally:
            self._segments.leave()
        self._has_spilled = self._segments.spilled_bytes > 0
        self._usage = self._used(self._pools[0].peak(), self._segments.spilled_bytes)

    def _used(self, peak: Peak, outside_bytes: int) -> Usage:
        """Return what a run used. What a slot divided otherwise had held is put right here, and not told."""
        wanted_bytes = int(peak.all_bytes * _GAPS)
        if outside_bytes and peak.small_bytes > self._small_bytes:
            self._small_bytes = _whole(min(int(peak.small_bytes * _SMALL_GAPS), self._size_bytes))
            outside_bytes = min(outside_bytes, max(0, wanted_bytes - self._size_bytes))
        footprint_bytes = min(wanted_bytes, self._size_bytes)
        return Usage(peak.all_bytes, footprint_bytes, outside_bytes, 0, 0, 0)

    def _renew(self) -> None:
        """Give back what is outside, with the pool that has it."""
        self._has_spilled = False
        self._pools.clear()
        try:
            pool = self._primed()
        except RuntimeError as error:
            print(f"a slot of the GPU is not used wholly: {error}", file=sys.stderr)  # noqa: T201 - to the log
            pool = self._make_pool()
        self._pools.append(pool)

    def _primed(self) -> MemoryPool:
        """Return a pool that has all of the slot.

        Raises:
            RuntimeError: torch did not take it as it should.
        """
        large_bytes = self._size_bytes - self._small_bytes
        if large_bytes < LARGE_BLOCK_BYTES:
            large_bytes = 0  # torch will ask for more than that, if for anything
        pool = self._make_pool()
        self._segments.enter(is_strict=True)
        try:
            pool.prime(self._small_bytes, large_bytes)
        finally:
            self._segments.leave()
        held_bytes = self._segments.held_bytes
        if held_bytes != self._small_bytes + large_bytes:
            raise RuntimeError(
                f"torch took {held_bytes:,} bytes of a slot of the GPU where it was to take "
                f"{self._small_bytes + large_bytes:,}: it asks for memory in another way than this is made for"
            )
        return pool


def _whole(size_bytes: int) -> int:
    """Round up to whole segments for small blocks, at least one."""
    return max(1, -(-size_bytes // SMALL_SEGMENT_BYTES)) * SMALL_SEGMENT_BYTES
