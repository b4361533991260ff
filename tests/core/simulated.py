"""Processes of a simulated pool: a zygote, loaders and workers that do what the real ones do, in no time.

Each takes the messages that it was sent one after another. What it says is handled before its death is told,
as the supervisor sees to it.
"""

from __future__ import annotations

import signal
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from core.books import answer_to, item_of
from onecopy.pool.core import events
from onecopy.pool.core.regions import Want
from onecopy.protocol import messages

if TYPE_CHECKING:
    from core.world import World

FORK_S = 0.008
START_S = 0.5
THAW_S = 0.02
EXIT_S = 0.002


NO = {"code": "load_failed", "message": "no", "details": {}}


@dataclass
class RunPlan:
    """How the runs of one request go: each takes ``seconds``; the first ``kills`` end the worker midway.

    It needs ``peak_bytes`` of its slot, and keeps something there if it ``escapes``.
    """

    seconds: float = 0.01
    kills: int = 0
    raises: bool = False
    peak_bytes: int = 0
    escapes: bool = False
    items: int = 3  # if a stream is asked for; each takes so long


@dataclass
class LoadPlan:
    """How a load goes: ``built``, ``fails``, ``dies`` (after having asked for memory) or ``refused`` memory."""

    outcome: str = "built"
    seconds: float = 0.05
    modules: tuple[str, ...] = ()
    wants: tuple[tuple[int, bytes], ...] = ((4096, b""), (100, b""))  # equal digests stand for equal contents


@dataclass
class Habits:
    """What user code does to processes, by the names of modules and models."""

    modules: dict[str, str] = field(default_factory=dict)  # to "thread", "dies" or "raises"; others are harmless
    thaw_kills: set[str] = field(default_factory=set)
    #: What models do when they are thawed: "thread" or "hangs"; or only in the zygote: "zygote: thread", "zygote:
    #: hangs" or "zygote: dies".
    thaws: dict[str, str] = field(default_factory=dict)
    thaw_fails: set[str] = field(default_factory=set)
    clings: set[str] = field(default_factory=set)  # something keeps their weights mapped
    stubborn: set[int] = field(default_factory=set)  # signals that processes survive
    zygote_fails: int = 0  # how many zygotes die before they are ready
    without_slots: str = ""
    #: For "slot" or "mailbox" there is no memory; or regions cannot be moved to "disk" or "memory".
    refused_uses: set[str] = field(default_factory=set)


