"""Memory of processes, measured as it must be: PSS, never RSS, and outside the reactor's thread.

Reading ``smaps_rollup`` makes the kernel walk all page tables of a process, which takes milliseconds. A thread
does it; its results come back through a descriptor that the reactor watches.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple


class ProcessMemory(NamedTuple):
    """What one process takes, in bytes.

    ``pss``: its part of anonymous and file pages, shared ones divided among their sharers. ``private``: its
    part of anonymous pages alone. Pages of regions count to neither: they are shared memory, counted once.
    """

    pss: int
    private: int


class Sampler:
    """Measures on request; `fileno` is readable when `results` has something to call.

    The thread starts with the first request and ends with `close`.
    """

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[tuple[list[int], Callable[[dict[int, ProcessMemory]], None]] | None]
        self._requests = queue.SimpleQueue()
        self._done: deque[Callable[[], None]] = deque()
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self._eventfd

    def measure(self, pids: list[int], then: Callable[[dict[int, ProcessMemory]], None]) -> None:
        """Measure these processes, then have ``then`` called by `results`; the vanished are left out."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="onecopy-sampler", daemon=True)
            self._thread.start()
        self._requests.put((pids, then))

    def results(self) -> None:
        """Call back everyone whose measurement is done."""
        os.eventfd_read(self._eventfd)
        while self._done:
            self._done.popleft()()

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._requests.put(None)
            self._thread.join()
        os.close(self._eventfd)

    def _run(self) -> None:
        while (request := self._requests.get()) is not None:
            pids, then = request
            measured = {pid: memory for pid in pids if (memory := read_memory(pid)) is not None}
            self._done.append(lambda then=then, measured=measured: then(measured))
            os.eventfd_write(self._eventfd, 1)


def read_memory(pid: int) -> ProcessMemory | None:
    """Return what a process takes, or None if it is gone or not ours to look at."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            lines = file.read().splitlines()[1:]
    except OSError:
        return None
    kilobytes = {name.rstrip(":"): int(value) for name, value, *_ in map(str.split, lines)}
    private = kilobytes.get("Pss_Anon", 0) * 1024
    return ProcessMemory(private + kilobytes.get("Pss_File", 0) * 1024, private)
