"""What a simulation comes to, in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from .journal import Journal

PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


def percentile(ordered: Sequence[float], part: float) -> float:
    """Return the smallest of the ordered values that so great a part of them does not exceed; NaN of none."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else math.nan


def spread(values: Iterable[float], scale: float = 1.0) -> dict[str, float]:
    """Return mean, percentiles and maximum, each times ``scale``."""
    ordered = sorted(values)
    found = {"mean": math.fsum(ordered) / len(ordered) if ordered else math.nan}
    found |= {name: percentile(ordered, part) for name, part in PERCENTILES.items()}
    found["max"] = ordered[-1] if ordered else math.nan
    return {name: value * scale for name, value in found.items()}


def jain(values: Sequence[float]) -> float:
    """Return Jain's fairness index (Jain, Chiu and Hawe, 1984): 1 if all have as much, 1/n if one has all."""
    squares = math.fsum(value * value for value in values)
    return math.fsum(values) ** 2 / (len(values) * squares) if squares else math.nan


def latencies_ms(journal: Journal, numbers: Iterable[int]) -> dict[str, float]:
    """Return how long requests took, from when they were meant to be sent to their answer."""
    return spread((journal.answered_s[one] - journal.sent_s[one] for one in numbers), 1e3)


def waits_ms(journal: Journal, numbers: Iterable[int]) -> dict[str, float]:
    """Return how long requests waited until their run began."""
    return spread((journal.begun_s[one] - journal.sent_s[one] for one in numbers), 1e3)


def calls_of_runs(journal: Journal) -> dict[str, float]:
    """Return how many calls a run had."""
    return spread(journal.batches.elements())
