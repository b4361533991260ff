"""Calls that take far longer than expected, and what waits behind those.

Requests of quick models are handed to busy workers ahead of time, for some milliseconds of work as expected, and
calls of quick models come many in one request. Where one of them turns out to take seconds, those behind it would
wait for nothing: other workers may have nothing to do.
"""

from __future__ import annotations

from typing import Final

from .attempts import Attempts
from .workers import Workers

#: How often busy workers are looked at. Who is at the same attempt as a look before has kept the others waiting
#: for at least so long, which is many times what was expected of everything that it holds (`workers.AHEAD_S`).
LOOK_S: Final = 0.05
_NEVER: Final = float("inf")


class Stragglers:
    """Looks now and then at workers that may keep something waiting; costs nothing while none does.

    Args:
        workers, attempts: who works, and on what.
    """

    def __init__(self, workers: Workers, attempts: Attempts) -> None:
        self._workers = workers
        self._attempts = attempts
        self._look_at = _NEVER
        self._seen: dict[int, int] = {}  # by worker, the attempt that it was at

    def wake_at(self) -> float:
        """Return when to look again; infinity for never."""
        return self._look_at

    def watch(self, now: float) -> None:
        """Some worker may keep something waiting."""
        if self._look_at == _NEVER:
            self._look_at = now + LOOK_S

    def time_passed(self, now: float) -> None:
        """Have what waits behind calls that take too long run elsewhere."""
        if now < self._look_at:
            return
        seen: dict[int, int] = {}
        for worker in self._workers:
            if not worker.outstanding:
                continue
            attempt = next(iter(worker.outstanding))
            if len(worker.outstanding) == 1 and not self._attempts.is_of_many(attempt):
                continue
            seen[worker.child] = attempt
            if self._seen.get(worker.child) == attempt and not worker.is_late:
                worker.is_late = True
                self._attempts.tell_late(attempt)
                self._attempts.take_back(worker, now)
        self._seen = seen
        self._workers.may_block = bool(seen)
        self._look_at = now + LOOK_S if seen else _NEVER