class Zygote:
    """Imports and forks, one order after another."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.is_alive = True
        self.is_busy = True
        self.orders: deque[object] = deque()
        self.imported: set[str] = set()
        self.mapped: dict[int, tuple[str, tuple[object, ...]]] = {}  # or about to be
        self.thawed: set[int] = set()
        self.threads = 1
        world.call_in(START_S, self._up)

    def order(self, one: object, regions: tuple[object, ...] = ()) -> None:
        if isinstance(one, messages.Thaw):
            assert self.world.are_open(regions), "freed regions are handed over"
            assert one.weight_set not in self.mapped, "the zygote thaws what it has"
            self.mapped[one.weight_set] = (one.model, regions)
        self.orders.append(one)
        self._next()

    def _up(self) -> None:
        if not self.is_alive:
            return
        if self.world.habits.zygote_fails:
            self.world.habits.zygote_fails -= 1
            self.world.zygote_dies("exit code 1")
            return
        self.is_busy = False
        self.world.feed(events.ZygoteReady(self.world.habits.without_slots))
        self._next()

    def _next(self) -> None:
        if self.is_busy or not self.orders:
            return
        self.is_busy = True
        one = self.orders[0]
        if isinstance(one, messages.Adopt):
            new = sum(name not in self.imported for name in one.modules)
            self.world.call_in(0.001 + 0.1 * new, lambda: self._finish(one))
        elif isinstance(one, messages.Thaw):
            if "hangs" not in self.world.habits.thaws.get(one.model, ""):
                self.world.call_in(THAW_S, lambda: self._finish(one))
        else:
            assert self.threads == 1, "it forks although it has a second thread"
            self.world.call_in(FORK_S, lambda: self._finish(one))

    def _finish(self, one: object) -> None:
        if not self.is_alive:
            return
        self.orders.popleft()
        self.is_busy = False
        if isinstance(one, messages.Adopt):
            self._adopt(one)
        elif isinstance(one, messages.Thaw):
            self._thaw(one)
        else:
            one.inherit({number: self.mapped[number] for number in self.thawed})
            one.fork()
        if self.is_alive:
            self._next()

    def _adopt(self, order: messages.Adopt) -> None:
        refused: dict[str, str] = {}
        for name in order.modules:
            if name in self.imported:
                continue
            habit = self.world.habits.modules.get(name, "")
            if habit == "dies":
                self.world.zygote_dies("SIGSEGV")
                return
            self.imported.add(name)
            if habit == "raises":
                refused[name] = "importing it raised ImportError: no"
            if habit == "thread":
                self.threads = 2
                refused[name] = "importing it starts a thread"
                break
        self.world.feed(events.ModulesAdopted(order.generation, refused, self.threads))

    def _thaw(self, order: messages.Thaw) -> None:
        habits = self.world.habits
        habit = habits.thaws.get(order.model, "")
        if order.model in habits.thaw_kills or habit == "zygote: dies":
            self.world.zygote_dies("SIGSEGV")
            return
        if "thread" in habit:
            self.threads = 2
        self.thawed.add(order.weight_set)
        failed = order.model in habits.thaw_fails or "thread" in habit
        self.world.feed(events.SetAdopted(order.weight_set, 7, {}, NO if failed else None))


class Child:
    """A process from the order to fork it until its death was told."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.pid = 0
        self.is_alive = True  # or, not forked yet, it may come
        self.is_closed = False  # signalled before it was forked: it finds its channel closed and leaves
        self.is_busy = False
        self.inbox: deque[object] = deque()
        self.begun = 0
        self.cause = ""

    def inherit(self, mapped: dict[int, tuple[str, tuple[object, ...]]]) -> None:
        """Have what the zygote has mapped; a loader lets go of it at once."""

    def fork(self) -> None:
        if not self.is_alive:
            return
        self.pid = 10_000 + self.number
        self.world.feed(events.ChildForked(self.number, self.pid))
        if self.is_closed:
            self.world.call_in(EXIT_S, lambda: self.die("exit code 0"))
        else:
            self._next()

    def send(self, message: object, regions: tuple[object, ...]) -> None:
        if self.is_alive and not self.is_closed:
            self.inbox.append((message, regions))
            self._next()

    def signal(self, number: int) -> None:
        if not self.pid:
            self.is_closed = True
        elif number not in self.world.habits.stubborn:
            self.world.call_in(EXIT_S, lambda: self.die(signal.Signals(number).name))

    def die(self, cause: str, *, told_in_s: float = 0.0) -> None:
        """End; the supervisor tells the core a little later, when it has read everything."""
        if self.is_alive and self.pid:
            self.is_alive = False
            self.cause = cause
            self.world.call_in(told_in_s, self.tell)

    def handle(self, message: object, regions: tuple[object, ...]) -> None:
        raise NotImplementedError

    def later(self, seconds: float, call: object) -> None:
        """Be busy for a while, then do something, if still there."""
        self.is_busy = True
        self.world.call_in(seconds, lambda: self._done(call))

    def _done(self, call: object) -> None:
        if self.is_alive:
            self.is_busy = False
            call()
            self._next()

    def _next(self) -> None:
        while self.pid and self.is_alive and not self.is_busy and self.inbox:
            self.handle(*self.inbox.popleft())

    def tell(self) -> None:
        """Let its death be known, unless it is."""
        if self.world.child_is_gone(self.number):
            self.world.feed(events.ChildExited(self.number, self.cause, self.begun, was_forked=True))


