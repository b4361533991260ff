"""Work that would hold the reactor up, done by a thread of its own, one piece after the other.

What comes of it returns to the reactor's thread through a descriptor that the reactor watches.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from .reactor import Reactor

_T = TypeVar("_T")
#: Does a piece of work; returns what tells its result.
_Work: TypeAlias = Callable[[], Callable[[], None]]


class Background:
    """A thread; it starts with the first piece of work and ends with `close`.

    Args:
        name: the thread's, for people.
        reactor: in whose thread results are told.
    """

    def __init__(self, name: str, reactor: Reactor) -> None:
        self._name = name
        self._reactor = reactor
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._done: deque[Callable[[], None]] = deque()
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None
        reactor.watch(self._eventfd, self._tell)

    def do(self, work: Callable[[], _T], then: Callable[[_T], None]) -> None:
        """Have ``work``, which raises nothing, done by the thread, and ``then`` called with what it returned."""

        def both() -> Callable[[], None]:
            result = work()
            return lambda: then(result)

        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._work.put(both)

    def close(self) -> None:
        """Wait until all work is done, which should be little now; results are told to nobody any more."""
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()
        self._reactor.forget(self._eventfd)
        os.close(self._eventfd)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            self._done.append(work())
            os.eventfd_write(self._eventfd, 1)

    def _tell(self) -> None:
        os.eventfd_read(self._eventfd)
        while self._done:
            self._done.popleft()()
