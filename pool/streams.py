"""Streams: what a method of a model yields, item by item, while it runs.

A reader grants credit: so many items may be on their way or wait here. When it has taken half of them it grants as
many again. A model that is ahead of its reader waits, so a stream takes bounded memory however long it is.

The connection refers to the inbox alone. So a stream that nobody refers to any more is garbage at once, and ends.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Self

from ..protocol.errors import PoolError, RequestCancelled
from ..protocol.messages import Reply
from ..protocol.tensors import Buffer
from ..protocol.values import decode
from .checks import check_count
from .connection import Connection
from .options import RequestOptions
from .parcels import MethodKey
from .waking import Waker

#: Items that may be ahead of a reader, unless it is said otherwise.
ITEMS_AHEAD: Final = 16
_MOST_AHEAD: Final = 65_536


class Inbox:
    """Where the items of a stream arrive.

    Attributes:
        number: that of the request.
        calls: how many calls it answers.
        condition: notified when an item arrives, or the end.
    """

    calls = 1
    key: MethodKey | None = None  # nothing is to be set aside for the end of a stream

    def __init__(self, connection: Connection, buffersize: int) -> None:
        self._connection = connection
        self._grant = max(1, buffersize // 2)
        self._taken = 0
        self._items: deque[tuple[bytes, Sequence[Buffer]]] = deque()
        self._has_ended = False
        self._error: BaseException | None = None
        self._reader = threading.get_ident()
        self._tell: Callable[[], object] | None = None
        self.number = 0
        self.condition = threading.Condition()

    def __repr__(self) -> str:
        return f"<Inbox of {self.number}: {len(self._items)} items{', ended' if self._has_ended else ''}>"

    def done(self) -> bool:
        """Whether no more items come."""
        return self._has_ended

    @property
    def has_news(self) -> bool:
        """Whether there is an item, or the end."""
        return bool(self._items) or self._has_ended

    def take(self) -> Any:
        """Return the next item.

        Raises:
            IndexError: there is none now.
            PoolError: it is broken.
        """
        self._reader = threading.get_ident()
        body, buffers = self._items.popleft()
        self._taken += 1
        if self._taken >= self._grant and not self._has_ended:
            taken, self._taken = self._taken, 0
            self._connection.let_continue(self.number, taken)
        return decode(body, buffers)

    def take_error(self) -> BaseException | None:
        """Return why the stream ended early, if it did, once."""
        error, self._error = self._error, None
        return error

    def yielded(self, body: bytes, buffers: Sequence[Buffer]) -> None:
        """Take an item that has arrived."""
        if self._has_ended:
            return
        self._items.append((body, buffers))
        self.notify()

    def answered(self, _reply: Reply, _value: Any, _buffers: Sequence[Buffer]) -> None:
        """Take the end."""
        self._has_ended = True
        self.notify()

    def failed(self, error: BaseException) -> None:
        """Take the reason why there are no more items."""
        self._error = error
        self._has_ended = True
        self.notify()

    def late(self, call: int) -> None:
        """Nothing of it waits for one call."""

    def before_shutdown(self, *, is_exit: bool = False) -> None:
        """End now if the thread that reads is the one that waits for the end, or a daemon that would read on."""
        if is_exit or self._reader == threading.get_ident():
            self._connection.abandon(self.number)
            self.failed(RequestCancelled("the pool was shut down before this stream was read to its end"))

    def close(self) -> None:
        """End now, whatever has arrived. This may be called while garbage is collected."""
        self._has_ended = True
        self._items.clear()
        self._error = None
        self._connection.abandon(self.number)

    def notify_with(self, tell: Callable[[], object] | None) -> None:
        """Have a function called besides when something arrives."""
        self._tell = tell

    def notify(self) -> None:
        """Have whoever waits look again."""
        with self.condition:
            self.condition.notify_all()
        if self._tell is not None:
            self._tell()


class _News:
    """What a reader waits for."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self.condition = inbox.condition

    def done(self) -> bool:
        """Whether there is an item, or the end."""
        return self._inbox.has_news


class _Reader:
    """What streams for threads and streams for coroutines have in common."""

    def __init__(self, connection: Connection, inbox: Inbox) -> None:
        self._connection = connection
        self._inbox = inbox
        self._news = _News(inbox)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._inbox.number}: {'ended' if self._inbox.done() else 'open'}>"

    def __del__(self) -> None:
        self._inbox.close()

    def _close(self) -> None:
        self._inbox.close()
        self._inbox.notify()

    def _take(self, end: type[Exception]) -> Any:
        """Return the next item, or raise the end, or why it came early; IndexError: nothing is there yet."""
        has_ended = self._inbox.done()  # asked before: an item may come now, and the end right after it
        try:
            return self._inbox.take()
        except IndexError:
            if not has_ended:
                raise
        except PoolError:
            self._close()
            raise
        raise self._inbox.take_error() or end


class Stream(_Reader):
    """The items that a method yields, as an iterator.

    It ends when the method does, when it is closed, and when nobody refers to it any more; the model then stops
    where it would yield next, and the worker is free. A thread that waits for an item receives for the others.
    """

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        while True:
            try:
                return self._take(StopIteration)
            except IndexError:
                self._connection.wait(self._news)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Read no more: the model stops where it would yield next."""
        self._close()


class AsyncStream(_Reader):
    """The items that a method yields, as an asynchronous iterator; as `Stream`, for one event loop.

    Cancelling a task that waits for an item closes it.
    """

    _waker: Waker | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while True:
            try:
                return self._take(StopAsyncIteration)
            except IndexError:
                await self._wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Read no more: the model stops where it would yield next."""
        self._close()

    async def _wait(self) -> None:
        if self._waker is None:
            self._waker = Waker()
            self._inbox.notify_with(self._waker.wake)
        self._connection.keep_receiving(urgent=True)
        try:
            await self._waker.wait_until(self._news.done)
        except asyncio.CancelledError:
            self._close()
            raise


def open_inbox(
    connection: Connection, options: RequestOptions, body: bytes, buffers: Sequence[Buffer], buffersize: int
) -> Inbox:
    """Ask for a stream; return where its items arrive.

    Raises:
        ConfigError: buffersize is no positive whole number.
        SupervisorLost: the pool is gone.
    """
    check_count("buffersize", buffersize, 1, _MOST_AHEAD)
    inbox = Inbox(connection, buffersize)
    connection.submit(inbox, options, body, buffers, credit=buffersize)
    return inbox
