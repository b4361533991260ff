"""A model with the options of its requests bound: what `Pool.model` returns, and what `Pool` itself uses."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Self

from ..protocol.values import encode
from .config import ConfigError, check_name
from .connection import Connection
from .futures import PoolFuture, Sink

#: Requests that `map` keeps under way for each worker.
_AHEAD_PER_WORKER = 16
_LEAST_AHEAD = 64


class ModelHandle:
    """A model of a pool, to be called like a function.

    Args:
        connection: to the pool.
        name: the model.
        method: which of its methods runs; empty: the one that the model was declared with.
        timeout_s: seconds after which a request fails with `DeadlineExceeded`; None: never.
        retries: how many deaths of a worker a request survives.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        *,
        method: str | None = None,
        timeout_s: float | None = None,
        retries: int = 1,
    ) -> None:
        if timeout_s is not None and not 0 < timeout_s < float("inf"):
            raise ConfigError(f"timeout_s must be a positive number of seconds, or None; not {timeout_s!r}")
        if type(retries) is not int or not 0 <= retries <= 100:
            raise ConfigError(f"retries must be a whole number from 0 to 100, not {retries!r}")
        self._connection = connection
        self._name = check_name("model", name)
        self._method = check_name("method", method) if method else ""
        self._timeout_s = timeout_s or 0.0
        self._retries = retries

    def __repr__(self) -> str:
        return f"<ModelHandle {self._name}{'.' + self._method if self._method else ''}>"

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the model and return what it returned; raises `PoolError` as `submit`'s future does."""
        return self._submit(args, kwargs).result()

    def submit(self, /, *args: Any, **kwargs: Any) -> PoolFuture:
        """Have the model run; return the future result.

        Raises:
            InvalidRequest: an argument cannot travel; the message names its path.
            SupervisorLost: the pool is gone.
        """
        future = self._submit(args, kwargs)
        self._connection.keep_receiving()
        return future

    async def arun(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the model from asyncio; cancelling the task cancels the request."""
        return await asyncio.wrap_future(self._submit(args, kwargs))

    def map(self, xs: Iterable[Any], *, buffersize: int | None = None, progress: bool = False) -> Iterator[Any]:
        """Run the model on each ``x``; yield the results in order.

        Args:
            xs: one argument for each run; it may be endless.
            buffersize: how many runs may be under way before their results are taken.
            progress: show a progress bar.

        Raises:
            PoolError: what a run failed with, where its result would have come. The rest is cancelled.
        """
        under_way: deque[PoolFuture] = deque()
        source = iter(xs)
        try:
            with _bar(self._name, xs, shown=progress) as bar:
                for x in itertools.islice(source, self._ahead(buffersize)):
                    under_way.append(self._submit((x,), {}))
                while under_way:
                    result = under_way.popleft().result()
                    for x in itertools.islice(source, 1):
                        under_way.append(self._submit((x,), {}))
                    bar.update()
                    yield result
        finally:
            for future in under_way:
                future.cancel()

    def as_completed(
        self, xs: Iterable[Any], *, buffersize: int | None = None, progress: bool = False
    ) -> Iterator[tuple[int, Any]]:
        """Run the model on each ``x``; yield ``(index, result)`` as they come. Arguments as for `map`."""
        sink = Sink()
        under_way: dict[int, PoolFuture] = {}
        source = enumerate(xs)

        def submit(count: int) -> None:
            for index, x in itertools.islice(source, count):
                future = under_way[index] = self._submit((x,), {})
                future.then_put_into(sink, index)

        try:
            with _bar(self._name, xs, shown=progress) as bar:
                submit(self._ahead(buffersize))
                while under_way:
                    self._connection.wait(sink)
                    index = sink.take()
                    result = under_way.pop(index).result()
                    submit(1)
                    bar.update()
                    yield index, result
        finally:
            for future in under_way.values():
                future.cancel()

    def _submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PoolFuture:
        body, buffers = encode([list(args), kwargs], name="[args, kwargs]")
        return self._connection.submit(self._name, self._method, self._timeout_s, self._retries, body, buffers)

    def _ahead(self, buffersize: int | None) -> int:
        if buffersize is None:
            return max(_LEAST_AHEAD, _AHEAD_PER_WORKER * self._connection.welcome.workers)
        if type(buffersize) is not int or buffersize < 1:
            raise ConfigError(f"buffersize must be a positive whole number, not {buffersize!r}")
        return buffersize


class _NoBar:
    """What counts when no progress is shown, without importing what would show it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def update(self) -> None:
        return


def _bar(name: str, xs: Iterable[Any], *, shown: bool) -> Any:
    if not shown:
        return _NoBar()
    from tqdm.auto import tqdm

    total = len(xs) if hasattr(xs, "__len__") else None  # pyright: ignore[reportArgumentType]
    return tqdm(total=total, desc=name)
