"""Counting what a test could leave behind: processes, descriptors, socket files, shared memory."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

#: Processes of a pool that was killed end by themselves; so long they may take.
_GRACE_S = 5.0


@dataclass(frozen=True)
class Census:
    """What there is at one moment."""

    processes: frozenset[int]
    descriptors: dict[int, str]
    shared_memory: frozenset[str]

    @classmethod
    def take(cls, runtime: Path) -> Census:
        """Count."""
        return cls(pool_processes(runtime), _descriptors(), frozenset(os.listdir("/dev/shm")))

    def check_nothing_new(self, runtime: Path) -> None:
        """Fail if there is more now, after a moment for what is on its way out."""
        wait_until(lambda: not self._new(runtime), _GRACE_S)
        new = self._new(runtime)
        assert not new, f"left behind: {'; '.join(new)}"

    def _new(self, runtime: Path) -> list[str]:
        now = Census.take(runtime)
        new = [f"process {pid} {_command(pid)}" for pid in now.processes - self.processes]
        new += [
            f"descriptor {fd} -> {target}"
            for fd, target in now.descriptors.items()
            if fd not in self.descriptors and not _is_of_a_library(target)
        ]
        new += [f"/dev/shm/{name}" for name in now.shared_memory - self.shared_memory]
        for folder, folders, files in os.walk(runtime):  # which minds nothing that goes meanwhile
            new += [
                f"file {folder}/{name}"
                for name in (*folders, *files)
                if f"{folder}/{name}" != f"{runtime}/onecopy"
            ]
        return new


def pool_processes(runtime: Path | None = None) -> frozenset[int]:
    """Return the pool processes that descend from this one, or were started with this runtime folder."""
    mine = {child.pid for child in psutil.Process().children(recursive=True)}
    if runtime is not None:
        marker = f"XDG_RUNTIME_DIR={runtime}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if int(process.name) != os.getpid() and marker in (process / "environ").read_bytes().split(b"\0"):
                    mine.add(int(process.name))
            except OSError:
                continue
    return frozenset(pid for pid in mine if _is_alive(pid))


def wait_until(condition, timeout_s: float = 20.0, interval_s: float = 0.005) -> bool:
    """Wait for a condition; return whether it came true."""
    end = time.monotonic() + timeout_s
    while not (result := condition()) and time.monotonic() < end:
        time.sleep(interval_s)
    return bool(result)


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _command(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return "(gone)"


def _descriptors() -> dict[int, str]:
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    return found


def _is_of_a_library(target: str) -> bool:
    """Whether a descriptor is one that a library opens once and keeps, such as torch's own files."""
    return target.startswith(("/usr/", "/proc/", "/dev/urandom")) or "site-packages" in target
