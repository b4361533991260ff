"""A pool's memory, looked at from outside: from /proc alone, without asking the pool."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Self

import psutil
from onecopy.pool.supervisor.sampler import read_memory

_BLOCK_BYTES = 512
_LOOK_EVERY_S = 0.02


def memory_of(supervisor_pid: int) -> int:
    """Return what a pool takes in bytes: private pages of its processes, and the blocks of every region once."""
    total_bytes = _regions_bytes(supervisor_pid)
    with contextlib.suppress(psutil.NoSuchProcess):
        supervisor = psutil.Process(supervisor_pid)
        for process in [supervisor, *supervisor.children(recursive=True)]:
            if memory := read_memory(process.pid):
                total_bytes += memory.private
    return total_bytes


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
    """Looks at a pool all the time, in a thread.

    Attributes:
        most_bytes: the most that it has seen.
        looks: how often it has looked.
    """

    def __init__(self, supervisor_pid: int) -> None:
        self.most_bytes = 0
        self.looks = 0
        self._pid = supervisor_pid
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(_LOOK_EVERY_S):
            self.most_bytes = max(self.most_bytes, memory_of(self._pid))
            self.looks += 1
