"""How coroutines wait for what other threads do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable


class Waker:
    """Wakes one coroutine of the event loop that runs when it is made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._is_awaited = False

    def wake(self) -> None:
        """Let whoever waits look again; from any thread."""
        if self._is_awaited:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._event.set)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when a condition is true; whoever makes it true calls `wake` afterwards."""
        self._is_awaited = True
        try:
            while True:
                self._event.clear()
                if condition():
                    return
                await self._event.wait()
        finally:
            self._is_awaited = False
