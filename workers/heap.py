"""The process's heap: what is free in it goes back to the system, at moments when nobody waits."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
from array import array
from typing import Any, Final

from ..protocol.heap import trim

#: From ``<malloc.h>``.
_M_MMAP_THRESHOLD: Final = -3
_LARGE_BYTES: Final = 1 << 20
_PAGE_BYTES: Final = resource.getpagesize()
#: What holes are filled with, one size after the other: large ones first, yet smaller than what ``malloc`` maps;
#: then each size of which glibc keeps a few freed blocks at hand (its ``tcache``), down to the smallest it has.
_FILLINGS_BYTES: Final = (*(1 << exponent for exponent in range(16, 10, -1)), *range(1032, 23, -16))
#: Their addresses.
_fillings: Final = array("Q")


def return_large_blocks() -> None:
    """Let what is freed of a megabyte or more go back to the system at once.

    Otherwise the allocator learns from the first such blocks to keep the next ones for itself, and a model whose
    weights are released one by one would stay in memory to its end.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def settle() -> None:
    """Make what is in memory stay as it is, so that forked children go on sharing it.

    The collector would write into every object that it looks at, and ``malloc`` into free memory that it
    reuses: collect now, then exempt what is left, give free pages back, and leave no hole to be reused.
    """
    gc.collect()
    gc.freeze()
    trim()
    with contextlib.suppress(AttributeError):  # a libc without `mallinfo2`: children copy what lies around holes
        _fill_holes(ctypes.CDLL(None))


def unsettle() -> None:
    """Let the holes be used again that `settle` has filled."""
    free = ctypes.CDLL(None).free
    free.argtypes = [ctypes.c_size_t]
    while _fillings:
        free(_fillings.pop())


def anonymous_bytes() -> int:
    """Return how much memory of this process is no file's, whether a parent shares it or not."""
    with open("/proc/self/statm", encoding="ascii") as file:
        _, resident, of_files, *_ = (int(word) for word in file.read().split())
    return (resident - of_files) * _PAGE_BYTES


class _Figures(ctypes.Structure):
    """``struct mallinfo2`` of ``<malloc.h>``; of interest are the heap's size and that of its free top."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
            "keepcost",
        )
    ]  # fmt: skip


def _fill_holes(libc: Any) -> None:
    """Allocate all that is free below the heap's top.

    A forked child would put what it allocates into those holes, and copy for each a page that it shares. Above
    everything else it gets fresh pages, one after the other, and can give them back. Fillings are never written
    to, so they hardly take a page: a size stands in front of each.
    """
    libc.mallinfo2.restype = _Figures
    libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_size_t, [ctypes.c_ssize_t]
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_size_t, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_size_t]
    heap = libc.mallinfo2()
    top = libc.sbrk(0) - heap.keepcost
    for size_bytes in _FILLINGS_BYTES:
        while top - heap.arena <= (place := libc.malloc(size_bytes)) < top:
            _fillings.append(place)
        libc.free(place)
