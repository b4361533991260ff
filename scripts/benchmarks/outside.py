"""A pool's memory, looked at from outside: from /proc alone, without asking the pool."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import Self

import psutil
from onecopy.pool.supervisor.sampler import read_memory

_BLOCK_BYTES = 512
_LOOK_EVERY_S = 0.005


def memory_of(supervisor_pid: int) -> int:
    """Return what a pool takes in bytes: private pages of its processes, and every region once.

    Of a region in memory its blocks count; of one that is a file without a name all that some process has mapped,
    as if every page of it were there.
    """
    total_bytes = _regions_bytes(supervisor_pid)
    mapped: dict[str, int] = {}
    for pid in _pids_of(supervisor_pid):
        _add_nameless_files(pid, mapped)
        if memory := read_memory(pid):
            total_bytes += memory.private
    return total_bytes + sum(mapped.values())


def memory_of_stopped(supervisor_pid: int) -> int:
    """Return what a pool takes at one moment: it is stopped, looked at, and goes on.

    Without that, what one process gives up while others are looked at, for another to take, would count twice.
    """
    pids = _pids_of(supervisor_pid)
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        return memory_of(supervisor_pid)
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _pids_of(supervisor_pid: int) -> list[int]:
    """Return the processes of a pool; the supervisor is first, without which there are no new ones."""
    try:
        supervisor = psutil.Process(supervisor_pid)
        return [supervisor_pid, *(process.pid for process in supervisor.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def _add_nameless_files(pid: int, mapped: dict[str, int]) -> None:
    """Add the files that a process has mapped and that have no name, with what is mapped of each."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8") as file:
        for line in file:
            if line.endswith(" (deleted)\n") and "/memfd:" not in line:
                addresses, _, offset, device, inode, _ = line.split(maxsplit=5)
                start, end = (int(address, 16) for address in addresses.split("-"))
                key = f"{device} {inode}"
                mapped[key] = max(mapped.get(key, 0), int(offset, 16) + end - start)


def _regions_bytes(pid: int) -> int:
    """Return the blocks of all memfds that a process has open, each once."""
    blocks: dict[int, int] = {}
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                if os.readlink(f"{folder}/{name}").startswith("/memfd:"):
                    status = os.stat(f"{folder}/{name}")
                    blocks[status.st_ino] = status.st_blocks
    return sum(blocks.values()) * _BLOCK_BYTES


class Watch:
    """Looks at a figure all the time, in a thread.

    Args:
        look: returns it.

    Attributes:
        before, most: what it was in the beginning, and the most that was seen.
        looks: how often it was looked at.
    """

    def __init__(self, look: Callable[[], float]) -> None:
        self._look = look
        self.before = self.most = look()
        self.looks = 1
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    @property
    def taken(self) -> float:
        """How much more there was than in the beginning."""
        return self.most - self.before

    def _run(self) -> None:
        while not self._is_over.wait(_LOOK_EVERY_S):
            self.most = max(self.most, self._look())
            self.looks += 1
