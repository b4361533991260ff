"""All calls of a connection that may travel together, and who sees to it that none of them waits for long.

There is no thread for that: whoever receives looks here after each read, and sleeps no longer than calls may wait.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .gathering import WAIT_S, Gathering
from .options import RequestOptions

if TYPE_CHECKING:
    from .connection import Connection


class Gatherings:
    """All gatherings of a connection.

    Args:
        connection: to the pool.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
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
            found = Gathering(self._connection, options, self.note_waiting)
            if options.may_be_packed:  # others, of which there may be one for each session, have nothing to learn
                self._all[options] = found
        return found

    def note_waiting(self, gathering: Gathering) -> None:
        """Calls wait there."""
        self._with_waiting[gathering] = None

    def sleep_ms(self, timeout_ms: float | None) -> float | None:
        """Return how long whoever receives may sleep before it looks after what waits."""
        if not any(one.may_have_waiting for one in tuple(self._all.values())):
            return timeout_ms
        return min(timeout_ms, WAIT_S * 1000) if timeout_ms is not None else WAIT_S * 1000

    def look_after(self) -> None:
        """Send what waits and need not wait any more; called by whoever has received something, or nothing."""
        if self._with_waiting:
            now = time.monotonic()
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
