"""A control group with a memory limit, as a container has one, where this process may make one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from leftovers import wait_until

#: Where memory is controlled, in version 1 and 2, and the files of a group's limit and of its kills there.
_KINDS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.oom_control"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.events"),
)


class MemoryGroup:
    """A control group."""

    def __init__(self, folder: Path, limit: str, kills: str) -> None:
        self._folder = folder
        self._limit = limit
        self._kills = kills

    def limit_to(self, size_bytes: int) -> None:
        """Let its processes take so much memory together."""
        (self._folder / self._limit).write_text(str(size_bytes))

    @property
    def procs(self) -> str:
        """The file into which a process writes its pid to join."""
        return str(self._folder / "cgroup.procs")

    @property
    def kills(self) -> int:
        """How many of its processes the kernel has killed because there was no memory left."""
        lines = (self._folder / self._kills).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup]:
    """Make one; skip the test where that is not permitted."""
    for root, limit, kills in _KINDS:
        folder = root / f"onecopy-test-{os.getpid()}"
        try:
            folder.mkdir()
            group = MemoryGroup(folder, limit, kills)
            group.limit_to(limit_bytes)
        except OSError:
            if folder.exists():
                folder.rmdir()
            continue
        try:
            yield group
        finally:
            assert wait_until(lambda folder=folder: not (folder / "cgroup.procs").read_text())
            folder.rmdir()
        return
    pytest.skip("no control group with a memory limit can be made here")
