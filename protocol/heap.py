"""What every process of a pool does with its heap when nothing is to be done."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def trim() -> None:
    """Give free pages back to the system; takes a millisecond or two, and page faults later."""
    if (malloc_trim := _malloc_trim()) is not None:
        malloc_trim(0)


@cache
def _malloc_trim() -> Any:
    """Return the C library's function, None if it has none; once, because to look it up leaves garbage."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
