"""Who gets what of the workers' time when everybody asks for more than there is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from .measures import jain
from .scenario import ClientKind, ModelKind, Scenario
from .traffic import prepared

#: How much more everybody asks for than is due to them.
_OVERLOAD: Final = 1.2
_Kind = TypeVar("_Kind", ModelKind, ClientKind)


def saturation(scenario: Scenario) -> dict[str, Any]:
    """Return each model's part of the workers' time beside its share, and each client's.

    Where all shares are equal, every other model is given twice the share. Where all clients ask for as much,
    every other one asks for twice that, and shall get no more for it. Priorities and closed loops are left out.
    """
    scenario = saturated(scenario)
    machine = prepared(scenario)
    machine.run(scenario.end_s)
    journal = machine.journal
    shares = [kind.share for kind in scenario.each_model]
    due = [share / sum(shares) for share in shares]
    got = [journal.model_s[number] / journal.worker_s for number in range(len(shares))]
    demands = [kind.demand for kind in scenario.each_client]
    clients_got = [journal.client_s[number] / journal.worker_s for number in range(len(demands))]
    return {
        "load": scenario.load,
        "failed": len(journal.has_failed),
        "utilisation": journal.worker_s / (scenario.seats * scenario.duration_s),
        "models by share": _parts(shares, due, got),
        "clients by demand": _parts(demands, [1 / len(demands)] * len(demands), clients_got),
        "Jain's index over clients": jain(clients_got),
    }


def saturated(scenario: Scenario) -> Scenario:
    """Return a scenario in which all models and clients ask for more than is due to them."""
    models = scenario.models
    if len({kind.share for kind in models}) == 1:
        models = _alternating(models, "share")
    clients = tuple(replace(kind, outstanding=0, backlog=0, priority=0) for kind in scenario.clients)
    if len({kind.demand for kind in clients}) == 1:
        clients = _alternating(clients, "demand")
    load = _OVERLOAD
    load *= _enough(models, [kind.share for kind in models], [kind.demand * kind.call_s for kind in models])
    load *= _enough(clients, [1.0] * len(clients), [kind.demand for kind in clients])
    return replace(scenario, models=models, clients=clients, load=load)


def _alternating(kinds: tuple[_Kind, ...], field: str) -> tuple[_Kind, ...]:
    """Split each kind in two, of which the second has twice as much of something."""
    halves = [
        replace(kind, count=count, **{field: factor * getattr(kind, field)})
        for kind in kinds
        for count, factor in ((-(-kind.count // 2), 1), (kind.count // 2, 2))
        if count
    ]
    return tuple(halves)


def _enough(kinds: Sequence[ModelKind | ClientKind], due: Sequence[float], asked: Sequence[float]) -> float:
    """Return the load from which on each asks for what is due to it."""
    counts = [kind.count for kind in kinds]
    all_due = sum(count * one for count, one in zip(counts, due, strict=True))
    all_asked = sum(count * one for count, one in zip(counts, asked, strict=True))
    return max((mine / all_due) / (one / all_asked) for mine, one in zip(due, asked, strict=True) if one)


def _parts(keys: Sequence[float], due: Sequence[float], got: Sequence[float]) -> dict[str, Any]:
    """Return what was due to all that have a key in common, what they got, and how far single ones are off."""
    members: dict[float, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        members[key].append(number)
    return {
        f"{key:g}": {
            "count": len(numbers),
            "due": sum(due[one] for one in numbers),
            "got": sum(got[one] for one in numbers),
            "least of its due": min(got[one] / due[one] for one in numbers),
            "most of its due": max(got[one] / due[one] for one in numbers),
        }
        for key, numbers in sorted(members.items())
    }
