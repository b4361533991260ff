"""A control group with a memory limit, where this process may make one: the kernel kills who needs more."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

#: Where memory is controlled, in version 1 and 2, and the files of a group's limit and of its kills there.
_KINDS: Final = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.oom_control"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.events"),
)


class MemoryGroup:
    """A control group; the processes in it may take so much more memory together than they had before.

    Raises:
        OSError: none can be made here.
    """

    def __init__(self, limit_bytes: int) -> None:
        for root, limit, kills in _KINDS:
            folder = root / f"onecopy-soak-{os.getpid()}"
            try:
                folder.mkdir()
            except OSError:
                continue
            try:
                (folder / limit).write_text(str(limit_bytes))
            except OSError:
                folder.rmdir()
                continue
            self._folder, self._kills, self._around = folder, kills, root / "cgroup.procs"
            return
        raise OSError("no control group with a memory limit can be made here")

    @property
    def kills(self) -> int:
        """How many processes the kernel has killed in it."""
        lines = (self._folder / self._kills).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def add(self, pid: int) -> None:
        """Put a process into it; what it takes from now on counts."""
        with contextlib.suppress(OSError):  # it is gone
            (self._folder / "cgroup.procs").write_text(str(pid))

    def release(self) -> None:
        """Let go of all that are in it."""
        for pid in (self._folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                self._around.write_text(pid)

    def remove(self) -> bool:
        """Let go of all, and remove it; false if one that was killed a moment ago is in it yet."""
        self.release()
        try:
            self._folder.rmdir()
        except OSError:
            return False
        return True
