"""The slot's allocator, as this process sees it: a library that was preloaded (``arena.c``), reached by ctypes.

::

    Arena.preloaded() ── attach ──► Slot ── enter ──► torch allocates there ── leave ──► nothing lives in it
                                                                                 └─ leave again, or keep

A slot is a memfd that several processes map; one at a time may have it entered.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import Any, Final, NamedTuple

_LIBRARY: Final = os.path.join(os.path.dirname(__file__), "libonecopy_arena.so")
_PROBE_BYTES: Final = 1 << 20
_ADDRESS = ctypes.c_void_p


class Built(NamedTuple):
    """The library to preload.

    Attributes:
        path: for ``LD_PRELOAD``; None if there is none.
        reason: why there is none, in a sentence.
    """

    path: str | None
    reason: str


def built() -> Built:
    """Return where the library is."""
    if os.path.exists(_LIBRARY):
        if {" ", ":"} & set(_LIBRARY):
            return Built(
                None, f"{_LIBRARY} cannot be preloaded: LD_PRELOAD is a list, divided at spaces and colons"
            )
        return Built(_LIBRARY, "")
    return Built(
        None, f"{_LIBRARY} does not exist: it was not built when onecopy was installed, which takes a C compiler"
    )


class Usage(NamedTuple):
    """What a run used.

    Attributes:
        peak_bytes: the most that lived at once, in the slot and outside together: the need.
        footprint_bytes: the highest byte of the slot that was used, and so the pages of it that were touched.
        spilled_bytes: the most that lived outside of the slot's pages at once.
        live_blocks: how many blocks live now.
        live_bytes: their size.
        refused_bytes: in a strict run, what would have lived at once if it had not been refused; 0: all did fit.
    """

    peak_bytes: int
    footprint_bytes: int
    spilled_bytes: int
    live_blocks: int
    live_bytes: int
    refused_bytes: int


class _Usage(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in Usage._fields]


class Arena:
    """The allocator that is preloaded in this process; there is one."""

    def __init__(self, library: Any) -> None:
        self._library = library

    @classmethod
    def preloaded(cls) -> Arena | None:
        """Return the allocator, or None if it is not in this process. Whether it works, `probe` tells."""
        return _preloaded()

    def attach(self, fd: int, window_bytes: int) -> Slot:
        """Map a slot.

        Args:
            fd: its memfd, of which a duplicate is kept; the caller may close it afterwards.
            window_bytes: how large the memfd may ever become. That takes addresses, not memory.

        Raises:
            OSError: it cannot be mapped.
            RuntimeError: torch is not loaded.
            ValueError: `window_bytes` is not positive.
        """
        return Slot(self._library, fd, window_bytes)

    def kept_bytes(self) -> int:
        """Return how much private memory is held by what escaped from slots."""
        return self._library.onecopy_arena_kept_bytes()

    def probe(self) -> str | None:
        """Return why a tensor's memory does not come out of a slot; None: it does. Imports torch."""
        import torch

        fd = os.memfd_create("probe", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, _PROBE_BYTES)
            slot = self.attach(fd, _PROBE_BYTES)
        except (OSError, RuntimeError) as error:
            return f"a slot cannot be mapped: {error}"
        finally:
            os.close(fd)
        slot.enter(_PROBE_BYTES)
        tensor = torch.empty(_PROBE_BYTES // 2, dtype=torch.uint8)
        has_landed = slot.usage().live_bytes >= tensor.nbytes
        del tensor
        if slot.leave().live_blocks:
            slot.keep()
        slot.detach()
        if has_landed:
            return None
        return (
            "a tensor's memory did not come out of a slot: another preloaded allocator stands before it, "
            "or this torch takes its memory in another way"
        )


class Slot:
    """A mapped slot; see `Arena.attach`."""

    def __init__(self, library: Any, fd: int, window_bytes: int) -> None:
        self._library = library
        self._segment = _ADDRESS()
        self._found = _Usage()  # one for all: to make one takes as long as to ask
        self._into = ctypes.byref(self._found)
        self._run = _Usage.in_dll(library, "onecopy_arena_run")
        if window_bytes <= 0:
            raise ValueError(f"a slot of {window_bytes} bytes was asked for; it must have at least one")
        code = library.onecopy_arena_attach(fd, window_bytes, ctypes.byref(self._segment))
        if code == errno.ENOSYS:
            raise RuntimeError("libc10.so is not loaded in this process; import torch first")
        if code:
            raise OSError(code, f"cannot map a slot of {window_bytes} bytes: {os.strerror(code)}")

    def enter(self, limit_bytes: int, *, is_strict: bool = False) -> None:
        """Let torch's CPU memory come out of the slot, which is empty, from here on.

        Args:
            limit_bytes: how much of it may be used, from its start; the rest is spilled.
            is_strict: refuse the rest instead, which torch raises as a ``RuntimeError``.

        Raises:
            ValueError: the memfd, or the window, is smaller than that.
            RuntimeError: a slot is entered already, or this one belongs to the process that forked this one.
        """
        code = self._library.onecopy_arena_enter(self._segment, limit_bytes)
        if code == errno.ERANGE:
            raise ValueError(f"{limit_bytes} bytes of a slot were to be used; its memfd or its window is smaller")
        _check(code, "enter the slot")
        if is_strict:
            self._library.onecopy_arena_be_strict()

    def usage(self) -> Usage:
        """Return what the run has used so far."""
        self._library.onecopy_arena_usage(self._into)
        return _told(self._found)

    def leave(self) -> Usage:
        """Stop serving; leave the slot if nothing lives in it.

        If `live_blocks` of what is returned is not 0 the slot is not left: drop what refers to them and leave
        again, or `keep` them.
        """
        self._library.onecopy_arena_leave()
        return self.usage()

    def try_leave(self) -> bool:
        """Do what `leave` does, and return only whether the slot is left, which is what matters mostly."""
        return not self._library.onecopy_arena_leave()

    @property
    def peak_bytes(self) -> int:
        """That of `usage`, without a call."""
        return self._run.peak_bytes

    def take_refusal(self) -> int:
        """Return the `refused_bytes` of `usage`; what is refused from here on is told of anew."""
        refused_bytes = self._run.refused_bytes
        self._run.refused_bytes = 0
        return refused_bytes

    def keep(self) -> None:
        """Leave the slot although blocks live: they move into private memory and keep their addresses.

        The memfd holds nothing of this process's any more, and the slot can be entered again.

        Raises:
            RuntimeError: the slot is not entered, or `leave` was not called.
            OSError: there are not enough addresses left.
        """
        _check(self._library.onecopy_arena_keep(ctypes.byref(self._segment)), "keep what lives in the slot")

    def detach(self) -> None:
        """Unmap the slot.

        Raises:
            RuntimeError: it is not left.
        """
        _check(self._library.onecopy_arena_detach(self._segment), "detach the slot")
        self._segment = _ADDRESS()


@cache
def _preloaded() -> Arena | None:
    library: Any = ctypes.CDLL(None)
    slot, size = ctypes.POINTER(_ADDRESS), ctypes.c_size_t
    try:
        library.onecopy_arena_attach.argtypes = [ctypes.c_int, size, slot]
    except AttributeError:
        return None
    library.onecopy_arena_detach.argtypes = [_ADDRESS]
    library.onecopy_arena_enter.argtypes = [_ADDRESS, size]
    library.onecopy_arena_keep.argtypes = [slot]
    library.onecopy_arena_usage.argtypes, library.onecopy_arena_usage.restype = [ctypes.POINTER(_Usage)], None
    library.onecopy_arena_leave.argtypes, library.onecopy_arena_leave.restype = [], size
    library.onecopy_arena_be_strict.restype = None
    library.onecopy_arena_kept_bytes.restype = size
    return Arena(library)


def _told(found: _Usage) -> Usage:
    return Usage(  # each by its name: with getattr in a loop this would take longer than the run's other costs
        found.peak_bytes, found.footprint_bytes, found.spilled_bytes, found.live_blocks, found.live_bytes,
        found.refused_bytes,
    )  # fmt: skip


def _check(code: int, what: str) -> None:
    if not code:
        return
    reasons = {
        errno.EBUSY: "a slot is entered, and not left yet",
        errno.EBADF: "it belongs to the process that forked this one",
        errno.EINVAL: "it is detached, or not in the state for it",
    }
    if code in reasons:
        raise RuntimeError(f"cannot {what}: {reasons[code]}")
    raise OSError(code, f"cannot {what}: {os.strerror(code)}")
