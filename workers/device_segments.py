"""What torch has of slots in the memory of a GPU, in segments: the library's part (``arena_device.c``), by ctypes.

::

    Segments ── enter ──► torch's pool asks for segments: of this slot, or outside ── leave ──► nobody is served

It is the library that is preloaded for slots of the processor; here it need not be, as torch is told its path.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import Any, Final

from .arena import built

#: What `torch.cuda.memory.CUDAPluggableAllocator` is told besides the library's path.
ALLOCATE: Final = "onecopy_device_allocate"
FREE: Final = "onecopy_device_free"

_ADDRESS = ctypes.c_void_p
#: Part of the NVIDIA driver. It is loaded wherever there is a CUDA context.
_DRIVER: Final = "libcuda.so.1"


class _Run(ctypes.Structure):
    _fields_ = [("spilled_bytes", ctypes.c_size_t), ("refused_bytes", ctypes.c_size_t)]


class Segments:
    """A slot, as torch takes segments of it.

    Args:
        base: where it is mapped.
        size_bytes: all of it.

    Raises:
        RuntimeError: there is no library.
        OSError: there is no memory to keep books in.
    """

    def __init__(self, base: int, size_bytes: int) -> None:
        self._library = _library()
        self._slot = _ADDRESS()
        self._run = _Run.in_dll(self._library, "onecopy_device_run")
        code = self._library.onecopy_device_attach(base, size_bytes, ctypes.byref(self._slot))
        if code:
            raise OSError(code, f"cannot serve torch from {size_bytes} bytes at {base:#x}: {os.strerror(code)}")

    def enter(self, *, is_strict: bool) -> None:
        """Serve the segments that torch asks for from here on.

        Args:
            is_strict: refuse what does not fit, which torch raises; else it comes from outside of the slot.

        Raises:
            RuntimeError: another slot is entered.
        """
        if self._library.onecopy_device_enter(self._slot, is_strict):
            raise RuntimeError("cannot enter a slot of the GPU: another is entered, and not left yet")

    def leave(self) -> None:
        """Serve no more."""
        self._library.onecopy_device_leave()

    @property
    def held_bytes(self) -> int:
        """What torch has of the slot, in use or not."""
        return self._library.onecopy_device_held_bytes(self._slot)

    @property
    def spilled_bytes(self) -> int:
        """The most that torch had outside at once, since a slot was entered."""
        return self._run.spilled_bytes

    def take_refusal(self) -> int:
        """Return what torch would have had at once if it had not been refused, 0 if it was not; forget it."""
        refused_bytes = self._run.refused_bytes
        self._run.refused_bytes = 0
        return refused_bytes

    def close(self) -> None:
        """Forget the slot.

        Raises:
            RuntimeError: it is entered, or torch has segments of it.
        """
        if self._library.onecopy_device_detach(self._slot) == errno.EBUSY:
            raise RuntimeError(f"torch has {self.held_bytes} bytes yet of a slot that is to be unmapped")


def path() -> str:
    """Return where the library is.

    Raises:
        RuntimeError: there is none; the sentence says why.
    """
    found, reason = built()
    if found is None:
        raise RuntimeError(reason)
    return found


def spill_to(allocate: Any, free: Any) -> None:
    """Say where segments come from that do not fit: C functions like ``cuMemAlloc_v2`` and ``cuMemFree_v2``."""
    _library().onecopy_device_spill(ctypes.cast(allocate, _ADDRESS), ctypes.cast(free, _ADDRESS))


@cache
def spill_to_driver() -> None:
    """Let segments that do not fit come from the driver, as torch's own do.

    Raises:
        OSError: there is no driver.
    """
    driver = ctypes.CDLL(_DRIVER)
    spill_to(driver.cuMemAlloc_v2, driver.cuMemFree_v2)


@cache
def _library() -> Any:
    library: Any = ctypes.CDLL(path())
    size = ctypes.c_size_t
    library.onecopy_device_attach.argtypes = [size, size, ctypes.POINTER(_ADDRESS)]
    library.onecopy_device_detach.argtypes = [_ADDRESS]
    library.onecopy_device_enter.argtypes = [_ADDRESS, ctypes.c_bool]
    library.onecopy_device_leave.argtypes, library.onecopy_device_leave.restype = [], None
    library.onecopy_device_held_bytes.argtypes, library.onecopy_device_held_bytes.restype = [_ADDRESS], size
    library.onecopy_device_spill.argtypes, library.onecopy_device_spill.restype = [_ADDRESS, _ADDRESS], None
    return library
