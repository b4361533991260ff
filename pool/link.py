"""A client's conversation with a supervisor, message by message, shared by all threads of the process.

Any thread may send. One at a time receives, see `receiving`, and what it receives lies here until it takes it.
The lock is held for each send, never while waiting. Whoever collects garbage may be in the midst of anything, with
that lock held. So what is to be sent for something that nobody refers to any more is only left here, and sent by
whoever has the lock, or had it last.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from ..protocol.messages import Hello, Message
from ..protocol.tensors import Buffer

#: Why nothing will come any more: the supervisor's process has ended, or a tcp connection to it is broken.
Loss = Literal["", "gone", "lost"]


class Arrived(NamedTuple):
    """A message and its buffers."""

    message: Message
    buffers: list[Any]


class Link(ABC):
    """What both kinds have in common."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: deque[Message] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_closed = False

    def greet(self, hello: Hello, timeout_s: float) -> Message | None:
        """Send the first message and return the answer, or None if there is none in time."""
        self.send(hello)
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0 and not self.sleep(left_s * 1000):
            self.read()
            if (arrived := self.take()) is not None:
                return arrived.message
        return None

    def send(self, message: Message, buffers: Sequence[Buffer] = ()) -> bool:
        """Send a message, or see to it that it will be sent; false if there is no room for it now.

        The buffers may be changed as soon as this returns.

        Raises:
            InvalidRequest: the other side would refuse it: a limit is exceeded.
        """
        with self._lock:
            is_sent = self._is_closed or self._try_send(message, buffers)
        if self._left:
            self._send_what_is_left()
        return is_sent

    def leave(self, message: Message) -> None:
        """Have a message sent without waiting for anything, now or soon; also while garbage is collected."""
        self._left.append(message)
        self._send_what_is_left()

    def read(self) -> bool:
        """Read what has arrived, for `take`; return whether there may be more."""
        has_more = not self._is_closed and self._read()
        if self._left:
            self._send_what_is_left()
        return has_more

    @property
    def has_unsent(self) -> bool:
        """Whether something waits until somebody sleeps here, or sends or reads."""
        return False

    @abstractmethod
    def take(self) -> Arrived | None:
        """Return the next of the messages that were read, if there is one.

        Raises:
            InvalidRequest: what came is no message; nothing that follows can be trusted.
        """

    @abstractmethod
    def sleep(self, timeout_ms: float | None) -> Loss:
        """Return when something may have arrived, or after so many milliseconds; tell of a lost other end."""

    def wake_up(self) -> None:
        """Have whoever sleeps look around."""
        if not self._is_closed:
            os.eventfd_write(self._wake, 1)

    def close(self, farewell: Message) -> None:
        """Say a last word, unless it was said. Nobody may sleep here any more."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._close(farewell)
                os.close(self._wake)

    def _send_what_is_left(self) -> None:
        """Send it if nobody has the lock: whoever has will look here after giving it back."""
        while self._left:
            held: list[bool] = []  # noted by the very call that takes it, lest a signal handler raises in between
            try:
                held.extend(map(self._lock.acquire, (False,)))
                while held[0] and self._left:
                    if not self._is_closed and not self._try_send(self._left[0], ()):
                        return  # whoever sends or reads next has another try
                    self._left.popleft()
                if not held[0]:
                    return
            finally:
                if held == [True]:
                    self._lock.release()

    def _was_woken(self) -> None:
        """Take back what `wake_up` has written."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    @abstractmethod
    def _try_send(self, message: Message, buffers: Sequence[Buffer]) -> bool:
        """As `send`, with the lock held."""

    @abstractmethod
    def _read(self) -> bool:
        """As `read`."""

    @abstractmethod
    def _close(self, farewell: Message) -> None:
        """As `close`, with the lock held."""
