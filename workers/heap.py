"""The process's heap: what is free in it goes back to the system, at moments when nobody waits."""

from __future__ import annotations

import contextlib
import ctypes
import gc


def trim() -> None:
    """Give free pages back; takes a millisecond or two, and page faults later."""
    with contextlib.suppress(AttributeError, OSError):  # a libc without it
        ctypes.CDLL(None).malloc_trim(0)


def settle() -> None:
    """Make what is in memory stay as it is, so that forked children go on sharing it.

    The collector would write into every object that it looks at, and ``malloc`` into free memory that it
    reuses: collect now, then exempt what is left, and give free pages back.
    """
    gc.collect()
    gc.freeze()
    trim()
