"""How long runs took: counts between fixed bounds, as cheap for the millionth run as for the first."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

#: From runs that only a dispatch bounds to those that a person would not wait for, three to each power of ten.
BOUNDS_S: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0,
    60.0,
)  # fmt: skip


class RunTimes:
    """Counts of runs.

    Attributes:
        counts: how many took up to each of `BOUNDS_S`, and more than the bound before; the last, more than any.
    """

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)

    def add(self, seconds: float) -> None:
        """Count a run."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
