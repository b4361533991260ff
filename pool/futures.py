"""Futures whose waiter fetches the answer itself.

A `PoolFuture` is a `concurrent.futures.Future` in everything. The difference is who works: a thread that waits
in `result` reads the pool's socket in its own time slice, instead of being woken by another thread that did.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .connection import Connection


class PoolFuture(Future[Any]):
    """The future answer to one request.

    `cancel` succeeds as long as there is no answer, also while the model runs: the answer is then dropped.

    Attributes:
        number: that of the request.
        key: the model, or what else was asked for, and the method.
    """

    def __init__(self, connection: Connection, number: int, key: tuple[str, str]) -> None:
        super().__init__()
        self._connection = connection
        self.number = number
        self.key = key

    def __repr__(self) -> str:
        return f"<PoolFuture {self.number} of {self.key[0]}: {self._state.lower()}>"

    @property
    def condition(self) -> threading.Condition:
        """Notified when the answer is there."""
        return self._condition

    def result(self, timeout: float | None = None) -> Any:
        """Return what the model returned, waiting up to ``timeout`` seconds.

        Raises:
            TimeoutError: it is not there yet; the request goes on.
            CancelledError: it was cancelled.
            PoolError: why there is no result.
        """
        if not self.done():
            self._connection.wait(self, timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return why there is no result, or None if there is one; waits and raises as `result`."""
        if not self.done():
            self._connection.wait(self, timeout)
        return super().exception(0)

    def cancel(self) -> bool:
        """Give the answer up; false if it is there already."""
        if self.done():
            return self.cancelled()
        cancelled = super().cancel()
        if cancelled:
            self._connection.forget(self.number)
        return cancelled

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Have ``fn`` called with this future when it is done, in whichever thread notices it."""
        super().add_done_callback(fn)
        if not self.done():
            self._connection.keep_receiving(urgent=True)

    def then_put_into(self, sink: Sink, item: Any) -> None:
        """Have an item put into a sink when this is done."""
        super().add_done_callback(lambda _: sink.put(item))


class Sink:
    """A place where finished things arrive, for `as_completed`."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self._items: deque[Any] = deque()

    def put(self, item: Any) -> None:
        """Add an item."""
        with self.condition:
            self._items.append(item)
            self.condition.notify_all()

    def done(self) -> bool:
        """Whether something is there."""
        return bool(self._items)

    def take(self) -> Any:
        """Return what arrived first."""
        return self._items.popleft()
