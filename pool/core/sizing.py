"""How many workers there are: as many as have work, between two numbers that the owner gives.

A worker that does nothing costs memory, and one that is not there costs time when it is needed, a few hundredths
of a second. So the pool grows soon, by as many again, when requests wait while every worker is busy, and shrinks
late, to the most that were busy at once for a while.
"""

from __future__ import annotations

from typing import Final

from .ledger import Ledger
from .workers import Workers

#: So long must something have waited, without a break, for workers to be added.
GROW_AFTER_S: Final = 0.1
#: What was not busy at once for so long is not needed.
SHRINK_AFTER_S: Final = 30.0

_NEVER: Final = float("inf")


class Sizing:
    """Changes how many workers are wanted.

    Args:
        least: the fewest there shall be.
        workers: of which there are as many as there may be, at first.
        ledger: whether there is memory for more.

    Attributes:
        note: why there are as many as there are, in a sentence.
    """

    def __init__(self, least: int, workers: Workers, ledger: Ledger) -> None:
        self.note = "fixed"
        self._least = least
        self._most = workers.wanted
        self._workers = workers
        self._ledger = ledger
        self._waiting_since = _NEVER
        self._window_ends_at = _NEVER
        self._peak = 0
        if self.is_variable:
            workers.wanted = least
            self.note = "the fewest; nothing has waited for a worker yet"

    @property
    def is_variable(self) -> bool:
        """Whether the number may change."""
        return self._least < self._most

    def look(self, now: float, *, is_waiting: bool) -> bool:
        """Take in how things are, with something waiting for a worker or not; true if the number has changed."""
        workers, before = self._workers, self._workers.wanted
        self._peak = max(self._peak, workers.busy)
        if now >= self._window_ends_at:
            self._shrink()
            self._window_ends_at = _NEVER
        if workers.wanted > self._least and self._window_ends_at == _NEVER:
            self._window_ends_at, self._peak = now + SHRINK_AFTER_S, workers.busy
        is_short = is_waiting and not workers.has_idle and workers.busy >= workers.wanted < self._most
        if not is_short:
            self._waiting_since = _NEVER
        elif self._waiting_since == _NEVER:
            self._waiting_since = now
        elif now >= self._waiting_since + GROW_AFTER_S:
            self._grow()
            self._waiting_since = _NEVER
        return workers.wanted != before

    def wake_at(self) -> float:
        """Return when to look again although nothing happens; infinity for never."""
        return min(self._window_ends_at, self._waiting_since + GROW_AFTER_S)

    def _grow(self) -> None:
        more = min(self._workers.wanted, self._most - self._workers.wanted)
        each_bytes = self._ledger.worker_bytes
        if each_bytes:
            more = min(more, max(0, self._ledger.free_bytes) // each_bytes)
        if more:
            self._workers.wanted += more
            self.note = f"{more} were added: requests waited for {GROW_AFTER_S:g} s while every worker was busy"
        else:
            self.note = "requests wait, and there is no memory for more workers"

    def _shrink(self) -> None:
        needed = max(self._least, self._peak)
        if needed < self._workers.wanted:
            self._workers.wanted = needed
            self.note = f"no more than {self._peak} were busy at once for {SHRINK_AFTER_S:g} s"
