"""Weight sets in memory: which of them may leave, what that would free, and which is worth least.

The value of one is how often it is used, times what its return costs, by the bytes that its eviction frees: as in
greedy dual size frequency (Cherkasova, 1998), but with uses that fade instead of values that are raised with each
eviction. What waits for it counts as use to come.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from .library import Library
from .sessions import Sessions
from .weights import Model, WeightSet

#: One that has requests stays at least so many times as long as its return took, and at least so long.
STAY_FACTOR: Final = 5.0
LEAST_STAY_S: Final = 0.1
#: What a return is expected to take before one was measured, here or in an earlier pool: as from a disk. What the
#: system's cache has is only mapped: 44e9 were measured.
BYTES_PER_S: Final = 1e9
#: Weight sets in these states keep what they lie in where it is.
_RESIDENT: Final = ("adopting", "ready", "draining", "returning")
_NEVER: Final = float("inf")


class Residents:
    """Looks at what is in memory.

    Args:
        library, sessions: what there is, and what workers keep of it.
    """

    def __init__(self, library: Library, sessions: Sessions) -> None:
        self._library = library
        self._holdings = library.holdings
        self._regions = library.holdings.regions
        self._sessions = sessions

    def victim(self, now: float) -> tuple[Model | None, float]:
        """Return the model whose set is worth least; or None, and when one may leave that has requests."""
        worst: tuple[bool, float, Model] | None = None
        soonest = _NEVER
        for model in self._library.models.values():
            version = model.current
            if version.life.state != "ready" or not version.regions or self.reason_to_stay(model):
                continue
            own_bytes = self.own_bytes(version)
            cost_s = version.return_s or version.expected.return_s or own_bytes / BYTES_PER_S
            may_leave_at = version.resident_since + max(LEAST_STAY_S, STAY_FACTOR * cost_s)
            if model.unanswered and now < may_leave_at:
                soonest = min(soonest, may_leave_at)
                continue
            value = (model.heat.at(now) + model.unanswered) * cost_s / max(own_bytes, 1)
            # One that shares everything frees nothing, until those that it shares with have left too.
            if worst is None or (not own_bytes, value) < worst[:2]:
                worst = (not own_bytes, value, model)
        return (worst[2], now) if worst else (None, soonest)

    def could_free(self) -> list[tuple[str, int]]:
        """Return what evictions could free, by model."""
        models = self._library.models.values()
        return [
            (one.name, size_bytes)
            for one in models
            if one.current.life.state == "ready"
            and not self.reason_to_stay(one)
            and (size_bytes := self.own_bytes(one.current))
        ]

    def reason_to_stay(self, model: Model) -> str:
        """Return why a model's set may not be evicted; empty if it may."""
        version = model.current
        if model.is_pinned:
            return "it is pinned"
        if version.load.options.get("warm"):
            return "it is warm: new workers have it from the zygote"
        if version.attached or version.waiting_to_attach:
            return f"{len(version.attached) + len(version.waiting_to_attach)} attached processes use it"
        if self._sessions.has(model.name):
            return "workers keep sessions of it"
        if version.is_divided or model.is_part:
            return "it is divided among devices"
        if any(self._regions[number].is_file for number in version.regions):
            return "its weights are a mapped file, which takes no memory that could be freed"
        return version.stays_because

    def movable(self, version: WeightSet) -> Iterator[int]:
        """Yield the regions of a set in which nothing lies, besides, that stays in memory or is mapped yet."""
        for number in dict.fromkeys(version.regions):
            record = self._regions[number]
            if record.life.state != "sealed" or record.is_elsewhere or record.is_being_filled:
                continue
            others = (self._holdings.sets[one] for one in record.weight_sets if one != version.number)
            if not any(other.life.state in _RESIDENT or other.is_mapped for other in others):
                yield number

    def own_bytes(self, version: WeightSet) -> int:
        """Return what the eviction of a set would free."""
        return sum(self._regions[number].size_bytes for number in self.movable(version))

    def freeable_bytes(self, but: WeightSet | None) -> int:
        """Return what would be free besides if everything left that may, whatever it does now, but one."""
        staying = {
            version.number
            for version in self._holdings.sets.values()
            if version is but or (version.life.state in _RESIDENT and not self._may_leave(version))
        }
        return sum(
            record.size_bytes
            for record in self._regions
            if record.life.state in ("sealed", "leaving", "returning")
            and not (record.is_elsewhere or record.is_being_filled or staying & set(record.weight_sets))
        )

    def _may_leave(self, version: WeightSet) -> bool:
        """Whether a set may be evicted, now or as soon as it is ready."""
        model = self._library.models.get(version.load.name)
        if model is None or model.current is not version or version.life.state == "draining":
            return False
        return not self.reason_to_stay(model)
