"""The devices of a pool: a core for each, and which of them an event is for.

::

                       ┌─ core of "cpu:0": zygote, workers, workspace, ledger, queues
    event ──► devices ─┤
                       └─ core of "cpu:1": …

A worker belongs to one device, and so does a weight set; a request goes to a device that has its model, to the
one with the least to do where several have it. Where a model goes is decided when it is declared, by what is free
and how busy the models there were lately; if it turns out there that it does not fit, the next device tries.
Numbers of children and regions tell whose they are. Mailboxes are in the memory of the first device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from ...protocol.errors import PoolError
from ...protocol.messages import Record
from . import events
from .core import Core
from .events import Event
from .homes import Homes
from .instructions import Finish, Instruction
from .joint import Joints
from .moves import Moves
from .numbers import device_of
from .parts import Parts
from .weights import Model

#: Kinds of events, by what tells whose they are.
_BY_DEVICE: Final = (
    events.ZygoteReady, events.ZygoteDied, events.ModulesAdopted, events.SetAdopted, events.MemoryMeasured,
)  # fmt: skip
_BY_CHILD: Final = (
    events.ChildForked, events.ChildExited, events.BuildFailed, events.SetThawed,
    events.SetForgotten, events.SlotUsed, events.ItemYielded, events.AttemptEnded,
)  # fmt: skip
_BY_REGION: Final = (events.RegionMade, events.RegionFailed)
_BY_FILLER: Final = (
    events.RegionsNeeded, events.FileOffered, events.RegionsFilled, events.FillingFailed,
)  # fmt: skip
_BY_REQUEST: Final = (events.Cancelled, events.Continued)
_OF_ALL: Final = (
    events.ClientJoined, events.ClientLeft, events.StopAsked, events.TimePassed, events.FileChanged,
)  # fmt: skip
_OF_THE_FIRST: Final = (events.MailboxWanted, events.MailboxReturned)
_OF_ALL_THAT_HAVE_IT: Final = (events.ModelRemoved, events.ModelPinned, events.ModelEvicted)


class Devices:
    """The state of a pool.

    Args:
        cores: one for each device, of which the first is the host of the others.

    Attributes:
        cores: the same.
    """

    def __init__(self, cores: Sequence[Core]) -> None:
        self.cores = tuple(cores)
        self._homes = Homes(self.cores)
        self._moves = Moves(self.cores, self._homes)
        self._joints = Joints()
        self._parts = Parts(self.cores)
        self._arrivals: deque[tuple[Core, events.ModelArrived]] = deque()
        for core in self.cores:
            core.elsewhere = self._taker_of(core)
        self._routes: Mapping[type, Callable[[Any], Iterable[Core]]] = {
            **dict.fromkeys(_BY_DEVICE, lambda event: (self.cores[event.device],)),
            **dict.fromkeys(_BY_CHILD, lambda event: (self.core_of(event.child),)),
            **dict.fromkeys(_BY_REGION, lambda event: (self.core_of(event.region),)),
            **dict.fromkeys(_BY_FILLER, self._of_filler),
            **dict.fromkeys(_BY_REQUEST, self._of_request),
            **dict.fromkeys(_OF_ALL, lambda _: self.cores),
            **dict.fromkeys(_OF_THE_FIRST, lambda _: self.cores[:1]),
            events.CallerLeft: self._of_caller,
            events.MemoryAvailable: lambda event: self.cores if event.device < 0 else (self.cores[event.device],),
            events.RegionsMoved: lambda event: (self.core_of(event.regions[0]),),
            events.Submitted: self._of_submit,
            events.ModelWanted: lambda event: self._moves.answering(event.name)[:1] or self.cores[:1],
        }

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take in what happened at ``now`` (seconds on any monotonic clock); return what is to be done."""
        self._homes.now = now
        kind = type(event)
        if self._parts and isinstance(event, _BY_FILLER) and self._parts.is_guest(event.filler):
            out = self._parts.handle(event, now)
        elif kind in self._routes:
            out = self._handle(self._routes[kind](event), event, now)
        elif isinstance(event, events.ModelBuilt):
            out = self._parts.built(event, now)
        elif isinstance(event, events.ModelDeclared):
            out = self._declare(event, now)
        elif isinstance(event, _OF_ALL_THAT_HAVE_IT):
            out = self._of_homes(event, self._moves.having(event.name), now)
        elif isinstance(event, events.ModelMoved):
            out = self._moves.begin(event, now)
        else:
            assert isinstance(event, events.ModelExpected)
            self._expect(event)
            out = []
        if self._parts and isinstance(event, events.ChildExited):
            out += self._parts.ended(event.child, now)
        if self._parts or self._moves or self._arrivals:
            out = self._settled(out, now)
        if self._joints:
            out = self._joints.joined(out)
        return self._finished(out) if self.stopping else out

    def wake_at(self) -> float:
        """Return when `TimePassed` is due; infinity for never."""
        return min(core.wake_at() for core in self.cores)

    @property
    def host(self) -> Core:
        """The core of the first device."""
        return self.cores[0]

    @property
    def stopping(self) -> str:
        """See `Core.stopping`."""
        return self.host.stopping

    @property
    def unanswered(self) -> int:
        """How many requests are not answered."""
        return sum(core.requests.unanswered for core in self.cores)

    def index_of(self, number: int) -> int:
        """Return which device a child or region is on, from 0."""
        return device_of(number, len(self.cores))

    def core_of(self, number: int) -> Core:
        """Return the core whose device a child or region is on."""
        return self.cores[self.index_of(number)]

    def _settled(self, out: list[Instruction], now: float) -> list[Instruction]:
        """Do what one device wants of another, and what comes of that; return all that is left to be done."""
        left: list[Instruction] = []
        while out or self._arrivals:
            settled, out = self._parts.settle(out, now)
            settled, more = self._moves.settle(settled, now)
            left += settled
            out += more
            while self._arrivals:
                core, arrival = self._arrivals.popleft()
                out += core.handle(arrival, now)
        return left

    # --- whose it is ----------------------------------------------------------------------------------------

    def _handle(self, cores: Iterable[Core], event: Event, now: float) -> list[Instruction]:
        out: list[Instruction] = []
        for core in cores:
            out += core.handle(event, now)
        return out

    def _of_filler(self, event: Any) -> Sequence[Core]:
        if type(event.filler) is int:
            return (self.core_of(event.filler),)
        return (self._homes.of_filler(event),)

    def _of_caller(self, event: events.CallerLeft) -> Sequence[Core]:
        self._homes.forget(event.caller)
        return self.cores

    def _of_request(self, event: events.Cancelled | events.Continued) -> Sequence[Core]:
        return [core for core in self.cores if core.requests.find(event.client, event.request) is not None]

    def _of_submit(self, event: events.Submitted) -> Sequence[Core]:
        if len(self.cores) == 1:
            return self.cores
        submit = event.submit
        for core in self.cores:
            if core.requests.find(event.client, submit.request) is not None:
                return (core,)  # which refuses it: the number is in use
        homes: Sequence[Core] = self._moves.answering(submit.model)
        if len(homes) > 1 and submit.session:
            key = (submit.model, submit.session)
            homes = [core for core in homes if core.dispatch.sessions.has_session(*key)] or homes
        return (min(homes, key=_wait_for(submit.model)),) if homes else self.cores[:1]

    # --- models ---------------------------------------------------------------------------------------------

    def _declare(self, event: events.ModelDeclared, now: float) -> list[Instruction]:
        try:
            self._moves.check_stays(event.load.name)
            homes = self._homes.choose(event)
        except PoolError as error:  # what was filled for it is free
            refused = events.FillingFailed(event.caller, error.to_record())
            return self._handle(self._of_filler(refused), refused, now)
        return self._of_homes(event, homes, now)

    def _of_homes(self, event: Any, homes: Sequence[Core], now: float) -> list[Instruction]:
        """Have several devices do the same, and answer who has asked for it once."""
        if len(homes) < 2:
            return self._handle(homes or self.cores[:1], event, now)
        joint = self._joints.open(event.caller, len(homes))
        return self._handle(homes, event._replace(caller=joint), now)

    def _expect(self, event: events.ModelExpected) -> None:
        if type(event.caller) is int:
            self._parts.expect(event.caller, event.devices)
        else:
            self._homes.expect(event)

    def _taker_of(self, core: Core) -> Callable[[Model, Record], bool]:
        def take(model: Model, error: Record) -> bool:
            if not self._homes.takes_elsewhere(model, core, error):
                return False
            arrival = core.depart(model)
            self._arrivals.append(self._homes.next_for(arrival))  # now that what it had there is free
            return True

        return take

    # --- the end --------------------------------------------------------------------------------------------

    def _finished(self, out: list[Instruction]) -> list[Instruction]:
        """Let the pool finish with the last of its devices."""
        if not any(type(one) is Finish for one in out):
            return out
        out = [one for one in out if type(one) is not Finish]
        return [*out, Finish()] if all(core.is_finished for core in self.cores) else out


def _wait_for(name: str) -> Callable[[Core], tuple[bool, float]]:
    """Return what tells how a request for a model would fare on a device: worst where that could not be loaded."""

    def wait(core: Core) -> tuple[bool, float]:
        model = core.library.models[name]
        return model.current.life.state == "failed", model.unanswered / core.workspace.seats

    return wait
