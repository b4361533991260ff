"""What every process of a pool does with its heap when nothing is to be done."""

from __future__ import annotations

import contextlib
import ctypes


def trim() -> None:
    """Give free pages back to the system; takes a millisecond or two, and page faults later."""
    with contextlib.suppress(AttributeError, OSError):  # a libc without it
        ctypes.CDLL(None).malloc_trim(0)
