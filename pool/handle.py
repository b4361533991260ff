"""A model with the options of its requests bound: what `Pool.model` returns, and what `Pool` itself uses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable
from typing import Any, Self

from ..protocol.values import Encoded, encode
from .amap import amap
from .connection import Connection
from .executor import PoolExecutor
from .flow import Flow
from .futures import PoolFuture
from .options import RequestOptions
from .streams import ITEMS_AHEAD, AsyncStream, Stream, open_inbox


class ModelHandle:
    """A model of a pool, to be called like a function.

    Args:
        connection: to the pool.
        options: of its requests.
    """

    def __init__(self, connection: Connection, options: RequestOptions) -> None:
        self._connection = connection
        self._options = options
        self._gathering = connection.gatherings.of(options)

    def __repr__(self) -> str:
        method = f".{self._options.method}" if self._options.method else ""
        return f"<ModelHandle {self._options.model}{method}>"

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the model and return what it returned; raises `PoolError` as `submit`'s future does."""
        return self._gathering.submit(args, kwargs).result()

    def submit(self, /, *args: Any, **kwargs: Any) -> PoolFuture:
        """Have the model run; return the future result.

        While all workers are busy with calls of a quick model, further calls with one small argument travel
        together, as those of `map` do.

        Raises:
            InvalidRequest: an argument cannot travel; the message names its path.
            SupervisorLost: the pool is gone.
        """
        future = self._gathering.submit(args, kwargs)
        self._connection.keep_receiving()
        return future

    async def arun(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the model from asyncio; cancelling the task cancels the request."""
        return await asyncio.wrap_future(self._gathering.submit(args, kwargs))

    # --- streams --------------------------------------------------------------------------------------------

    def stream(self, /, *args: Any, buffersize: int = ITEMS_AHEAD, **kwargs: Any) -> Stream:
        """Have a method run that yields; return an iterator over its items, while it runs.

        The iterator has a ``close`` and can be used in ``with``; leaving a loop over it closes it too. What the
        method raises comes after the items before it. A timeout is for the whole stream, and it is not tried again
        after its first item.

        Args:
            *args: for the method.
            buffersize: how many items may be ahead of the reader; beyond that the model waits.
            **kwargs: for the method.

        Raises:
            InvalidRequest: an argument cannot travel; the message names its path.
            SupervisorLost: the pool is gone.
        """
        return self._stream(args, kwargs, buffersize)

    def astream(self, /, *args: Any, buffersize: int = ITEMS_AHEAD, **kwargs: Any) -> AsyncStream:
        """Have a method run that yields; return an asynchronous iterator over its items, see `stream`.

        It has an ``aclose`` and can be used in ``async with``; cancelling the task that reads closes it too.
        """
        inbox = open_inbox(self._connection, self._options, *_encode(args, kwargs), buffersize)
        return AsyncStream(self._connection, inbox)

    # --- many -----------------------------------------------------------------------------------------------

    def map(
        self, xs: Iterable[Any], *, buffersize: int | None = None, progress: bool = False
    ) -> Generator[Any, None, None]:
        """Run the model on each ``x``; yield the results in order.

        Small arguments of quick models travel together.

        Args:
            xs: one argument for each run; it may be endless.
            buffersize: how many runs may be under way before their results are taken; default: 16 for each worker
                and at least 64, or more for a quick model if ``xs`` has a length.
            progress: show a progress bar.

        Raises:
            PoolError: what a run failed with, where its result would have come. The rest is cancelled.
        """
        return _values(self._results(self._flow(xs, buffersize, in_order=True), xs, progress=progress))

    def as_completed(
        self, xs: Iterable[Any], *, buffersize: int | None = None, progress: bool = False
    ) -> Generator[tuple[int, Any], None, None]:
        """Run the model on each ``x``; yield ``(index, result)`` as they come. Arguments as for `map`."""
        return self._results(self._flow(xs, buffersize, in_order=False), xs, progress=progress)

    def amap(
        self, xs: Iterable[Any] | AsyncIterable[Any], *, buffersize: int | None = None
    ) -> AsyncGenerator[Any, None]:
        """Run the model on each ``x``; yield the results in order, from asyncio.

        Args:
            xs: one argument for each run; an asynchronous source is read while results are waited for.
            buffersize: as for `map`.

        Raises:
            PoolError: what a run failed with, where its result would have come. The rest is cancelled.
        """
        return amap(self._flow(xs, buffersize, in_order=True), xs)

    def executor(self) -> PoolExecutor:
        """Return a `concurrent.futures.Executor` whose tasks are runs of this model, see `PoolExecutor`."""
        return PoolExecutor(self._connection, self._options)

    def _stream(self, args: tuple[Any, ...], kwargs: dict[str, Any], buffersize: int = ITEMS_AHEAD) -> Stream:
        inbox = open_inbox(self._connection, self._options, *_encode(args, kwargs), buffersize)
        return Stream(self._connection, inbox)

    def _flow(self, xs: Iterable[Any] | AsyncIterable[Any], buffersize: int | None, *, in_order: bool) -> Flow:
        # What has a length is there: nobody waits for it, and nobody sees how far one looks ahead.
        return Flow(
            self._connection, self._options, buffersize, may_look_ahead=hasattr(xs, "__len__"), in_order=in_order
        )

    def _results(self, flow: Flow, xs: Iterable[Any], *, progress: bool) -> Generator[tuple[int, Any], None, None]:
        """Yield the index and result of each call."""
        source = iter(xs)
        try:
            with _bar(self._options.model, xs, shown=progress) as bar:
                flow.fill(source)
                while (pack := flow.next_pack()) is not None:
                    for offset, result in enumerate(pack.results):
                        if offset in pack.errors:
                            raise pack.errors[offset]
                        flow.under_way -= 1
                        flow.fill(source)
                        bar.update()
                        yield pack.first + offset, result
        finally:
            flow.close()


def _encode(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Encoded:
    return encode([list(args), kwargs], name="[args, kwargs]")


def _values(results: Generator[tuple[int, Any], None, None]) -> Generator[Any, None, None]:
    try:
        for _, result in results:
            yield result
    finally:
        results.close()


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
