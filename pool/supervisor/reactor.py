"""One thread, one epoll: descriptors, timers and signals become calls.

A turn begins with what was to be called soon, goes on with what has come, and ends with what is to be done for all
of that at once, such as sending. Only then the loop sleeps.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ..spinning import Spinner

_NEVER = float("inf")
_READ = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR


class Writer(Protocol):
    """Something with a descriptor and output that waits for room."""

    def fileno(self) -> int: ...  # noqa: D102

    @property
    def has_unsent(self) -> bool: ...  # noqa: D102


class Reactor:
    """Calls whoever is concerned; `run` returns after `stop`.

    Args:
        may_spin: tells whether it may look for what comes again and again, for a moment, before it sleeps.
    """

    def __init__(self, may_spin: Callable[[], bool] = lambda: False) -> None:
        self._epoll = select.epoll()
        self._spinner = Spinner(self._epoll.poll, may_spin)
        self._readers: dict[int, Callable[[], None]] = {}
        self._flushers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Writer] = {}
        self._soon: list[Callable[[], None]] = []
        self._enders: list[Callable[[], None]] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._is_running = False

    def watch(self, fd: int, read: Callable[[], None], flush: Callable[[], None] | None = None) -> None:
        """Call ``read`` whenever the descriptor is readable or at its end."""
        self._readers[fd] = read
        if flush is not None:
            self._flushers[fd] = flush
        self._epoll.register(fd, _READ)

    def wants_to_write(self, writer: Writer) -> None:
        """Call the ``flush`` of this descriptor as long as it has something unsent."""
        fd = writer.fileno()
        if writer.has_unsent and fd in self._readers and fd not in self._writers:
            self._writers[fd] = writer
            self._epoll.modify(fd, _READ | select.EPOLLOUT)

    def forget(self, fd: int) -> None:
        """Watch a descriptor no more; no matter if it was not watched."""
        if self._readers.pop(fd, None) is not None:
            self._flushers.pop(fd, None)
            self._writers.pop(fd, None)
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def drain(self, fd: int) -> Iterator[bytes]:
        """Yield what can be read of a descriptor without waiting; at its end it is watched no more."""
        while True:
            try:
                data = os.read(fd, 65536)
            except OSError:
                return
            if not data:
                self.forget(fd)
                return
            yield data

    def call_soon(self, call: Callable[[], None]) -> None:
        """Call once, in the next turn, and do not sleep before: there may be more to do than descriptors tell."""
        self._soon.append(call)

    def end_with(self, end: Callable[[], None]) -> None:
        """Call ``end`` in every turn after everything that has come was handled."""
        self._enders.append(end)

    def call_at(self, when: float, call: Callable[[], None]) -> None:
        """Call once, at this time of the monotonic clock."""
        heapq.heappush(self._timers, (when, next(self._serial), call))

    def on_signals(self, numbers: tuple[int, ...], call: Callable[[int], None]) -> None:
        """Call with the number when one of these signals came; never in the middle of something else."""
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in numbers:
            signal.signal(number, lambda _number, _frame: None)  # the wakeup descriptor tells which came
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)

        def read() -> None:
            for number in os.read(read_fd, 256):
                if number in numbers:
                    call(number)

        self.watch(read_fd, read)

    def run(self, next_wake: Callable[[], float], woken: Callable[[], None]) -> None:
        """Loop until `stop`.

        Args:
            next_wake: asked in every turn when ``woken`` is due, on the monotonic clock.
            woken: called when that time has come.
        """
        self._is_running = True
        while self._is_running:
            soon, self._soon = self._soon, []
            for call in soon:
                call()
            self._end_turn()
            wake_at = next_wake()
            if self._timers and self._timers[0][0] < wake_at:
                wake_at = self._timers[0][0]
            timeout_s: float | None = None
            if wake_at != _NEVER:
                timeout_s = max(0.0, wake_at - time.monotonic())
            for fd, mask in self._spinner.wait(0 if self._soon else timeout_s):
                self._call(fd, mask)
            if wake_at != _NEVER:
                self._call_timers()
                if next_wake() <= time.monotonic():
                    woken()
        self._end_turn()

    def _end_turn(self) -> None:
        for end in self._enders:
            end()

    def _call_timers(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()

    def stop(self) -> None:
        """Let `run` return."""
        self._is_running = False

    def close(self) -> None:
        """Close the epoll."""
        self._epoll.close()

    def _call(self, fd: int, mask: int) -> None:
        if mask & select.EPOLLOUT and fd in self._writers:
            with contextlib.suppress(OSError):
                self._flushers[fd]()
            if fd in self._writers and not self._writers[fd].has_unsent:
                del self._writers[fd]
                self._epoll.modify(fd, _READ)
        read: Any = self._readers.get(fd)
        if read is not None and mask & _READ:
            read()
