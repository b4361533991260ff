"""Host memory: anonymous files that have no name anywhere, are handed out by descriptor, and can be sealed.

Sealing is refused by the kernel as long as any process has the file mapped shared and writable, even a
forked child that merely inherited the mapping. Whoever fills a region therefore writes into it (`pwrite`,
`sendfile`) and never maps it. Private mappings do not count: a sealed region can still be mapped so that
each process may write its own copy of a page.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from functools import cache
from typing import Final

from .base import Region, RegionBusy, RegionRefused, check_grows, check_open, check_size
from .machine import LinuxMachine, Machine

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

BLOCK_BYTES = 512
"""The unit of ``st_blocks``, whatever the page size."""

_PUNCH_HOLE: Final = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE and FALLOC_FL_KEEP_SIZE, from <linux/falloc.h>


class MemfdStore:
    """Regions of host memory, each a sealable memfd.

    Args:
        machine: tells how much memory is available; default: the one that this process runs on.
    """

    def __init__(self, machine: Machine | None = None) -> None:
        self._machine = machine or LinuxMachine()

    def __repr__(self) -> str:
        return "<MemfdStore>"

    def create(self, size_bytes: int, name: str, *, resizable: bool = False) -> Region:
        """Make an empty memfd of the given size; see `RegionStore.create`."""
        check_size(size_bytes)
        free_bytes = self._machine.available_bytes()
        if size_bytes > free_bytes:
            raise RegionRefused(name, size_bytes, free_bytes)
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size_bytes)
            if not resizable:
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        except BaseException:
            os.close(fd)
            raise
        return Region(fd=fd, size_bytes=size_bytes, sealed=False, name=name)

    def grow(self, region: Region, size_bytes: int) -> None:
        """Extend the file; see `RegionStore.grow`."""
        check_open(region)
        check_grows(region, size_bytes)
        more_bytes, free_bytes = size_bytes - region.size_bytes, self._machine.available_bytes()
        if more_bytes > free_bytes:
            raise RegionRefused(region.name, more_bytes, free_bytes)
        os.ftruncate(region.fd, size_bytes)
        region.size_bytes = size_bytes

    def empty(self, region: Region, kept_bytes: int) -> None:
        """Punch a hole from there to the end; see `RegionStore.empty`."""
        check_open(region)
        start_bytes = -(-kept_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        if start_bytes < region.size_bytes:
            _punch_hole(region.fd, start_bytes, region.size_bytes - start_bytes)

    def seal(self, region: Region) -> None:
        """Seal against writing, growing, shrinking and further sealing; see `RegionStore.seal`."""
        check_open(region)
        if region.sealed:
            return
        try:
            fcntl.fcntl(region.fd, fcntl.F_ADD_SEALS, SEALS)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise RegionBusy(
                f"the region {region.name!r} cannot be sealed: a process, perhaps a forked child, still "
                f"has it mapped shared and writable; fill regions by writing into them"
            ) from error
        region.sealed = True

    def allocated_bytes(self, region: Region) -> int:
        """Return the size of the pages that exist; see `RegionStore.allocated_bytes`."""
        check_open(region)
        return os.fstat(region.fd).st_blocks * BLOCK_BYTES

    def close(self, region: Region) -> None:
        """Close the descriptor; see `RegionStore.close`."""
        if region.is_open:
            fd, region.fd = region.fd, -1
            os.close(fd)


def _punch_hole(fd: int, offset_bytes: int, size_bytes: int) -> None:
    """Call fallocate(2), which the `os` module does not have."""
    if _fallocate()(fd, _PUNCH_HOLE, offset_bytes, size_bytes):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@cache  # each time a library is opened ctypes makes classes for it, which are cycles
def _fallocate() -> Callable[[int, int, int, int], int]:
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return fallocate
