"""What makes a container, where this process may make it: a control group with a memory limit, and namespaces."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Container:
    """Namespaces of mounts and processes of its own, on this machine's files: 64 MB in /dev/shm, as docker has it.

    Attributes:
        folder: of the machine, found at the same place, and readable to all.
        user: as whom programs run.
        is_read_only: whether nothing but /dev/shm can be written to.
        cores: which programs may use, such as ``"0"``; empty: all.
    """

    folder: Path
    user: int = 0
    is_read_only: bool = False
    cores: str = ""

    def command(self, *program: str) -> list[str]:
        """Return a command that runs a program as the first process; skip the test where that cannot be."""
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        if os.getuid() != 0:
            unshare += ["--map-root-user"]
        probe = subprocess.run([*unshare, "sh", "-c", self._setup("true")], capture_output=True, text=True)
        if probe.returncode:
            pytest.skip(f"no such container can be made here: {probe.stderr.strip()}")
        return [*unshare, "sh", "-c", self._setup(shlex.join(program))]

    def run(self, *program: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, without a home or a runtime folder."""
        env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment}
        return subprocess.run(self.command(*program), capture_output=True, text=True, timeout=100, env=env)

    def _setup(self, program: str) -> str:
        lines = ["set -e", "mount -t tmpfs -o size=64m,mode=1777 shm /dev/shm"]
        if self.user:
            lines += self._opened()
        if self.is_read_only:
            lines += [f"mount -o remount,bind,ro {mount}" for mount in ("/", "/tmp") if os.path.ismount(mount)]
        if self.cores:
            program = f"taskset --cpu-list {self.cores} {program}"
        if self.user:
            program = f"setpriv --reuid {self.user} --regid {self.user} --clear-groups {program}"
        return "\n".join([*lines, f"exec {program}"])

    def _opened(self) -> list[str]:
        """Let every user find the folder and the interpreter, though they may lie where only root comes."""
        lines = []
        for kept in (self.folder, Path(sys.base_prefix).resolve()):
            closed = next((one for one in reversed(kept.parents) if not one.stat().st_mode & 1), None)
            if closed is not None:
                aside = shlex.quote(f"/mnt/{kept.name}")
                lines += [
                    "mountpoint -q /mnt || mount -t tmpfs aside /mnt", f"mkdir {aside}",
                    f"mount --bind {shlex.quote(str(kept))} {aside}",
                    f"mount -t tmpfs -o mode=755 over {shlex.quote(str(closed))}",
                    f"mkdir -p {shlex.quote(str(kept))}", f"mount --bind {aside} {shlex.quote(str(kept))}",
                ]  # fmt: skip
        return lines
