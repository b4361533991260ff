"""Where memory came from: which file a piece of memory is a mapping of, if its pages are still the file's own.

Weights that were loaded lie in a mapping of their file more often than not: safetensors and ``torch.load`` map,
and so does whatever stands on them. Such a piece need not be read by this process at all: the kernel can copy it
from file to region, or the file itself can be the region.

The kernel tells, in ``/proc/self/smaps``, which file stands behind a range of addresses and whether a page of it
was written here. A range of which nothing was written is the file, byte for byte.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

_MAPS = "/proc/self/maps"
_SMAPS = "/proc/self/smaps"


class FileRange(NamedTuple):
    """Bytes of a file."""

    path: str
    offset_bytes: int
    size_bytes: int


class _Range(NamedTuple):
    """Addresses behind which a file stands, as ``/proc`` tells."""

    start: int
    end: int
    offset_bytes: int
    device: str
    inode: int
    path: str
    is_shared: bool


def file_ranges(memory: Iterable[tuple[int, int]]) -> list[FileRange | None]:
    """Return for each address and size in bytes the bytes of the file that lie there, None for other memory.

    None also where a page of the mapping was written by this process, or where the file has no name any more.
    """
    pieces = list(memory)
    ranges = _mapped_files(_MAPS, check_pages=False)
    if not any(_range_of(ranges, address, size_bytes) for address, size_bytes in pieces):
        return [None] * len(pieces)
    ranges = _mapped_files(_SMAPS, check_pages=True)  # asks every page; takes milliseconds for each GB
    names: dict[tuple[str, str, int], bool] = {}
    found: list[FileRange | None] = []
    for address, size_bytes in pieces:
        within = _range_of(ranges, address, size_bytes)
        if within is not None:
            key = (within.path, within.device, within.inode)
            if key not in names:
                names[key] = _is_still_named(within)
            if not names[key]:
                within = None
        if within is None:
            found.append(None)
        else:
            offset_bytes = within.offset_bytes + address - within.start
            found.append(FileRange(within.path, offset_bytes, size_bytes))
    return found


def _range_of(ranges: list[_Range], address: int, size_bytes: int) -> _Range | None:
    index = bisect_right(ranges, address, key=lambda one: one.start) - 1
    if index >= 0 and address + size_bytes <= ranges[index].end:
        return ranges[index]
    return None


def _mapped_files(table: str, *, check_pages: bool) -> list[_Range]:
    """Return the ranges that are files, in the order of their addresses; with ``check_pages`` the unwritten."""
    ranges: list[_Range] = []
    last: _Range | None = None
    # A path may hold what Python would take for the end of a line; the kernel writes "\n" alone.
    with open(table, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for line in file:
            head, _, rest = line.partition(" ")
            if head[-1] != ":":
                last = _parse(head, rest)
                if last is not None:
                    ranges.append(last)
            elif check_pages and last is not None and not last.is_shared and _tells_of_writes(head, rest):
                ranges.pop()
                last = None
    return ranges


def _tells_of_writes(head: str, rest: str) -> bool:
    """Whether a line of smaps says that pages of a private mapping are this process's own."""
    return head in ("Anonymous:", "Swap:") and rest.split()[0] != "0"


def _parse(addresses: str, rest: str) -> _Range | None:
    permissions, offset, device, inode, *path = rest.rstrip("\n").split(maxsplit=4)
    if inode == "0" or not path or permissions[0] != "r":
        return None
    start, end = (int(address, 16) for address in addresses.split("-"))
    # The kernel writes a newline in a path as an octal number, and nothing else.
    name = path[0].replace("\\012", "\n")
    return _Range(start, end, int(offset, 16), device, int(inode), name, permissions[3] == "s")


def _is_still_named(mapped: _Range) -> bool:
    """Whether the path leads to the file that is mapped: it may have been removed, or replaced by another."""
    try:
        found = os.stat(mapped.path)
    except OSError:
        return False
    major, minor = (int(number, 16) for number in mapped.device.split(":"))
    return (found.st_ino, found.st_dev) == (mapped.inode, os.makedev(major, minor))
