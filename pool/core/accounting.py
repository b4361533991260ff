"""What each weight set takes, what of it is its own, and with whom it shares the rest."""

from __future__ import annotations

from typing import NamedTuple

from .holdings import Holdings
from .weights import WeightSet


class WeightsAccount(NamedTuple):
    """One weight set.

    Attributes:
        size_bytes: all regions that it lies in, each once.
        own_bytes: those that no other lies in: what unloading it would free.
        shared_with: by model, the bytes that lie in regions of both.
    """

    version: WeightSet
    size_bytes: int
    own_bytes: int
    shared_with: dict[str, int]


def account_of(holdings: Holdings, version: WeightSet) -> WeightsAccount:
    """Return what a weight set takes; the cost grows with the regions that it lies in."""
    size_bytes = own_bytes = 0
    shared_with: dict[str, int] = {}
    for number in dict.fromkeys(version.regions):
        record = holdings.regions[number]
        size_bytes += record.size_bytes
        others = [holdings.sets[one] for one in record.weight_sets if one != version.number]
        for name in dict.fromkeys(other.load.name for other in others):
            shared_with[name] = shared_with.get(name, 0) + record.size_bytes
        if not others:
            own_bytes += record.size_bytes
    return WeightsAccount(version, size_bytes, own_bytes, shared_with)