class SimulatedLoader(Child):
    role = "loader"

    def handle(self, message: object, regions: tuple[object, ...]) -> None:
        if isinstance(message, messages.BuildModel):
            # What an app has handed over is copied to the GPU.
            self.plan = LoadPlan() if message.source == "frozen" else self.world.load_plans[message.pickled]
            assert self.world.are_open(regions)
            self.name = message.name
            self.room = dict(message.options.get("room", {}))
            self.later(self.plan.seconds, self._built)
        else:
            assert isinstance(message, messages.RegionsGranted)
            self.later(self.plan.seconds, lambda: self._written(message.regions))

    def _built(self) -> None:
        if self.plan.outcome == "fails":
            error = {"code": "load_failed", "message": "it raised", "details": {}}
            self.world.feed(events.BuildFailed(self.number, error))
            self.die("exit code 0", told_in_s=EXIT_S)
        else:
            self.numbers = [0] * len(self.plan.wants)
            self.devices = [self._take_room(size_bytes) for size_bytes, _ in self.plan.wants]
            self._ask(list(range(len(self.plan.wants))))

    def _take_room(self, size_bytes: int) -> str:
        """Return the device that a region of a model that is divided goes to; empty: it is not."""
        if not self.room:
            return ""
        device = max(self.room, key=lambda name: self.room[name])
        self.room[device] -= size_bytes
        return device

    def _ask(self, places: list[int]) -> None:
        if places:
            device = self.devices[places[0]]
            places = self.asked = [place for place in places if self.devices[place] == device]
            if device:
                self.world.feed(events.ModelExpected(self.number, self.name, [device], 0))
            self.world.feed(
                events.RegionsNeeded(self.number, [self._want(*self.plan.wants[place]) for place in places])
            )
        else:
            self._all_written()

    def _want(self, size_bytes: int, digest: bytes) -> Want:
        """Beside a GPU, what is small is the processor's."""
        return Want(size_bytes, digest, self.world.is_gpu and size_bytes > 100)

    def _written(self, grants: list[list[object]]) -> None:
        """Fill what is empty; what another is filling, ask for again, alone."""
        if self.plan.outcome == "dies":
            self.die("SIGSEGV")
            return
        for place, (number, state) in zip(self.asked, grants, strict=True):
            if state == "fill":
                self.world.filled(self.number, number)
            if state != "wait":
                self.numbers[place] = number
        self._ask([place for place, number in enumerate(self.numbers) if not number][-1:])

    def _all_written(self) -> None:
        built = messages.ModelBuilt([], b"skeleton", list(self.plan.modules), self.numbers, False, [])
        self.world.feed(events.ModelBuilt(self.number, built))
        self.die("exit code 0", told_in_s=EXIT_S)


