"""Where models live: which devices have one, and which is best for one that comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...protocol.errors import InvalidRequest
from ...protocol.messages import LoadModel, Record
from .core import Core
from .events import CallerKey, FileOffered, ModelDeclared, ModelExpected, RegionsNeeded
from .weights import Model, WeightSet

#: Weight sets in these states have not taken the memory yet that they will take.
_TO_COME = ("declared", "building")


class Homes:
    """Decides where models go.

    Args:
        cores: the devices.
    """

    def __init__(self, cores: Sequence[Core]) -> None:
        self._cores = cores
        self._expected: dict[CallerKey, Core] = {}  # where somebody who hands a model over puts it
        self._refusals: dict[str, dict[str, str]] = {}  # by model and device, why it had no memory there

    def of(self, name: str) -> Sequence[Core]:
        """Return the devices that have a model."""
        return [core for core in self._cores if name in core.library.models]

    def choose(self, event: ModelDeclared) -> Sequence[Core]:
        """Return where a model goes that is declared.

        Raises:
            InvalidRequest: it may be on no device that there is, or not on that which has it already.
        """
        load = event.load
        self._refusals.pop(load.name, None)
        allowed = self._allowed(_names(load))
        expected = self._expected.pop(event.caller, None)
        homes = self.of(load.name)
        replicas = int(load.options.get("replicas", 1))
        if load.source == "frozen":
            if replicas > 1:
                raise InvalidRequest(f"{load.name}: replicas are for models that a loader builds, not for objects")
            filled = expected or (homes or self._cores)[0]
            self._check_stays(load, homes, [core for core in allowed if core is filled])
            return (filled,)
        if homes:
            self._check_stays(load, homes, allowed)
            return homes
        best = sorted(allowed, key=lambda core: _cost(core, int(load.options.get("size_bytes", 0))))
        return best[:replicas]

    # --- handing over ---------------------------------------------------------------------------------------

    def expect(self, event: ModelExpected) -> None:
        """Decide where somebody puts the model that it will hand over; one that cannot be is refused later."""
        names = set(event.devices)
        allowed = [core for core in self._cores if not names or core.name in names] or self._cores
        homes = [core for core in allowed if event.name in core.library.models]
        self._expected[event.caller] = (homes or [self._best(allowed, event.size_bytes)])[0]

    def of_filler(self, event: Any) -> Core:
        """Return where somebody at the unix socket fills regions."""
        core = self._expected.get(event.filler)
        if core is None:
            size_bytes = 0
            if isinstance(event, RegionsNeeded):
                size_bytes = sum(size for size, _ in event.wants)
            elif isinstance(event, FileOffered):
                size_bytes = event.size_bytes
            core = self._expected[event.filler] = self._best(self._cores, size_bytes)
        return core

    def forget(self, caller: CallerKey) -> None:
        """Somebody is gone."""
        self._expected.pop(caller, None)

    # --- the next one ---------------------------------------------------------------------------------------

    def next_for(self, model: Model, refused_by: Core, error: Record) -> Core | None:
        """Return a device that may have room for a model; None: there is none, and the refusal tells of each."""
        load = model.current.load
        refusals = self._refusals.setdefault(model.name, {})
        refusals[refused_by.name] = str(error["message"])
        others = [
            core
            for core in self._allowed(_names(load))
            if core.name not in refusals and model.name not in core.library.models
        ]
        if others:
            return self._best(others, 0)
        error["message"] = "; ".join(self._refusals.pop(model.name).values())
        return None

    # --- inside ---------------------------------------------------------------------------------------------

    def _allowed(self, names: Sequence[str]) -> Sequence[Core]:
        """Return the devices of these names; all, if there are none.

        Raises:
            InvalidRequest: one is not known.
        """
        known = {core.name: core for core in self._cores}
        for name in names:
            if name not in known:
                raise InvalidRequest(f"no device {name!r} in this pool; there are: {', '.join(known)}")
        return [known[name] for name in dict.fromkeys(names)] if names else self._cores

    def _check_stays(self, load: LoadModel, homes: Sequence[Core], allowed: Sequence[Core]) -> None:
        lost = [core.name for core in homes if core not in allowed]
        if lost:
            raise InvalidRequest(
                f"{load.name} is on {', '.join(lost)}, and the new version would be on "
                f"{', '.join(core.name for core in allowed) or 'another device'}; unload it first"
            )

    def _best(self, cores: Sequence[Core], size_bytes: int) -> Core:
        return min(cores, key=lambda core: _cost(core, size_bytes))


def _names(load: LoadModel) -> list[str]:
    return list(load.options.get("devices", []))


def _cost(core: Core, size_bytes: int) -> tuple[bool, bool, float, int]:
    """Return how bad a device is for a model of this size.

    Worse is, in this order: where it does not fit at once; where it would not, even if all left that may; where
    more models compete for each run; where more memory is taken.
    """
    to_come = [one for one in core.library.holdings.sets.values() if one.life.state in _TO_COME]
    free_bytes = core.ledger.free_bytes - sum(map(_size_bytes, to_come)) - size_bytes
    most_bytes = free_bytes + core.eviction.freeable_bytes()
    return free_bytes < 0, most_bytes < 0, len(core.library.models) / core.workspace.seats, -free_bytes


def _size_bytes(version: WeightSet) -> int:
    return int(version.load.options.get("size_bytes", 0))
