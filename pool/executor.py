"""A pool's model as a `concurrent.futures.Executor`: for code that was written for one."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from typing import Any

from ..protocol.limits import MAX_REQUESTS_PER_CLIENT
from .checks import ConfigError
from .connection import Connection
from .options import RequestOptions

#: With so many answers due a task waits before it is submitted: an executor has no queue that could be full.
_MOST_UNANSWERED = MAX_REQUESTS_PER_CLIENT // 2


class PoolExecutor(Executor):
    """Submits runs of one model.

    A task is a method of the model, because code never travels: its name, or a function of that name, such as
    ``SentenceTransformer.encode``; or None, for the method that the model was declared with. With
    ``asyncio``, ``loop.run_in_executor(executor, SentenceTransformer.encode, texts)`` works too. Shutting it down
    leaves the pool as it is.

    Args:
        connection: to the pool.
        options: of the requests.
    """

    def __init__(self, connection: Connection, options: RequestOptions) -> None:
        self._connection = connection
        self._options = options
        self._lock = threading.Lock()
        self._unfinished: set[Future[Any]] = set()
        self._is_shut_down = False

    def __repr__(self) -> str:
        state = "shut down" if self._is_shut_down else f"{len(self._unfinished)} unfinished"
        return f"<PoolExecutor of {self._options.model}: {state}>"

    def submit(self, fn: Callable[..., Any] | str | None, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a method of the model run; return the future result.

        Raises:
            ConfigError: ``fn`` names no public method.
            InvalidRequest: an argument cannot travel; the message names its path.
            RuntimeError: the executor was shut down.
        """
        options = replace(self._options, method=_method_of(fn) or self._options.method)
        gathering = self._connection.gatherings.of(options)
        self._connection.wait_until_below(_MOST_UNANSWERED)
        future = gathering.future()
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError("cannot submit to an executor that was shut down")
            self._unfinished.add(future)
        try:
            gathering.send(future, args, kwargs)
        except BaseException:
            self._unfinished.discard(future)
            raise
        Future.add_done_callback(future, self._unfinished.discard)
        self._connection.keep_receiving()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks.

        Args:
            wait: return when every task is done.
            cancel_futures: give up those that are not, also what runs.
        """
        with self._lock:
            self._is_shut_down = True
        unfinished = list(self._unfinished)
        if cancel_futures:
            for future in unfinished:
                future.cancel()
        if wait:
            concurrent.futures.wait(unfinished)


def _method_of(fn: Callable[..., Any] | str | None) -> str:
    """Return the method that a task stands for; empty: the model's own."""
    if fn is None:
        return ""
    name = fn if isinstance(fn, str) else getattr(fn, "__name__", "")
    if name == "__call__" or (isinstance(name, str) and name.isidentifier() and not name.startswith("_")):
        return name
    raise ConfigError(
        f"{fn!r} is not the name of a public method of the model, nor a function of that name; code never travels "
        "to a pool: make it a method of the model, and pass its name"
    )
