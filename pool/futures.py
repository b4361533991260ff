"""Futures whose waiter fetches the answer itself.

A `PoolFuture` is a `concurrent.futures.Future` in everything. The difference is who works: a thread that waits
in `result` reads the pool's socket in its own time slice, instead of being woken by another thread that did.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..protocol.messages import Reply
from ..protocol.tensors import Buffer
from .parcels import MethodKey

if TYPE_CHECKING:
    from .connection import Connection

_DONE: Final = frozenset({CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED})


class Expected(Protocol):
    """Whom an answer is for.

    Attributes:
        number: that of the request; the connection gives it.
        key: the model and method whose results are to be expected to be as large as this one; None: of none.
        calls: how many calls it answers.
    """

    number: int

    @property
    def calls(self) -> int:
        """See above."""
        ...

    @property
    def key(self) -> MethodKey | None:
        """See above."""
        ...

    @property
    def condition(self) -> threading.Condition:
        """Notified when `done` may have changed."""
        ...

    def done(self) -> bool:
        """Whether nobody needs to wait for it."""
        ...

    def answered(self, reply: Reply, value: Any, buffers: Sequence[Buffer], /) -> None:
        """Take the answer, the value in it, and the buffers that this is made of."""
        ...

    def failed(self, error: BaseException, /) -> None:
        """Take the reason why there is none."""
        ...

    def yielded(self, body: bytes, buffers: Sequence[Buffer], /) -> None:
        """Take an item of a stream."""
        ...

    def late(self, call: int, /) -> None:
        """Take notice that one of its calls takes far longer than it should, and all behind it wait for that."""
        ...

    def before_shutdown(self, *, is_exit: bool = False) -> None:
        """See to it that whoever ends the pool, or the interpreter, does not wait for this in vain."""
        ...


class Sender(Protocol):
    """What sends a call, alone or with others, and wants to know when it is over."""

    def ended(self, future: PoolFuture, reply: Reply | None, /) -> None:
        """Take notice that a call which travelled alone was answered; without a reply: it has failed."""
        ...

    def give_up(self, future: PoolFuture, *, kill: bool) -> None:
        """Give up a call, wherever it is; with ``kill`` even at the price of the worker that is at it."""
        ...


class PoolFuture(Future[Any]):
    """The future answer to one request.

    Args:
        connection: on which it is asked for.
        key: see below.
        sender: what sends it, if it may travel with others.

    Attributes:
        number: that of the request; 0 if it travels with others, or was not sent yet.
        key: the model, or what else was asked for, and the method.
        bundle: what it travels with.
        calls: how many calls it answers.
    """

    calls = 1

    def __init__(self, connection: Connection, key: MethodKey, sender: Sender | None = None) -> None:
        super().__init__()
        self._connection = connection
        self._sender = sender
        self.number = 0
        self.key = key
        self.bundle: Expected | None = None

    def __repr__(self) -> str:
        return f"<PoolFuture {self.number} of {self.key[0]}: {self._state.lower()}>"

    @property
    def condition(self) -> threading.Condition:
        """Notified when the answer is there."""
        return self._condition

    def done(self) -> bool:
        """Return whether the answer is there, or was given up; without the lock, which one look does not need."""
        return self._state in _DONE

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

    def cancel(self, kill: bool = False) -> bool:
        """Give the answer up, also while the model runs; false if it is there already.

        A run that is under way ends at the next call of a module, or when it next yields; with ``kill`` its worker
        is ended, unless it runs something else by then.
        """
        if not super().cancel():
            return False
        with self._condition:
            if self._state == CANCELLED:  # and those who wait for several futures do not know it yet
                self.set_running_or_notify_cancel()
        if self._sender is not None:
            self._sender.give_up(self, kill=kill)
        else:
            self._connection.forget(self.number, kill=kill)
        return True

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Have ``fn`` called with this future when it is done, in whichever thread notices it."""
        super().add_done_callback(fn)
        if not self.done():
            self._connection.keep_receiving(urgent=True)

    def answered(self, reply: Reply, value: Any, _buffers: Sequence[Buffer]) -> None:
        """Take the result."""
        if self._sender is not None:
            self._sender.ended(self, reply)
        self.settle(value)

    def failed(self, error: BaseException) -> None:
        """Take the reason why there is no result."""
        if self._sender is not None:
            self._sender.ended(self, None)
        self.settle(error)

    def settle(self, outcome: Any) -> None:
        """Take a result or an error, unless the owner has given up in this moment."""
        with contextlib.suppress(InvalidStateError):
            if isinstance(outcome, BaseException):
                self.set_exception(outcome)
            else:
                self.set_result(outcome)

    def yielded(self, _body: bytes, _buffers: Sequence[Buffer]) -> None:
        """Drop an item; a request for a result gets none."""

    def late(self, call: int) -> None:
        """Nothing of it waits for one call."""

    def before_shutdown(self, *, is_exit: bool = False) -> None:
        """Let its answer come: nobody needs to do anything for it."""
