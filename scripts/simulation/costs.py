"""Whether an event costs the core more on a large machine with long queues than on a small one without.

What takes as many steps may take more time: a hundred thousand requests do not fit into a processor's caches.
"""

from __future__ import annotations

import statistics
from operator import truediv
from typing import Any, Final

from onecopy.pool.abilities import is_compiled
from onecopy.pool.core import events

from .measures import percentile
from .meter import Meter, StepCounter, collecting_as_the_supervisor
from .scenario import ClientKind, ModelKind, Scenario
from .traffic import prepared

_MODEL: Final = ModelKind(service="exponential")
#: 8 workers with one model and 8 requests that wait; 1,024 workers with 200 models and 100,000 that wait.
SIZES: Final = {
    "small": Scenario(workers=8, models=(_MODEL,), clients=(ClientKind(count=4, outstanding=4),), duration_s=1e6),
    "large": Scenario(
        devices=64,
        workers=16,
        models=(ModelKind(service="exponential", count=200),),
        clients=(ClientKind(count=16, outstanding=(100_000 + 1024) // 16),),
        duration_s=1e6,
    ),
}


#: The two events of each request: it is accepted, and handed to an idle worker; its run has ended, its answer is
#: sent, and the worker is handed another.
_KINDS: Final = {"a request comes": events.Submitted, "a run ends": events.AttemptEnded}
_PERCENTILES: Final = {"median": 0.5, "p99": 0.99}


class _Timed:
    """A machine that has always more to do, and what its events cost.

    Attributes:
        waiting: how many requests wait for a worker, at any time.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._machine = prepared(scenario)
        self._meter = Meter(self._machine)
        self.waiting = self._machine.journal.unanswered - scenario.seats

    def run(self, requests: int) -> dict[tuple[str, str], float]:
        """Return percentiles, in microseconds, of the events of so many more requests."""
        self._meter.clear()
        for _ in range(requests):
            self._machine.step()
        found: dict[tuple[str, str], float] = {}
        for what, kind in _KINDS.items():
            ordered = sorted(self._meter.times_ns[kind])
            found |= {(what, name): percentile(ordered, part) / 1e3 for name, part in _PERCENTILES.items()}
        return found

    def steps(self, requests: int) -> float:
        """Return how many steps the events of a request take; nothing can be timed after that."""
        counter = StepCounter(self._machine)
        for _ in range(requests):
            self._machine.step()
        return counter.steps / requests


def costs(rounds: int = 9, requests: int = 10_000) -> dict[str, Any]:
    """Return what an event costs in each size, measured in turns: medians of the rounds, and of their ratios."""
    with collecting_as_the_supervisor():
        timed = {name: _Timed(scenario) for name, scenario in SIZES.items()}
        turns = [{name: one.run(requests) for name, one in timed.items()} for _ in range(rounds + 1)]
        # Compiled code takes none that could be counted.
        steps = {} if is_compiled() else {name: one.steps(requests // 10) for name, one in timed.items()}
    found: dict[str, Any] = {
        name: {"workers": size.seats, "models": len(size.each_model), "requests that wait": timed[name].waiting}
        for name, size in SIZES.items()
    }
    for what in _KINDS:
        for name in _PERCENTILES:
            small, large = ([turn[size][what, name] for turn in turns[1:]] for size in SIZES)  # the first warms up
            row = found.setdefault(f"{what}: {name}, us", {})
            row["small"], row["large"] = statistics.median(small), statistics.median(large)
            row["large / small"] = statistics.median(map(truediv, large, small))
    if steps:
        found["steps of a request"] = steps | {"large / small": steps["large"] / steps["small"]}
    return found
