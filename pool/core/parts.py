"""Models that are divided among devices, because they fit on none: a loader that fills regions on several.

::

    device "cpu:0"   model "m", its workers, a part of its weights ◄── they map the other part too
    device "cpu:1"   "m+7", the other part: no queue, no workers; it goes with the model

The loader belongs to one device. To another it is a guest: who fills regions there as somebody at the unix socket
does, and in the end hands them over as a model of their own that nobody can call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...protocol.errors import InvalidRequest
from ...protocol.messages import LoadModel, Refused
from . import events
from .core import Core
from .guests import Guest
from .instructions import GrantRegions, Instruction, ToCaller
from .numbers import device_of
from .weights import PART_OF, WeightSet


class Parts:
    """Lets loaders fill regions on several devices, and keeps what they have filled there.

    Args:
        cores: the devices.
    """

    def __init__(self, cores: Sequence[Core]) -> None:
        self._cores = cores
        self._filling_on: dict[int, Core] = {}  # by loader, where the regions are that it asks for now
        self._guests: dict[int, dict[str, Guest]] = {}  # by loader and device
        self._lent: dict[WeightSet, list[tuple[Core, str]]] = {}  # parts elsewhere, by whose they are

    def __bool__(self) -> bool:
        return bool(self._filling_on or self._lent)

    # --- filling --------------------------------------------------------------------------------------------

    def expect(self, child: int, devices: Sequence[str]) -> None:
        """What a loader asks for next is to be on this device."""
        found = [core for core in self._cores if core.name in devices]
        if found:
            self._filling_on[child] = found[0]

    def is_guest(self, filler: Any) -> bool:
        """Whether a loader fills regions on other devices."""
        return type(filler) is int and filler in self._filling_on

    def handle(self, event: Any, now: float) -> list[Instruction]:
        """Take in what such a loader does with regions."""
        child = event.filler
        own = self._core_of(child)
        if isinstance(event, events.RegionsFilled):
            out: list[Instruction] = []
            for core in self._cores:
                numbers = [number for number in event.regions if self._core_of(number) is core]
                if numbers:
                    out += core.handle(events.RegionsFilled(self._key(child, core), numbers), now)
            return out
        core = own if isinstance(event, events.FillingFailed) else self._filling_on[child]
        return core.handle(event._replace(filler=self._key(child, core)), now)

    def built(self, event: events.ModelBuilt, now: float) -> list[Instruction]:
        """Take in that a loader is done: each other device keeps what lies there, as long as the model lives."""
        child, own = event.child, self._core_of(event.child)
        version = own.library.built_by(child)
        foreign: dict[Core, list[int]] = {}
        for number in event.built.regions:
            if self._core_of(number) is not own:
                foreign.setdefault(self._core_of(number), []).append(number)
        for core, numbers in foreign.items():
            if not core.library.holdings.regions.are_held(self._key(child, core), numbers):
                error = InvalidRequest(f"regions {numbers} were not filled by whoever hands them over")
                return own.handle(events.FillingFailed(child, error.to_record()), now)
        out = own.handle(event, now)
        if version is None or version.life.state == "failed":
            return out
        for core, numbers in foreign.items():
            name = f"{version.load.name}+{version.number}"
            options = {PART_OF: version.load.name}
            load = LoadModel(name, "frozen", options, [], b"", [], [], numbers, False, [])
            out += core.handle(events.ModelDeclared(self._key(child, core), load), now)
            self._lent.setdefault(version, []).append((core, name))
        return out

    # --- the end --------------------------------------------------------------------------------------------

    def ended(self, child: int, now: float) -> list[Instruction]:
        """A loader is gone: what it has not handed over is free."""
        out: list[Instruction] = []
        self._filling_on.pop(child, None)
        guests = self._guests.pop(child, {})
        for core in self._cores:
            if core.name in guests:
                out += core.handle(events.CallerLeft(guests[core.name]), now)
        return out

    def settle(self, out: list[Instruction], now: float) -> tuple[list[Instruction], list[Instruction]]:
        """Tell devices what instructions of others mean to them, and free the parts of what is no more.

        Returns:
            The instructions as loaders understand them; and what comes of the others, which is to be settled too.
        """
        left: list[Instruction] = []
        more: list[Instruction] = []
        for one in out:
            if isinstance(one, GrantRegions) and isinstance(one.filler, Guest):
                left.append(one._replace(filler=one.filler.child))
            elif isinstance(one, ToCaller) and isinstance(one.caller, Guest):
                if isinstance(one.message, Refused):
                    failed = events.FillingFailed(one.caller.child, one.message.error)
                    more += self._core_of(one.caller.child).handle(failed, now)
            else:
                left.append(one)
        for version in [one for one in self._lent if one.life.state == "freed"]:
            for core, name in self._lent.pop(version):
                more += core.handle(events.PartReleased(name), now)
        return left, more

    # --- inside ---------------------------------------------------------------------------------------------

    def _core_of(self, number: int) -> Core:
        return self._cores[device_of(number, len(self._cores))]

    def _key(self, child: int, core: Core) -> Any:
        """Return what a loader is to a device: its own knows it by its number."""
        if core is self._core_of(child):
            return child
        return self._guests.setdefault(child, {}).setdefault(core.name, Guest(child))