class SimulatedThawer(Child):
    """Has weight sets mapped, some of them from the start."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, number)
        self.mapped: dict[int, tuple[str, tuple[object, ...]]] = {}

    def inherit(self, mapped: dict[int, tuple[str, tuple[object, ...]]]) -> None:
        self.mapped.update(mapped)

    def thaw(self, order: messages.Thaw, regions: tuple[object, ...]) -> None:
        assert self.world.are_open(regions), "freed regions are handed over"
        assert order.weight_set not in self.mapped, "what is there already is handed over"
        self.mapped[order.weight_set] = (order.model, regions)
        if order.eager:
            self.later(THAW_S, lambda: self._thawed(order))

    def _thawed(self, order: messages.Thaw) -> None:
        if order.model in self.world.habits.thaw_kills:
            self.die("SIGSEGV")
            return
        failed = order.model in self.world.habits.thaw_fails
        self.world.feed(events.SetThawed(self.number, order.weight_set, 0, {}, NO if failed else None))


class SimulatedTrial(SimulatedThawer):
    role = "trial"

    def handle(self, message: object, regions: tuple[object, ...]) -> None:
        assert isinstance(message, messages.Thaw)
        habit = self.world.habits.thaws.get(message.model)
        if habit == "hangs":
            self.is_busy = True
        else:
            self.thaw(message, regions)

    def _thawed(self, order: messages.Thaw) -> None:
        if self.world.habits.thaws.get(order.model) == "thread":
            self.world.feed(events.SetThawed(self.number, order.weight_set, 0, {}, NO))
        else:
            super()._thawed(order)
        self.die("exit code 0", told_in_s=EXIT_S)


class SimulatedWorker(SimulatedThawer):
    role = "worker"

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, number)
        self.slots: set[int] = set()
        self.slot_bytes: dict[int, int] = {}  # how large they were when they came
        self.mailboxes: set[int] = set()
        self.credit: dict[int, int] = {}
        self.interrupted: set[int] = set()
        self.paused: object = None

    def handle(self, message: object, regions: tuple[object, ...]) -> None:
        if isinstance(message, messages.Thaw):
            self.thaw(message, regions)
        elif isinstance(message, messages.Run):
            plan = self._plan_of(message)
            self.begun = message.attempt
            model, regions = self.mapped[message.weight_set]
            assert self.world.are_open(regions), "it runs on freed regions"
            if message.slot:
                assert message.slot in self.slots, "it runs in a slot that it does not have"
                assert 0 < message.limit_bytes <= self._slot_bytes(message.slot)
            self.world.mailing.touched(message, self.mailboxes)
            self.credit[message.attempt] = self.credit.get(message.attempt, 0) + message.credit
            if message.credit:
                self.later(plan.seconds, lambda: self._yield(message, model, plan, 1))
            else:
                self.later(plan.seconds, lambda: self._ran(message, model, plan))
        elif isinstance(message, messages.MapSlot):
            assert message.slot not in self.slots, "a slot is handed over twice"
            assert regions == (message.slot,)
            assert message.size_bytes == self.world.regions[message.slot].size_bytes
            self.slots.add(message.slot)
            self.slot_bytes[message.slot] = message.size_bytes
        elif isinstance(message, messages.UnmapSlot):
            self.slots.remove(message.slot)
        elif isinstance(message, messages.MapMailbox):
            assert message.mailbox not in self.mailboxes, "a mailbox is handed over twice"
            assert regions == (message.mailbox,)
            self.mailboxes.add(message.mailbox)
        elif isinstance(message, messages.UnmapMailbox):
            self.mailboxes.remove(message.mailbox)
        elif isinstance(message, messages.Forget):
            model, _ = self.mapped[message.weight_set]
            is_unmapped = model not in self.world.habits.clings
            if is_unmapped:
                del self.mapped[message.weight_set]
            self.world.feed(events.SetForgotten(self.number, message.weight_set, is_unmapped))
        else:
            assert isinstance(message, messages.Leave)
            self.is_busy = True
            self.world.call_in(EXIT_S, lambda: self.die("exit code 0"))

    def _slot_bytes(self, slot: int) -> int:
        """How large a slot is; on a GPU one that is freed stays as it was until it is unmapped."""
        if slot in self.world.regions:
            return self.world.regions[slot].size_bytes
        assert self.world.is_gpu, "it runs in a slot that is freed"
        return self.slot_bytes[slot]

    def _ran(self, order: messages.Run, model: str, plan: RunPlan) -> None:
        self.world.mailing.touched(order, self.mailboxes)
        if plan.kills or model in self.world.habits.thaw_kills:
            plan.kills = max(0, plan.kills - 1)
            self.die("SIGSEGV")
            return
        if order.slot and (plan.peak_bytes or plan.escapes):
            spilled_bytes = max(0, plan.peak_bytes - order.limit_bytes)
            footprint_bytes = plan.peak_bytes - spilled_bytes
            used = messages.Used(order.weight_set, "x", footprint_bytes, spilled_bytes, 64 * plan.escapes)
            self.world.feed(events.SlotUsed(self.number, used))
        error = {"code": "model_error", "message": "it raised", "details": {}}
        if order.attempt in self.interrupted:
            answers = [error for _ in order.parts]
        else:
            plans = [self.world.run_plans[part[0]] for part in order.parts]
            answers = [
                error if one.raises else [answer_to(part[0]), [], [], 0]
                for one, part in zip(plans, order.parts, strict=True)
            ]
        # The answer is sent before the note of what has begun is cleared: a death in between may blame
        # an attempt that is answered already, so the events come in this order.
        self.world.feed(events.AttemptEnded(self.number, order.attempt, plan.seconds, answers, []))
        if self.begun == order.attempt:  # else the next one has come meanwhile
            self.begun = 0

    def _plan_of(self, order: messages.Run) -> RunPlan:
        """How a batch goes: as the first of those that kill goes, else as the one that takes longest."""
        plans = [self.world.run_plans[part[0]] for part in order.parts]
        return next((one for one in plans if one.kills), max(plans, key=lambda one: one.seconds))

    # --- streams --------------------------------------------------------------------------------------------

    def send(self, message: object, regions: tuple[object, ...]) -> None:
        if isinstance(message, messages.ContinueRun):
            self.credit[message.attempt] = self.credit.get(message.attempt, 0) + message.items
            if self.is_alive and message.attempt == self.begun:
                self._resume()
        else:
            super().send(message, regions)

    def interrupt(self, attempt: int, *, kill: bool) -> None:
        self.interrupted.add(attempt)  # it is told by a message too, which it reads when it waits for a reader
        if not self.is_alive or attempt != self.begun:
            return
        if kill:
            self.die("SIGKILL", told_in_s=EXIT_S)
        self._resume()

    def _yield(self, order: messages.Run, model: str, plan: RunPlan, number: int) -> None:
        if order.attempt in self.interrupted or number > plan.items:
            self._ran(order, model, plan)
        elif not self.credit[order.attempt]:
            self.is_busy = True
            self.paused = lambda: self._yield(order, model, plan, number)
        else:
            self.credit[order.attempt] -= 1
            body = item_of(order.parts[0][0], number)
            self.is_busy = True  # whatever comes of the item, this goes on first
            self.world.feed(events.ItemYielded(self.number, order.attempt, body, []))
            if self.is_alive:
                self.later(plan.seconds, lambda: self._yield(order, model, plan, number + 1))

    def _resume(self) -> None:
        if self.paused is not None:
            call, self.paused = self.paused, None
            self.later(0.0, call)
