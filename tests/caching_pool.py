"""A pool that divides segments into blocks as torch's does, by what its sources say, but on any memory.

Blocks of up to 1 MiB lie in segments of 2 MiB; others in one of 20 MiB, or from 10 MiB on in one of their own.
Free neighbours are merged, the smallest free piece that suffices is divided, and segments go back with the pool.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import torch
from onecopy.workers.device_pool import Live, Peak
from onecopy.workers.device_segments import ALLOCATE, FREE, path

MIB = 1 << 20


def functions():
    """What a pool is told: the functions that give and take segments."""
    library = ctypes.CDLL(path())
    allocate, free = getattr(library, ALLOCATE), getattr(library, FREE)
    allocate.argtypes, allocate.restype = [ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    free.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    free.restype = None
    return allocate, free


@dataclass
class Block:
    """What a tensor lies in."""

    begin: int
    size_bytes: int
    is_small: bool

    def write(self, byte: int) -> None:
        ctypes.memset(self.begin, byte, self.size_bytes)

    def holds(self, byte: int) -> bool:
        return ctypes.string_at(self.begin, self.size_bytes).count(byte) == self.size_bytes


@dataclass
class Segment:
    begin: int
    size_bytes: int
    is_small: bool
    free: list[tuple[int, int]] = field(default_factory=list)  # begin and end, by address

    def give_back(self, block: Block) -> None:
        pieces = sorted([*self.free, (block.begin, block.begin + block.size_bytes)])
        self.free = pieces[:1]
        for begin, end in pieces[1:]:
            assert begin >= self.free[-1][1], "a block was freed twice"
            if begin == self.free[-1][1]:
                self.free[-1] = (self.free[-1][0], end)
            else:
                self.free.append((begin, end))


class CachingPool:
    """See `onecopy.workers.device_pool.MemoryPool`."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self._allocate, self._free = functions()
        self.segments: list[Segment] = []
        self.blocks: list[Block] = []
        self.is_entered = False
        self._peak = Peak(0, 0)

    def __del__(self) -> None:
        for one in self.segments:
            if one.free == [(one.begin, one.begin + one.size_bytes)]:
                self._free(one.begin, one.size_bytes, 0, None)

    def prime(self, small_bytes: int, large_bytes: int) -> None:
        self.is_entered = True
        sizes_bytes = [MIB] * (small_bytes // MIB) + [large_bytes] * bool(large_bytes)
        for block in [self.take(size_bytes) for size_bytes in sizes_bytes]:
            self.give(block)
        self.is_entered = False

    def enter(self) -> None:
        assert not self.is_entered
        self.is_entered = True
        self._peak = Peak(0, 0)

    def leave(self) -> None:
        assert self.is_entered
        self.is_entered = False

    def peak(self) -> Peak:
        return self._peak

    def live(self) -> Live:
        return Live(len(self.blocks), sum(one.size_bytes for one in self.blocks))

    # --- what torch does when a tensor is made, and is gone -------------------------------------------------

    def take(self, size_bytes: int) -> Block:
        assert self.is_entered, "nothing is allocated in a pool that is not in use"
        size_bytes = -(-size_bytes // 512) * 512
        is_small = size_bytes <= MIB
        found = [
            (end - begin, begin, one) for one in self.segments if one.is_small == is_small
            for begin, end in one.free if end - begin >= size_bytes
        ]  # fmt: skip
        piece_bytes, begin, segment = min(found, key=lambda one: one[:2]) if found else self._grow(size_bytes)
        segment.free.remove((begin, begin + piece_bytes))
        if piece_bytes > size_bytes:
            segment.free.append((begin + size_bytes, begin + piece_bytes))
        block = Block(begin, size_bytes, is_small)
        self.blocks.append(block)
        small_bytes = sum(one.size_bytes for one in self.blocks if one.is_small)
        self._peak = Peak(max(self._peak[0], self.live().size_bytes), max(self._peak[1], small_bytes))
        return block

    def give(self, block: Block) -> None:
        self.blocks.remove(block)
        at = block.begin
        [home] = [one for one in self.segments if one.begin <= at < one.begin + one.size_bytes]
        home.give_back(block)

    def _grow(self, size_bytes: int) -> tuple[int, int, Segment]:
        wanted_bytes = 2 * MIB if size_bytes <= MIB else 20 * MIB
        if size_bytes >= 10 * MIB:
            wanted_bytes = -(-size_bytes // (2 * MIB)) * 2 * MIB
        begin = self._allocate(wanted_bytes, 0, None)
        if begin is None:
            raise torch.OutOfMemoryError(f"tried to allocate {size_bytes} bytes")
        self.segments.append(Segment(begin, wanted_bytes, size_bytes <= MIB, [(begin, begin + wanted_bytes)]))
        return wanted_bytes, begin, self.segments[-1]
