"""A model that costs nothing, and calls of it and of what stands beside it, timed in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

BLOCK = 50


class Echo:
    """A model that costs nothing: what is measured is the way there and back."""

    def __call__(self, x: Any) -> Any:
        return x


def echo(x: Any) -> Any:
    """The same for an executor."""
    return x


def in_turns(calls: dict[str, Callable[[], Any]], blocks: int) -> dict[str, dict[str, float]]:
    """Time each call, a block of each in turns; return p50 and p99 in microseconds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(blocks + 1):
        for name, call in calls.items():
            for _ in range(BLOCK):
                started_at = time.perf_counter()
                call()
                if turn:  # the first is to warm up
                    times[name].append((time.perf_counter() - started_at) * 1e6)
    return {
        name: {"p50_us": statistics.median(one), "p99_us": statistics.quantiles(one, n=100)[98]}
        for name, one in times.items()
    }
