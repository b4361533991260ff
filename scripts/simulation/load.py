"""How a pool does under a load, and how a light client does beside a backlog."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Final

from . import measures
from .journal import Journal
from .meter import Meter, collecting_as_the_supervisor
from .scenario import ClientKind, Scenario
from .traffic import prepared

#: What the light client asks for, of what all workers can do.
_LIGHT_LOAD: Final = 0.01


def load(scenario: Scenario) -> dict[str, Any]:
    """Return latency, throughput and use of the workers under the load of a scenario."""
    with collecting_as_the_supervisor():
        machine = prepared(scenario)
        meter = Meter(machine)
        started_at = time.perf_counter()
        machine.run()
        elapsed_s = time.perf_counter() - started_at
    lasted_s = machine.now
    machine.stop()
    return _service(machine.journal, scenario) | {"real": _cost(meter, elapsed_s, lasted_s)}


def backlog(scenario: Scenario, requests: int = 100_000) -> dict[str, Any]:
    """Return how long the requests of a light client take, alone and beside one that sent so many at once."""
    lasts_s = requests / scenario.capacity
    scenario = replace(scenario, load=_LIGHT_LOAD, warmup_s=0.0, duration_s=0.9 * lasts_s)
    found: dict[str, Any] = {"the backlog lasts, s": lasts_s}
    for name, others in (("alone", ()), ("beside it", (ClientKind("heavy", backlog=requests),))):
        machine = prepared(replace(scenario, clients=(ClientKind("light"), *others)))
        machine.run()
        journal = machine.journal
        of_light = [number for number in journal.measured() if not journal.client[number]]
        found[f"{name}: wait, ms"] = measures.waits_ms(journal, of_light)
        found[f"{name}: latency, ms"] = measures.latencies_ms(journal, of_light)
    return found


def _service(journal: Journal, scenario: Scenario) -> dict[str, Any]:
    """Return what clients and workers saw."""
    numbers = journal.measured()
    found: dict[str, Any] = {
        "requests": len(journal.sent_s),
        "failed": len(journal.has_failed),
        "unanswered": journal.unanswered,
        "capacity, requests/s": scenario.capacity,
        "throughput, requests/s": journal.succeeded / scenario.duration_s,
        "utilisation": journal.worker_s / (scenario.seats * scenario.duration_s),
        "requests in the pool": journal.in_pool_s / scenario.duration_s,
        "calls of a run": measures.calls_of_runs(journal),
        "latency, ms": measures.latencies_ms(journal, numbers),
        "wait, ms": measures.waits_ms(journal, numbers),
    }
    for what, kinds, of in (
        ("models", scenario.each_model, journal.model),
        ("clients", scenario.each_client, journal.client),
    ):
        names = dict.fromkeys(kind.name for kind in kinds)
        if len(names) > 1:
            found[f"latency by {what}, ms"] = {
                name: measures.latencies_ms(journal, (one for one in numbers if kinds[of[one]].name == name))
                for name in names
            }
    return found


def _cost(meter: Meter, elapsed_s: float, lasted_s: float) -> dict[str, float]:
    """Return what it took of real time, of which the core is part in any pool."""
    events = sum(map(len, meter.times_ns.values()))
    core_s = sum(map(sum, meter.times_ns.values())) / 1e9
    return {
        "events": events,
        "core, us an event": core_s / events * 1e6,
        "the rest, us an event": (elapsed_s - core_s) / events * 1e6,
        "core, s in each simulated s": core_s / lasted_s,
    }
