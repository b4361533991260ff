"""A pool's memory, looked at from outside: from /proc alone, without asking the pool."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Self

import psutil
from onecopy.pool.supervisor.sampler import read_memory

_BLOCK_BYTES = 512
_LOOK_EVERY_S = 0.005


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
