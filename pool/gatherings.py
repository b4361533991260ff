"""All calls of a connection that may travel together, and who sees to it that none of them waits for long.

There is no thread for that: whoever receives looks here after each read, and sleeps no longer than calls may wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import environment
from .gathering import Gathering
from .options import RequestOptions

if TYPE_CHECKING:
    from .connection import Connection


class Gatherings:
    """All gatherings of a connection.

    Args:
        connection: to the pool.
        clock: tells the time in seconds.
    """

    def __init__(self, connection: Connection, clock: Callable[[], float] = time.monotonic) -> None:
        self._connection = connection
        self._clock = clock
        self._spare_cores = environment.spare_cores()
        self._all: dict[RequestOptions, Gathering] = {}
        self._with_waiting: dict[Gathering, None] = {}

    def __repr__(self) -> str:
        return f"<Gatherings of {len(self._all)} methods, of which calls of {len(self._with_waiting)} wait>"

    def __bool__(self) -> bool:
        return bool(self._with_waiting)

    def of(self, options: RequestOptions) -> Gathering:
        """Return the one for calls with these options."""
        found = self._all.get(options)
        if found is None:
            found = Gathering(self._connection, options, self._spare_cores, self.note_waiting, self._clock)
            if options.may_be_packed:  # others, of which there may be one for each session, have nothing to learn
                self._all[options] = found
        return found

    def note_waiting(self, gathering: Gathering) -> None:
        """Calls wait there."""
        self._with_waiting[gathering] = None

    def sleep_ms(self, timeout_ms: float | None) -> float | None:
        """Return how long whoever receives may sleep before it looks after what waits."""
        waits_ms = [1000 * one.wait_s for one in tuple(self._all.values()) if one.may_have_waiting]
        return min(waits_ms if timeout_ms is None else [timeout_ms, *waits_ms], default=timeout_ms)

    def look_after(self) -> None:
        """Send what waits and need not wait any more; called by whoever has received something, or nothing."""
        if self._with_waiting:
            now = self._clock()
            for one in tuple(self._with_waiting):
                one.look_after(now)
                self._forget_if_empty(one)

    def flush(self) -> None:
        """Send all that waits."""
        for one in tuple(self._with_waiting):
            one.flush()
            self._forget_if_empty(one)

    def _forget_if_empty(self, gathering: Gathering) -> None:
        if not gathering.has_waiting:
            self._with_waiting.pop(gathering, None)
            if gathering.has_waiting:  # since this moment
                self.note_waiting(gathering)
