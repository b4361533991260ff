"""Regions that exist only as Python objects, so that everything about memory can be tested without any.

Keeps the same contract as the real stores. What the kernel does for those, and other processes do to them,
is done here by methods: `write` and `read` stand for ``pwrite`` and ``pread``, `map_writably` and `unmap`
for a process that maps a region.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from .base import Region, RegionBusy, RegionRefused, check_grows, check_open, check_size

PAGE_BYTES = 4096


@dataclass(slots=True)
class _Bytes:
    """What lies behind a descriptor."""

    size_bytes: int
    resizable: bool = False
    sealed: bool = False
    writable_mappings: int = 0
    #: Only pages that were written exist.
    pages: dict[int, bytearray] = field(default_factory=dict[int, bytearray])


class FakeStore:
    """Regions in a dict, with a budget.

    Args:
        capacity_bytes: how much memory there is. What regions have allocated is no longer available.
    """

    def __init__(self, capacity_bytes: int = 1 << 40) -> None:
        self.capacity_bytes = capacity_bytes
        # No descriptor of a real process is that large: one that leaks into a system call fails.
        self._next_fd = count(1_000_000)
        self._files: dict[int, _Bytes] = {}

    def __repr__(self) -> str:
        return f"<FakeStore, {len(self._files)} regions, {self.available_bytes:,} bytes available>"

    @property
    def available_bytes(self) -> int:
        """How much may still be asked for."""
        return self.capacity_bytes - sum(len(file.pages) * PAGE_BYTES for file in self._files.values())

    @property
    def open_fds(self) -> frozenset[int]:
        """The descriptors that nobody closed: empty where nothing leaked."""
        return frozenset(self._files)

    def create(self, size_bytes: int, name: str, *, resizable: bool = False) -> Region:
        """Make an empty region; see `RegionStore.create`."""
        check_size(size_bytes)
        if size_bytes > self.available_bytes:
            raise RegionRefused(name, size_bytes, self.available_bytes)
        fd = next(self._next_fd)
        self._files[fd] = _Bytes(size_bytes, resizable)
        return Region(fd=fd, size_bytes=size_bytes, sealed=False, name=name)

    def grow(self, region: Region, size_bytes: int) -> None:
        """Make a region larger; see `RegionStore.grow`."""
        check_open(region)
        check_grows(region, size_bytes)
        file = self._files[region.fd]
        if not file.resizable:
            raise PermissionError(f"the region {region.name!r} keeps its size")
        if size_bytes - region.size_bytes > self.available_bytes:
            raise RegionRefused(region.name, size_bytes - region.size_bytes, self.available_bytes)
        file.size_bytes = region.size_bytes = size_bytes

    def empty(self, region: Region, kept_bytes: int) -> None:
        """Forget pages; see `RegionStore.empty`."""
        check_open(region)
        file = self._files[region.fd]
        if file.sealed:
            raise PermissionError(f"the region {region.name!r} is sealed")
        file.pages = {page: content for page, content in file.pages.items() if page * PAGE_BYTES < kept_bytes}

    def seal(self, region: Region) -> None:
        """Make a region unchangeable; see `RegionStore.seal`."""
        check_open(region)
        file = self._files[region.fd]
        if file.writable_mappings:
            raise RegionBusy(f"the region {region.name!r} cannot be sealed: it is still mapped writably")
        file.sealed = region.sealed = True

    def allocated_bytes(self, region: Region) -> int:
        """Return the size of the pages that were written; see `RegionStore.allocated_bytes`."""
        check_open(region)
        return len(self._files[region.fd].pages) * PAGE_BYTES

    def close(self, region: Region) -> None:
        """Forget a region; see `RegionStore.close`."""
        if region.is_open:
            del self._files[region.fd]
            region.fd = -1

    def write(self, fd: int, data: bytes, offset_bytes: int = 0) -> None:
        """Change content as another process would.

        Raises:
            PermissionError: the region is sealed, or the write would make it larger.
        """
        file = self._files[fd]
        if file.sealed or offset_bytes + len(data) > file.size_bytes:
            raise PermissionError("the region is sealed, or too small")
        for at, byte in enumerate(data, start=offset_bytes):
            page = file.pages.setdefault(at // PAGE_BYTES, bytearray(PAGE_BYTES))
            page[at % PAGE_BYTES] = byte

    def read(self, fd: int, size_bytes: int, offset_bytes: int = 0) -> bytes:
        """Return content; what was never written reads as zeros, what is beyond the end not at all."""
        file = self._files[fd]
        end_bytes = min(offset_bytes + size_bytes, file.size_bytes)
        empty = bytes(PAGE_BYTES)
        return bytes(
            file.pages.get(at // PAGE_BYTES, empty)[at % PAGE_BYTES] for at in range(offset_bytes, end_bytes)
        )

    def map_writably(self, fd: int) -> None:
        """Map a region shared and writable, as another process would."""
        if self._files[fd].sealed:
            raise PermissionError("the region is sealed")
        self._files[fd].writable_mappings += 1

    def unmap(self, fd: int) -> None:
        """End one such mapping."""
        self._files[fd].writable_mappings -= 1
