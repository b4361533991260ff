"""How much memory the C library has handed out in this process, which is what code that frees memory changes.

What the system counts is another number: in a process with a large heap, a block that is freed may lie between
others, and stay.
"""

from __future__ import annotations

import ctypes

from onecopy.workers.heap import _Figures

_libc = ctypes.CDLL(None)
_libc.mallinfo2.restype = _Figures


def allocated_bytes() -> int:
    """Return the sizes of all blocks in use, those in heaps and those that are mapped by themselves."""
    figures = _libc.mallinfo2()
    return figures.uordblks + figures.hblkhd
