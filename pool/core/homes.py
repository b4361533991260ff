"""Where models live: which devices have one, and which is best for one that comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ...protocol.errors import InvalidRequest
from ...protocol.messages import LoadModel, Record
from .core import Core
from .events import CallerKey, FileOffered, ModelArrived, ModelDeclared, ModelExpected, RegionsNeeded
from .reach import within_reach
from .weights import Model, WeightSet

#: Weight sets in these states have not taken the memory yet that they will take.
_TO_COME: Final = ("declared", "building")
#: What a model that is divided leaves free on a device, at most, for what workers take besides when they run it:
#: it cannot be evicted to make room for that. Of little room a quarter.
KEPT_BYTES: Final = 64 << 20
#: So much where processes were not measured yet: a zygote and a worker take 150 MB, soon after they are there.
UNMEASURED_BYTES: Final = 192 << 20


class Homes:
    """Decides where models go.

    Args:
        cores: the devices.

    Attributes:
        now: when it decides, on the clock of the events.
    """

    def __init__(self, cores: Sequence[Core]) -> None:
        self.now = 0.0
        self._cores = cores
        self._expected: dict[CallerKey, Core] = {}  # where somebody who hands a model over puts it

    def of(self, name: str) -> Sequence[Core]:
        """Return the devices that have a model."""
        return [core for core in self._cores if name in core.library.models]

    def named(self, device: str) -> Core:
        """Return the device of this name.

        Raises:
            InvalidRequest: there is none.
        """
        return self._allowed([device])[0]

    def choose(self, event: ModelDeclared) -> Sequence[Core]:
        """Return where a model goes that is declared.

        Raises:
            InvalidRequest: it may be on no device that there is, or not on that which has it already.
        """
        load = event.load
        allowed = self._allowed(_names(load))
        expected = self._expected.get(event.caller)
        homes = self.of(load.name)
        replicas = int(load.options.get("replicas", 1))
        if load.source == "frozen":
            if replicas > 1:
                raise InvalidRequest(f"{load.name}: replicas are for models that a loader builds, not for objects")
            filled = expected or (homes or self._cores)[0]
            self._check_stays(load, homes, [core for core in allowed if core is filled])
            self.forget(event.caller)
            return (filled,)
        if homes:
            self._check_stays(load, homes, allowed)
            return homes
        size_bytes = self._cores[0].predictions.size_bytes(load)
        best = sorted(allowed, key=lambda core: _cost(core, size_bytes, self.now))
        return best[:replicas]

    # --- handing over ---------------------------------------------------------------------------------------

    def expect(self, event: ModelExpected) -> None:
        """Decide where somebody puts the model that it will hand over; one that cannot be is refused later."""
        known = {core.name for core in self._cores}
        allowed = self._allowed([name for name in event.devices if name in known])
        homes = [core for core in allowed if event.name in core.library.models]
        self._expected[event.caller] = (homes or [self._best(allowed, event.size_bytes)])[0]

    def of_filler(self, event: Any) -> Core:
        """Return where somebody at the unix socket fills regions."""
        core = self._expected.get(event.filler)
        if core is None:
            size_bytes = 0
            if isinstance(event, RegionsNeeded):
                size_bytes = sum(size for size, *_ in event.wants)
            elif isinstance(event, FileOffered):
                size_bytes = event.size_bytes
            core = self._expected[event.filler] = self._best(self._allowed([]), size_bytes)
        return core

    def forget(self, caller: CallerKey) -> None:
        """Somebody is gone, or has handed over what it was to."""
        self._expected.pop(caller, None)

    # --- the next one ---------------------------------------------------------------------------------------

    def takes_elsewhere(self, model: Model, refused_by: Core, error: Record) -> bool:
        """Note that a device has no room for a model; false if none has, and the refusal tells of each then."""
        version = model.current
        version.refusals[refused_by.name] = str(error["message"])
        if self._others(version.load, version.refusals) or self._may_divide(version):
            return True
        error["message"] = "; ".join(version.refusals.values())
        if len(version.refusals) > 1 and self._is_to_be_divided(version) and self._is_out_of_reach(version.load):
            error["message"] += "; it is not divided, because none of these can use the memory of another"
        return False

    def next_for(self, arrival: ModelArrived) -> tuple[Core, ModelArrived]:
        """Return the device that tries next to load a model that has left another, and what it is told of it.

        Where each has refused it alone, several may have room together: then it is divided among them.
        """
        load = arrival.load
        if others := self._others(load, arrival.refusals):
            return self._best(others, self._cores[0].predictions.size_bytes(load)), arrival
        allowed = self._allowed(_names(load))
        for core in allowed:
            core.ledger.expect_no_more()  # what others are only expected to take is room for it
        reached = within_reach({core.name: _room_bytes(core) for core in allowed}, self._peers(allowed))
        room = {core.name: reached[core.name] for core in allowed if core.name in reached}
        return self.named(next(iter(reached))), arrival._replace(room=room)

    # --- inside ---------------------------------------------------------------------------------------------

    def _allowed(self, names: Sequence[str]) -> Sequence[Core]:
        """Return the devices of these names; if there are none, all GPUs, or all where there is no GPU.

        Raises:
            InvalidRequest: one is not known.
        """
        known = {core.name: core for core in self._cores}
        for name in names:
            if name not in known:
                raise InvalidRequest(f"no device {name!r} in this pool; there are: {', '.join(known)}")
        if names:
            return [known[name] for name in dict.fromkeys(names)]
        return [core for core in self._cores if core.is_gpu] or self._cores

    def _others(self, load: LoadModel, refusals: Mapping[str, str]) -> list[Core]:
        """Return the devices that have not refused a model yet."""
        allowed = self._allowed(_names(load))
        return [one for one in allowed if one.name not in refusals and load.name not in one.library.models]

    def _may_divide(self, version: WeightSet) -> bool:
        return self._is_to_be_divided(version) and not self._is_out_of_reach(version.load)

    def _is_to_be_divided(self, version: WeightSet) -> bool:
        """Whether a model is, if that can be."""
        is_alone = len(self.of(version.load.name)) < 2  # or replicas would be divided into parts of each other
        return is_alone and not version.room and bool(version.load.options.get("divide", True))

    def _is_out_of_reach(self, load: LoadModel) -> bool:
        """Whether no device where a model may be can use the memory of another one."""
        allowed = self._allowed(_names(load))
        return not any(peers & {core.name for core in allowed} for peers in self._peers(allowed).values())

    @staticmethod
    def _peers(cores: Sequence[Core]) -> dict[str, frozenset[str]]:
        return {core.name: frozenset(core.peers) for core in cores}

    def _check_stays(self, load: LoadModel, homes: Sequence[Core], allowed: Sequence[Core]) -> None:
        lost = [core.name for core in homes if core not in allowed]
        if lost:
            raise InvalidRequest(
                f"{load.name} is on {', '.join(lost)}, and the new version would be on "
                f"{', '.join(core.name for core in allowed) or 'another device'}; unload it first"
            )

    def _best(self, cores: Sequence[Core], size_bytes: int) -> Core:
        return min(cores, key=lambda core: _cost(core, size_bytes, self.now))


def _names(load: LoadModel) -> list[str]:
    return list(load.options.get("devices", []))


def _room_bytes(core: Core) -> int:
    """Return how much there would be for a part of a model if all left that may."""
    most_bytes = max(0, core.ledger.free_bytes + core.eviction.freeable_bytes())
    kept_bytes = KEPT_BYTES if core.ledger.worker_bytes else UNMEASURED_BYTES
    return most_bytes - min(kept_bytes, most_bytes // 4)


def _cost(core: Core, size_bytes: int, now: float) -> tuple[bool, bool, float, float, int]:
    """Return how bad a device is for a model of this size.

    Worse is, in this order: where it does not fit at once; where it would not, even if all left that may; where
    models take more of the time lately, to a tenth; where more of them compete for each run; where more memory is
    taken.
    """
    models, seats = core.library.models, core.workspace.seats
    busy = round(sum(one.demand(now) for one in models.values()) / seats, 1)
    to_come = [one for one in core.library.holdings.sets.values() if one.life.state in _TO_COME]
    free_bytes = core.ledger.free_bytes - sum(_to_come_bytes(core, one) for one in to_come) - size_bytes
    most_bytes = free_bytes + core.eviction.freeable_bytes()
    return free_bytes < 0, most_bytes < 0, busy, len(models) / seats, -free_bytes


def _to_come_bytes(core: Core, version: WeightSet) -> int:
    """Return what a weight set will take besides what counts for its load already."""
    there_bytes, _ = core.library.holdings.regions.loading_bytes(version.loader)
    more_bytes = core.predictions.size_bytes(version.load) - there_bytes
    return core.ledger.growth_bytes(version.loader, more_bytes) if more_bytes > 0 else 0
