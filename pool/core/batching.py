"""How large a model's batches are, and how long they wait for more calls.

A batch never waits while a worker is idle. While all are busy it may be handed to one of them ahead of time: when
it is full, or has waited long enough. Both bounds follow what runs were measured to take: calls that gain nothing
from company (a model that is bound by arithmetic) run in small batches, since large ones would only make each wait
for the others; and to wait for longer than a batch takes would be of no use.
"""

from __future__ import annotations

from typing import Final

from .terms import Terms
from .workers import AHEAD_S

#: Weight of the newest measurement.
_NEWEST: Final = 0.2
#: What an attempt costs besides its run, for both processes: it speaks for batches even where a run does not.
_ATTEMPT_S: Final = 0.0002
#: Of two sizes the smaller one is taken unless a call is so much cheaper in the larger.
_GAIN: Final = 1.1
#: So many batches of a size must have been measured to count.
_LEAST_BATCHES: Final = 5
#: One batch in so many is as large as allowed, to see whether that has become better.
_TRY_EVERY: Final = 64


class Batching:
    """What is known of a model's batches.

    Attributes:
        batches, calls: how many there were, and how many calls they had.
    """

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.batches = 0
        self.calls = 0
        self._full = terms.max_batch
        self._best = terms.max_batch
        self._seconds: dict[int, float] = {}  # by the power of two that a batch reaches: of one call, on average
        self._measured: dict[int, int] = {}
        self._batch_s = 0.0

    @property
    def limit(self) -> int:
        """How many calls the next batch may have."""
        return self._full if self.batches % _TRY_EVERY == 0 else self._best

    @property
    def wait_s(self) -> float:
        """How long a batch that is not full waits before it is handed to a busy worker."""
        longest_s = self.terms.max_wait_s or AHEAD_S
        return min(longest_s, self._batch_s) if self.terms.is_adaptive and self._batch_s else longest_s

    def measured(self, calls: int, seconds: float) -> None:
        """Take a measurement in: a batch of so many calls took so long."""
        self.batches += 1
        self.calls += calls
        self._batch_s += _NEWEST * (seconds - self._batch_s) if self._batch_s else seconds
        size = calls.bit_length() - 1
        each_s = (seconds + _ATTEMPT_S) / calls
        known_s = self._seconds.get(size)
        self._seconds[size] = each_s if known_s is None else known_s + _NEWEST * (each_s - known_s)
        self._measured[size] = self._measured.get(size, 0) + 1
        if self.terms.is_adaptive:
            self._best = self._best_size()

    def expected_s(self, calls: int) -> float | None:
        """Return what a batch of so many calls should take; None if none like it was measured."""
        each_s = self._seconds.get(calls.bit_length() - 1)
        return None if each_s is None else max(0.0, each_s * calls - _ATTEMPT_S)

    @property
    def note(self) -> str:
        """Why batches are as large as they are, in a sentence."""
        if not self.terms.is_adaptive:
            return "fixed"
        if self._best == self._full:
            return "as large as allowed: nothing smaller was measured to be as good"
        costs = ", ".join(
            f"{1 << size}: {seconds * 1e6:,.0f} us" for size, seconds in sorted(self._seconds.items())
        )
        return f"a call costs hardly less in larger ones (calls of a batch: time of each: {costs})"

    def _best_size(self) -> int:
        """Return the smallest size in which a call is about as cheap as in any; the largest, until it is known."""
        known = [size for size, count in self._measured.items() if count >= _LEAST_BATCHES]
        largest = self._full.bit_length() - 1
        if largest not in known:
            return self._full
        best_s = min(self._seconds[size] for size in known)
        for size in sorted(known):
            if self._seconds[size] <= _GAIN * best_s:
                return min(self._full, (2 << size) - 1)
        return self._full
