"""Several simulated devices: a world for each, one clock, and what routes between them."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from core.invariants import CheckedCore
from core.simulated import LoadPlan
from core.world import World
from onecopy.pool.core import events, instructions
from onecopy.pool.core.core import Core, Position
from onecopy.pool.core.devices import Devices
from onecopy.pool.core.ledger import Allowance
from onecopy.pool.core.numbers import device_of
from onecopy.pool.core.weights import Model

MB = 1_000_000
#: Of each device of `several`; nothing else takes memory there.
LIMIT_BYTES = 10 * MB
CHANGED = {"code": "load_failed", "message": "the file was written to", "details": {}}

#: What worlds have in common: whom nobody but the devices' host knows of, and what tests plan.
_SHARED = (
    "run_plans", "load_plans", "inboxes", "items", "answers", "attached", "reports", "store", "regions", "disk",
    "mailing", "_granted", "_fill_plans", "_serial",
)  # fmt: skip
_OF_A_CHILD = (
    instructions.ToChild, instructions.ForkChild, instructions.SignalChild, instructions.Interrupt,
    instructions.TellLate,
)  # fmt: skip
_OF_A_DEVICE = (instructions.ToZygote, instructions.ReplaceZygote)


class CheckedDevice(CheckedCore):
    """A core that `Devices` takes for one, and that is checked after each event."""

    def handle(self, event: events.Event, now: float) -> list[instructions.Instruction]:
        self.now = now
        if isinstance(event, events.ModelArrived):
            self._take_over(event)
        if isinstance(event, events.FillingFailed) and type(event.filler) is not int:
            self.books.callers.setdefault(event.filler, "")  # what it declared could be on no device
        return self.feed(event)

    def depart(self, model: Model) -> events.ModelArrived:
        departure = self.core.depart(model)
        for request in departure.requests:
            self.books._close((request.client, request.submit.request))
        self.books.callers = {
            caller: answer for caller, answer in self.books.callers.items()
            if caller not in (*departure.waiting_for_load, *departure.waiting_to_attach)
        }  # fmt: skip
        return departure

    def _take_over(self, departure: events.ModelArrived) -> None:
        for caller in (*departure.waiting_for_load, *departure.waiting_to_attach):
            self.books.callers[caller] = ""
        for request in departure.requests:
            self.books.take(events.Submitted(request.client, request.submit, request.buffers), [])

    def __getattr__(self, name: str) -> object:
        return getattr(self.core, name)

    @property
    def elsewhere(self) -> Callable[..., bool]:
        return self.core.elsewhere

    @elsewhere.setter
    def elsewhere(self, call: Callable[..., bool]) -> None:
        self.core.elsewhere = call


class DeviceWorld(World):
    """The processes of one device."""

    def __init__(self, several: Several, index: int, host: Core | None, **options: object) -> None:
        self.several = several
        self.index = index
        name, *others = sorted(map("cpu:{}".format, range(several.count)), key=lambda one: one != f"cpu:{index}")
        peers = others if several.peers is None else several.peers.get(name, ())
        position = Position(name, index, several.count, peers=tuple(peers))
        super().__init__(checked=CheckedDevice, position=position, host=host, **options)

    @property
    def now(self) -> float:
        return self.several.now

    def call_in(self, seconds: float, call: Callable[[], None]) -> None:
        self.several.call_in(seconds, call)

    def feed(self, event: events.Event) -> None:
        has_device = "device" in getattr(event, "_fields", ())
        self.several.feed(event._replace(device=self.index) if has_device else event)

    def carry_out(self, one: instructions.Instruction) -> None:
        self.instructions.append(one)
        self._execute[type(one)](one)

    def check(self) -> None:
        self._check_nobody_is_lost()
        self._check_nobody_waits_too_long()


class Several:
    """A pool with several devices.

    Args:
        count: how many.
        peers: by device, the others within its reach; None: all.
        options: of each core.
    """

    def __init__(
        self, count: int = 2, peers: Mapping[str, Sequence[str]] | None = None, **options: object
    ) -> None:
        self.count = count
        self.peers = peers
        self.now = 1000.0
        self.devices: Devices | None = None
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count(1)
        self._events: deque[events.Event] = deque()
        self._is_handling = False
        self.worlds: list[DeviceWorld] = []
        for index in range(count):
            host = self.worlds[0].core if self.worlds else None
            self.worlds.append(DeviceWorld(self, index, host, **options))
        self.host = self.worlds[0]
        for world in self.worlds[1:]:
            for name in _SHARED:
                setattr(world, name, getattr(self.host, name))
        self.devices = Devices([world.checked for world in self.worlds])

    def call_in(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now + seconds, next(self._serial), call))

    def feed(self, event: events.Event) -> None:
        self._events.append(event)
        if self._is_handling:
            return
        self._is_handling = True
        try:
            while self._events:
                for one in self.devices.handle(self._events.popleft(), self.now):
                    self._world_of(one).carry_out(one)
        finally:
            self._is_handling = False

    def _world_of(self, one: instructions.Instruction) -> DeviceWorld:
        if isinstance(one, _OF_A_CHILD):
            return self.worlds[device_of(one.child, self.count)]
        if isinstance(one, _OF_A_DEVICE):
            return self.worlds[one.device]
        if isinstance(one, instructions.GrantRegions) and type(one.filler) is int:
            return self.worlds[device_of(one.filler, self.count)]
        return self.host

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and happen what happens in it."""
        end = self.now + seconds
        while not self.host.is_finished:
            due = min(self.devices.wake_at() + 0.0001, self._timers[0][0] if self._timers else float("inf"))
            if due > end:
                self.now = end
                return
            self.now = max(self.now, due)
            if self.devices.wake_at() <= self.now:
                self.feed(events.TimePassed())
            if self._timers and self._timers[0][0] <= self.now:
                heapq.heappop(self._timers)[2]()

    def check_that_everything_ends(self, asked: list[tuple[str, int]], callers: list[str], names: str) -> None:
        """Whoever asked for something is answered; and once everything is unloaded nothing is left."""
        self.pass_time(120.0)
        for client, number in asked:
            assert self.host.code(number, client), f"{client}'s {number} was never answered"
        callers += [self.host.unload(name) for name in names]
        self.pass_time(10.0)
        assert all(self.host.outcome(caller) for caller in callers)
        for world in self.worlds:
            assert not world.core.library.holdings.sets
        assert not self.host.store.open_fds

    def device_of_model(self, name: str) -> list[str]:
        """The devices that have a model."""
        return [world.core.name for world in self.worlds if name in world.core.library.models]


def several(count: int = 2, **options: object) -> Several:
    """Return a pool whose devices have little memory, and two clients."""
    world = Several(count, **{"workers": 2, "allowance": Allowance(100 * MB, LIMIT_BYTES, 0), **options})
    for client in ("ann", "bob"):
        world.host.join(client)
    world.pass_time(1.0)
    return world


def sized(*sizes_bytes: int) -> LoadPlan:
    """Return how a model is loaded that has regions of these sizes, each with a content of its own."""
    return LoadPlan(wants=tuple((size, bytes([index]) * 16) for index, size in enumerate(sizes_bytes)))
