"""How calls that are submitted one by one are divided among messages.

A message costs about as much as four calls of a quick model run, wherever it is handled, and where there are fewer
cores than processes each of them begins with caches that others have filled. So calls of a quick model that are
unanswered at the same time are divided among as few messages as keep workers busy.

That needs to know of calls that do not exist yet. Threads, tasks and callbacks that have got an answer mostly ask
again at once (a closed loop): the first of them would travel alone, before the others have come, and the next time
so would each of them. So who has been seen to ask again is waited for, for a moment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .packs import PACKS_PER_WORKER, Pace

#: A model is quick if its calls run for less than a message costs.
QUICK_S: Final = 0.0002
#: Messages that run for less are not worth more of them.
_PART_S: Final = 0.0005
#: Calls that follow answers come within this of the answers, or of one another.
GAP_S: Final = 0.0005
#: They are waited for if so many of those that could follow did; weight of the newest answers.
_LEAST_SHARE: Final = 0.9
_NEWEST: Final = 0.1
#: Calls that follow no answer speak against it: where they come as they like, at a pace that happens to be that of
#: the answers, every other is such a one.
_UNASKED: Final = 0.05
#: To wait for one that does not come costs more than a round gains: so much of the share is lost with it.
_MISS: Final = 0.1


class ClosedLoop:
    """Whether answers are followed by as many calls, and how many of those are still to come.

    Args:
        clock: tells the time in seconds.

    Attributes:
        is_closed: whether so far nearly all answers were followed by calls. It becomes so when a round begins: all
            that come in one travel in the same way, or some would wait for others who wait for them.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.is_closed = False
        self._clock = clock
        self._answered = 0  # in this round
        self._came = 0
        self._last_at = 0.0
        self._share = 0.0  # of the calls that could follow, those that did; moving

    def __repr__(self) -> str:
        return f"<ClosedLoop {self._came} of {self._answered} came, {self._share:.2f} before>"

    def answered(self, calls: int) -> None:
        """So many calls were answered."""
        now = self._clock()
        if now - self._last_at > GAP_S:
            self._end_round()
        if not self._answered:
            self.is_closed = self._share >= _LEAST_SHARE
        self._answered += calls
        self._last_at = now

    def came(self) -> None:
        """A call was submitted."""
        if self._came >= self._answered:
            self._share -= _UNASKED * self._share
            return
        now = self._clock()
        if now - self._last_at > GAP_S:
            self._end_round()
            return
        self._came += 1
        self._last_at = now
        if self._came == self._answered:
            self._end_round()

    @property
    def to_come(self) -> int:
        """How many calls are likely to come in a moment."""
        if not self.is_closed or self._came >= self._answered:
            return 0
        return self._answered - self._came if self._clock() - self._last_at <= GAP_S else 0

    def _end_round(self) -> None:
        if self.is_closed and self._came < self._answered:
            self._share -= _MISS
            self.is_closed = self._share >= _LEAST_SHARE
        elif self._answered:
            self._share += _NEWEST * (self._came / self._answered - self._share)
        self._answered = self._came = 0


class Division:
    """How many messages there may be, and how many calls the next one has.

    Args:
        workers: how many there are.
        spare_cores: how many cores are left for them; see `environment.spare_cores`.
        loop: what is known of those who submit.
        pace: what is known of the model.
    """

    def __init__(self, workers: int, spare_cores: int, loop: ClosedLoop, pace: Pace) -> None:
        self._workers = workers
        self._quick_workers = min(workers, spare_cores)
        self._loop = loop
        self._pace = pace

    def room(self, messages: int, calls: int) -> int:
        """Return how many messages may follow those that are under way, at least one.

        Args:
            messages: that are under way.
            calls: that are unanswered.
        """
        return max(1, self._parts(calls) - messages)

    def least(self, messages: int, calls: int) -> int:
        """Return how many calls the next message is to have at least; arguments as for `room`.

        One is enough where a worker has nothing to do, unless others are likely to come. Where each has something
        that waits, there are to be as many as may be.
        """
        pace = self._pace
        to_come = self._loop.to_come if pace.mean_s <= QUICK_S else 0
        if not to_come and messages < self._workers:
            return 1
        parts = self._parts(calls + to_come)
        return pace.calls if messages >= parts else min(-(-(calls + to_come) // parts), pace.calls)

    def _parts(self, calls: int) -> int:
        """Return among how many messages so many calls are divided."""
        mean_s = self._pace.mean_s
        if mean_s > QUICK_S or not self._loop.is_closed:
            return PACKS_PER_WORKER * self._workers
        return min(PACKS_PER_WORKER * self._quick_workers, 1 + int(calls * mean_s / _PART_S))
