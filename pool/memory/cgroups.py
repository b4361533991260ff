"""Control groups: the limits that a container or the system's service manager sets to this process.

A group's limit holds for everything in it, the groups below it included, so each group on the way to the top
counts. Version 2 has one tree of groups, version 1 one for each controller, and a machine may have both. What of a
tree can be seen is what is mounted: in a container that is often its own group alone, whose name is then ``/``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, NamedTuple


class Mount(NamedTuple):
    """A mounted file system.

    Attributes:
        device: its number, ``major:minor``, as `os.stat` has it.
        root: which folder of it is mounted.
        point: where.
        kind: such as ``ext4``.
        options: its own, not those of the mount.
    """

    device: str
    root: str
    point: str
    kind: str
    options: tuple[str, ...]


class MemoryGroup(NamedTuple):
    """How much memory a group may take, and takes without what the kernel can drop at once, in bytes."""

    limit_bytes: int
    used_bytes: int


class _Dialect(NamedTuple):
    """How a version names what it tells of memory."""

    limit: str
    used: str
    cached: tuple[str, ...]


_VERSION_1: Final = _Dialect(
    "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)
_VERSION_2: Final = _Dialect("memory.max", "memory.current", ("inactive_file", "active_file"))
#: Version 1 has no word for "no limit", but the largest number of whole pages.
_NO_LIMIT_BYTES: Final = 1 << 62


class ControlGroups:
    """The groups around this process.

    Args:
        root: the folder in which ``proc`` and the mounted trees are found.
    """

    def __init__(self, root: str = "/") -> None:
        self._root = root
        self._mounts = [one for one in mounts(root) if one.kind in ("cgroup", "cgroup2")]

    def memory(self) -> Iterator[MemoryGroup]:
        """Yield each group that limits memory, from the innermost outwards."""
        for folder, version in self._folders("memory"):
            dialect = _VERSION_1 if version == 1 else _VERSION_2
            limit_bytes = _number(os.path.join(folder, dialect.limit))
            if limit_bytes is not None and limit_bytes < _NO_LIMIT_BYTES:
                used_bytes = _number(os.path.join(folder, dialect.used)) or 0
                # Files that were read count as used, yet the kernel drops them first when memory runs short: a
                # weights file just read must not make its own region seem too large. Those that were read twice
                # are "active", and are dropped too; the machine's MemAvailable counts both in the same way.
                told = fields(os.path.join(folder, "memory.stat"))
                cached_bytes = sum(told.get(name, 0) for name in dialect.cached)
                yield MemoryGroup(limit_bytes, max(0, used_bytes - cached_bytes))

    def cores(self) -> Iterator[float]:
        """Yield how many cores' worth of time each group grants that limits it."""
        for folder, version in self._folders("cpu"):
            if version == 1:
                quota = _number(os.path.join(folder, "cpu.cfs_quota_us"))
                period = _number(os.path.join(folder, "cpu.cfs_period_us"))
            else:
                quota, period = _quota(read(os.path.join(folder, "cpu.max")))
            if quota and period:
                yield quota / period

    def _folders(self, controller: str) -> Iterator[tuple[str, int]]:
        """Yield the folders of this process's groups with this controller, and the version that they are of."""
        # Asked each time: a process can be moved to another group while it runs.
        for line in read(self._path("/proc/self/cgroup")).splitlines():
            _, controllers, path = line.split(":", 2)
            version = 1 if controllers else 2
            if version == 2 or controller in controllers.split(","):
                mount = self._mount_of(controller, version)
                if mount is not None:
                    yield from ((folder, version) for folder in self._upwards(mount, path))

    def _mount_of(self, controller: str, version: int) -> Mount | None:
        if version == 2:
            return next((one for one in self._mounts if one.kind == "cgroup2"), None)
        return next((one for one in self._mounts if one.kind == "cgroup" and controller in one.options), None)

    def _upwards(self, mount: Mount, path: str) -> Iterator[str]:
        """Yield the folders from a group up to the topmost that can be seen."""
        below = os.path.relpath(path, mount.root)
        if below == "." or below.startswith(".."):  # another part of the tree is mounted: its top is the nearest
            below = ""
        while below:
            yield os.path.join(self._path(mount.point), below)
            below = os.path.dirname(below)
        yield self._path(mount.point)

    def _path(self, path: str) -> str:
        return os.path.join(self._root, path.lstrip("/"))


def mounts(root: str = "/") -> list[Mount]:
    """Return what is mounted in this process's view; of one place, what was mounted last comes last."""
    found: list[Mount] = []
    for line in read(os.path.join(root, "proc/self/mountinfo")).splitlines():
        left, _, right = line.partition(" - ")
        device, below, point = left.split(" ")[2:5]
        kind, _, options = right.split(" ", 2)
        found.append(Mount(device, below, point, kind, tuple(options.split(","))))
    return found


def fields(path: str, skip: int = 0) -> dict[str, int]:
    """Return the numbers of a file whose lines are a name and a number, behind so many other words."""
    lines = (line.split()[skip:] for line in read(path).splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def read(path: str) -> str:
    """Return a file of the kernel's; empty if it cannot be read, as where a controller is switched off."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _number(path: str) -> int | None:
    """Return the number in a file; None if there is none, or a word such as ``max``, or -1 for no limit."""
    text = read(path)
    return int(text) if text.isdigit() else None


def _quota(text: str) -> tuple[int | None, int | None]:
    """Return quota and period of version 2's ``cpu.max``, in microseconds."""
    quota, _, period = text.partition(" ")
    return (int(quota), int(period)) if quota.isdigit() and period.isdigit() else (None, None)
