"""The process's heap: what is free in it goes back to the system, at moments when nobody waits."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
from typing import Final

#: From ``<malloc.h>``.
_M_MMAP_THRESHOLD: Final = -3
_LARGE_BYTES: Final = 1 << 20
_PAGE_BYTES: Final = resource.getpagesize()


def trim() -> None:
    """Give free pages back; takes a millisecond or two, and page faults later."""
    with contextlib.suppress(AttributeError, OSError):  # a libc without it
        ctypes.CDLL(None).malloc_trim(0)


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
    reuses: collect now, then exempt what is left, and give free pages back.
    """
    gc.collect()
    gc.freeze()
    trim()


def anonymous_bytes() -> int:
    """Return how much memory of this process is no file's, whether a parent shares it or not."""
    with open("/proc/self/statm", encoding="ascii") as file:
        _, resident, of_files, *_ = (int(word) for word in file.read().split())
    return (resident - of_files) * _PAGE_BYTES
