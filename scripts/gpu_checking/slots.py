"""Allocators for torch.cuda.MemPool that hand out parts of one mapping: in Python, and the same in C."""

from __future__ import annotations

import bisect
import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from .check import Untried

#: As the header of torch's pluggable allocator has them; the documentation of `free` leaves the device out.
_ALLOCATE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
_FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)

_SOURCE = """
#include <stddef.h>
#include <string.h>
enum { MOST = 8192 };
static char *base;
static size_t size;
static struct { size_t start, end; } taken[MOST];
static size_t count;
size_t slot_allocated, slot_refused, slot_freed;

void slot_open(void *address, size_t bytes)
{
    base = address;
    size = bytes;
}

void *slot_allocate(size_t bytes, int device, void *stream)
{
    size_t at = 0, start = 0;
    for (; at < count && taken[at].start - start < bytes; at++)
        start = taken[at].end;
    if (count == MOST || (at == count && size - start < bytes)) {
        slot_refused++;
        return NULL;
    }
    memmove(&taken[at + 1], &taken[at], (count - at) * sizeof taken[0]);
    taken[at].start = start;
    taken[at].end = start + bytes;
    count++;
    slot_allocated++;
    return base + start;
}

void slot_free(void *address, size_t bytes, int device, void *stream)
{
    for (size_t at = 0; at < count; at++)
        if (base + taken[at].start == (char *)address) {
            count--;
            memmove(&taken[at], &taken[at + 1], (count - at) * sizeof taken[0]);
            slot_freed++;
            return;
        }
}
"""


class PythonSlot:
    """Functions that call back into Python; it must live as long as the process: torch has their addresses."""

    def __init__(self, address: int, size_bytes: int) -> None:
        self.address, self.size_bytes = address, size_bytes
        self.allocated = self.refused = self.freed = 0
        self._taken: list[tuple[int, int]] = []
        self._callbacks = _ALLOCATE(self._allocate), _FREE(self._free)

    @cached_property
    def allocator(self) -> Any:
        """What MemPool takes: one for all pools in the slot."""
        return _custom(*(int(ctypes.cast(one, ctypes.c_void_p).value or 0) for one in self._callbacks))

    def _allocate(self, size_bytes: int, _device: int, _stream: int | None) -> int:
        """First fit; 0 is NULL. It must not raise, and must take no lock that a holder of the GIL may have."""
        start = 0
        for taken_start, taken_end in self._taken:
            if taken_start - start >= size_bytes:
                break
            start = taken_end
        if self.size_bytes - start < size_bytes:
            self.refused += 1
            return 0
        bisect.insort(self._taken, (start, start + size_bytes))
        self.allocated += 1
        return self.address + start

    def _free(self, address: int, size_bytes: int, _device: int, _stream: int | None) -> None:
        start = address - self.address
        self._taken.remove((start, start + size_bytes))
        self.freed += 1


class CompiledSlot:
    """The same without the interpreter.

    Raises:
        Untried: There is no compiler.
    """

    def __init__(self, address: int, size_bytes: int, folder: str) -> None:
        compiler = next((found for name in ("cc", "gcc", "clang", "nvcc") if (found := shutil.which(name))), None)
        if compiler is None:
            raise Untried("there is no C compiler")
        source, library = Path(folder, "slot.c"), Path(folder, "slot.so")
        source.write_text(_SOURCE)
        position_independent = ["-Xcompiler", "-fPIC"] if compiler.endswith("nvcc") else ["-fPIC", "-O2"]
        command = [compiler, "-shared", *position_independent, "-o", str(library), str(source)]
        subprocess.run(command, check=True, capture_output=True)
        self.address, self.size_bytes = address, size_bytes
        self._library = ctypes.CDLL(str(library))
        self._library.slot_open(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes))

    @cached_property
    def allocator(self) -> Any:
        """What MemPool takes: one for all pools in the slot."""
        functions = self._library.slot_allocate, self._library.slot_free
        return _custom(*(int(ctypes.cast(one, ctypes.c_void_p).value or 0) for one in functions))

    @property
    def allocated(self) -> int:
        """How many calls got memory."""
        return self._counter("slot_allocated")

    @property
    def refused(self) -> int:
        """How many calls got none."""
        return self._counter("slot_refused")

    @property
    def freed(self) -> int:
        """How many times memory was given back."""
        return self._counter("slot_freed")

    def _counter(self, name: str) -> int:
        return ctypes.c_size_t.in_dll(self._library, name).value


def pool_in(slot: PythonSlot | CompiledSlot) -> Any:
    """Return a torch.cuda.MemPool whose segments lie in a slot."""
    import torch

    return torch.cuda.MemPool(slot.allocator)


def contains(slot: PythonSlot | CompiledSlot, tensor: Any) -> bool:
    """Return whether a tensor lies wholly in a slot."""
    start = tensor.data_ptr() - slot.address
    return start >= 0 and start + tensor.nbytes <= slot.size_bytes


def prime(pool: Any, device: Any, large_bytes: int, small_blocks: int) -> None:
    """Have a pool take its memory at once: one large segment, and one of 2 MiB for every two small blocks."""
    import torch

    with torch.cuda.use_mem_pool(pool):
        blocks = [torch.empty(large_bytes, dtype=torch.uint8, device=device)]
        blocks += [torch.empty(1 << 20, dtype=torch.uint8, device=device) for _ in range(small_blocks)]
        del blocks


def live_bytes(pool: Any) -> int:
    """Return how many bytes of a pool are allocated or wait for a stream."""
    segments = pool.snapshot(include_traces=False)
    return sum(max(one["active_size"], one["allocated_size"]) for one in segments)


@contextmanager
def inside(pool: Any) -> Iterator[None]:
    """Allocate from a pool, without gradients, as a worker does for a request."""
    import torch

    with torch.inference_mode(), torch.cuda.use_mem_pool(pool):
        yield


def _custom(allocate: int, free: int) -> Any:
    import torch

    # Private: what CUDAPluggableAllocator calls once it has looked the functions up in a file.
    return torch._C._cuda_customAllocator(allocate, free)
