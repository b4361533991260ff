"""`map` for coroutines: no thread waits, and arguments may come from an asynchronous source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator
from typing import Any

from .flow import Flow
from .waking import Waker


class _Feeder:
    """A task that adds calls as their arguments come, as long as there is room."""

    def __init__(self, flow: Flow, xs: AsyncIterable[Any], waker: Waker) -> None:
        self._flow = flow
        self._waker = waker
        self._room = asyncio.Event()
        self.task = asyncio.create_task(self._feed(xs))

    def made_room(self) -> None:
        """A result was taken."""
        self._room.set()

    async def stop(self) -> None:
        """End it, whatever its source does."""
        self.task.cancel()
        await asyncio.wait([self.task])
        if not self.task.cancelled():
            self.task.exception()  # it is of no interest any more

    async def _feed(self, xs: AsyncIterable[Any]) -> None:
        loop = asyncio.get_running_loop()
        try:
            async for x in xs:
                self._flow.add(x)
                loop.call_soon(self._flow.flush_if_hungry)  # when the source lets others work
                self._waker.wake()
                while not self._flow.has_room:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self._flow.flush()
            self._waker.wake()


async def amap(flow: Flow, xs: Iterable[Any] | AsyncIterable[Any]) -> AsyncGenerator[Any]:
    """Yield the result of each ``x`` in order, see `ModelHandle.amap`."""
    waker = Waker()
    flow.notify_with(waker.wake)
    feeder = _Feeder(flow, xs, waker) if isinstance(xs, AsyncIterable) else None
    source: Iterator[Any] = iter(()) if isinstance(xs, AsyncIterable) else iter(xs)

    def is_ready() -> bool:
        """Whether a pack is done, or everything."""
        return flow.done() and (not flow.is_empty or feeder is None or feeder.task.done())

    try:
        flow.fill(source)
        while True:
            if not is_ready():
                flow.flush_if_hungry()
                await waker.wait_until(is_ready)
            if flow.is_empty:
                break
            pack = flow.take()
            if pack is None:
                continue
            for offset, result in enumerate(pack.results):
                if offset in pack.errors:
                    raise pack.errors[offset]
                flow.under_way -= 1
                flow.fill(source)
                if feeder is not None:
                    feeder.made_room()
                yield result
        if feeder is not None:
            await feeder.task  # raises what its source raised
    finally:
        flow.close()
        if feeder is not None:
            await feeder.stop()
