"""A pool without processes: the core, a clock that tests move, and simulated processes around it.

The world does with the core what the supervisor does: feeds it one event after another, carries out what it
wants, and wakes it when it asked for that (a little late, as any real clock). The order of events is one that
the supervisor could see; in particular a child that was never forked is told dead before its zygote is.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable

from core.books import body_of
from core.invariants import CheckedCore
from core.mailing import Mailing
from core.simulated import (
    Child,
    Habits,
    LoadPlan,
    RunPlan,
    SimulatedLoader,
    SimulatedThawer,
    SimulatedTrial,
    SimulatedWorker,
    Zygote,
)
from onecopy.pool.core import events, instructions
from onecopy.pool.core.position import ALONE
from onecopy.pool.core.seen import Seen
from onecopy.pool.memory.base import Region
from onecopy.pool.memory.fake import FakeStore
from onecopy.protocol import messages

#: How late a timer goes off.
_LATE_S = 0.0001
#: How long it takes to move regions out of memory, or back.
MOVE_S = 0.03
#: Turns of the loop within one `pass_time`; more is a loop that never rests.
_MOST_TURNS = 20_000
_NEVER = float("inf")
NO_MEMORY = {"code": "out_of_budget", "message": "no memory", "details": {}}


class World:
    """A pool, its clients and its processes.

    Args:
        workers, slots, options: as in `Core`.
        habits: what user code does.
        checked: what checks the core.

    Attributes:
        instructions, said: all that the core has wanted, and what of it are messages to children.
    """

    def __init__(
        self,
        workers: int = 1,
        slots: int = 0,
        habits: Habits | None = None,
        checked: type[CheckedCore] = CheckedCore,
        **options: object,
    ) -> None:
        self.checked = checked(workers, slots, **options)
        self.instructions: list[instructions.Instruction] = []
        self.core = self.checked.core
        self.habits = habits or Habits()
        self.is_gpu = options.get("position", ALONE).is_gpu
        self.store = FakeStore()
        self.children: dict[int, Child] = {}
        self.zygote: Zygote | None = None
        self.zygotes = 0
        self.run_plans: dict[bytes, RunPlan] = {}
        self.load_plans: dict[bytes, LoadPlan] = {}
        self.inboxes: dict[str, dict[int, object]] = {}
        self.items: dict[tuple[str, int], list[bytes]] = {}
        self.answers: dict[str, object] = {}
        self.attached: dict[str, tuple[int, ...]] = {}
        self.reports: list[str] = []
        self.remembered: list[instructions.Remember] = []
        self.loads_seen: dict[str, Seen] = {}
        self.is_finished = False
        self.regions: dict[int, Region] = {}
        self.mailing = Mailing(self)
        self.disk: set[int] = set()  # regions whose content is there, and not in memory
        self._memory_bytes = 0  # what the system has; 0: nobody asks
        self._granted: dict[str, list[list[object]]] = {}
        self._fill_plans: dict[str, Callable[[], None]] = {}  # what callers do when they get their regions
        self._events: deque[events.Event] = deque()
        self._is_handling = False
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count(1)
        self._execute: dict[type, Callable[..., None]] = {
            instructions.ToClient: self._to_client,
            instructions.ToChild: self._to_child,
            instructions.ToCaller: self._to_caller,
            instructions.ForkChild: self._fork,
            instructions.SignalChild: self._signal,
            instructions.Interrupt: self._interrupt,
            instructions.TellLate: lambda _: None,
            instructions.GrantRegions: self._grant,
            instructions.FreeRegions: lambda one: self._free(one.regions),
            instructions.MakeRegion: self._make,
            instructions.GrowRegion: self._grow,
            instructions.MoveRegions: self._move,
            instructions.EmptyRegion: self._empty,
            instructions.Remember: lambda one: self.remembered.append(one),
            instructions.RememberLoad: lambda one: self.loads_seen.update({one.load_key: one.seen}),
            instructions.ToZygote: lambda one: self.zygote and self.zygote.order(one.message, one.regions),
            instructions.ReplaceZygote: lambda _: self._replace_zygote(),
            instructions.Report: lambda one: self.reports.append(one.text),
            instructions.Finish: lambda _: self._finish(),
        }
        self._replace_zygote()

    # --- time -----------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self.checked.now

    def call_in(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now + seconds, next(self._serial), call))

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and happen what happens in it."""
        end = self.now + seconds
        for _ in range(_MOST_TURNS):
            if self.is_finished:
                return
            if self.core.wake_at() <= self.now:
                self.feed(events.TimePassed())
                self.checked.check_wake()
                continue
            due = min(self.core.wake_at() + _LATE_S, self._timers[0][0] if self._timers else _NEVER)
            if due > end:
                self.checked.now = end
                self._check_nobody_waits_too_long()
                return
            self.checked.now = max(self.now, due)
            if self._timers and self._timers[0][0] <= self.now:
                heapq.heappop(self._timers)[2]()
        raise AssertionError("the loop never rests:\n" + "\n".join(self.checked.story))

    def pass_time_until(self, is_so: Callable[[], bool], at_most_s: float = 60.0) -> None:
        end = self.now + at_most_s
        while not is_so() and self.now < end:
            self.pass_time(0.01)
        assert is_so(), "it never came true:\n" + "\n".join(self.checked.story)

    def feed(self, event: events.Event) -> None:
        """As in the supervisor: what comes of an event is handled after it."""
        if self._memory_bytes and isinstance(event, events.RegionsNeeded | events.RegionsMoved):
            self._events.append(events.MemoryAvailable(self._memory_bytes - self._taken_bytes()))
        self._events.append(event)
        if self._is_handling or self.is_finished:
            return
        self._is_handling = True
        try:
            while self._events:
                for one in self.checked.feed(self._events.popleft()):
                    self.instructions.append(one)
                    self._execute[type(one)](one)
        finally:
            self._is_handling = False
        self._check_nobody_is_lost()

    # --- what tests do --------------------------------------------------------------------------------------

    def join(self, client: str = "ann") -> None:
        self.inboxes.setdefault(client, {})
        self.feed(events.ClientJoined(client, self.mailing.join(client)))

    def submit(
        self,
        model: str,
        client: str = "ann",
        *,
        timeout_s: float = 0.0,
        retries: int = 0,
        plan: RunPlan | None = None,
        has_arrays: bool = False,
        **fields: object,
    ) -> int:
        number = next(self._serial)
        body = body_of(client, number)
        self.run_plans[body] = plan or RunPlan()
        places, reply = self.mailing.lend(client, number, body) if has_arrays else ([], [])
        submit = messages.Submit(number, model, "", timeout_s, retries, 0, "", 0, 0, body, places, reply)
        submit = submit._replace(**fields)
        self.feed(events.Submitted(client, submit, []))
        return number

    def load(
        self,
        name: str,
        *,
        eager: bool = True,
        warm: bool = False,
        frozen: bool = False,
        workspace: str = "device",
        plan: LoadPlan | None = None,
        **more: object,
    ) -> str:
        """Declare a model; return the caller, whose answer will be in `answers`."""
        plan, caller = plan or LoadPlan(), f"caller {next(self._serial)}"
        key = caller.encode()
        self.load_plans[key] = plan
        options = {"warm": warm, "workspace": workspace, **more}
        load = messages.LoadModel(name, "factory", options, [], key, [], ["/app"], [], eager, [])
        if not frozen:
            self.feed(events.ModelDeclared(caller, load))
            return caller
        self._fill_plans[caller] = lambda: self._hand_over(caller, load, plan)
        self.feed(events.RegionsNeeded(caller, list(plan.wants)))
        if caller in self._granted or not plan.wants:
            self._fill_plans.pop(caller)()
        return caller

    def _hand_over(self, caller: str, load: messages.LoadModel, plan: LoadPlan) -> None:
        """Fill what was granted, and declare a model that lies in it."""
        numbers: list[int] = []
        for number, state in self._granted.pop(caller, []):
            numbers.append(number)
            if state == "fill":
                self.filled(caller, number)
        frozen = load._replace(source="frozen", modules=list(plan.modules), regions=numbers)
        self.feed(events.ModelDeclared(caller, frozen))

    def measure(self, total_bytes: int, **more: object) -> None:
        """Let the core know what memory there is, and what of it is taken."""
        self._memory_bytes = total_bytes
        plain = events.MemoryMeasured(total_bytes, total_bytes - self._taken_bytes(), 0, 0, {}, {}, 0)
        self.feed(plain._replace(**more))

    def _taken_bytes(self) -> int:
        regions = self.core.library.holdings.regions
        return regions.resident_bytes + regions.filling_bytes - regions.unwritten_bytes

    def pin(self, name: str, *, is_pinned: bool = True) -> str:
        caller = f"caller {next(self._serial)}"
        self.feed(events.ModelPinned(caller, name, is_pinned))
        return caller

    def evict(self, name: str) -> str:
        caller = f"caller {next(self._serial)}"
        self.feed(events.ModelEvicted(caller, name))
        return caller

    def move(self, name: str, device: str) -> str:
        caller = f"caller {next(self._serial)}"
        self.feed(events.ModelMoved(caller, name, device))
        return caller

    def attach(self, name: str) -> str:
        caller = f"caller {next(self._serial)}"
        self.feed(events.ModelWanted(caller, name))
        return caller

    def detach(self, caller: str) -> None:
        self.attached.pop(caller, None)
        self.feed(events.CallerLeft(caller))

    def unload(self, name: str) -> str:
        caller = f"caller {next(self._serial)}"
        self.feed(events.ModelRemoved(caller, name))
        return caller

    def outcome(self, caller: str) -> str:
        """What a caller was told: ``done``, the code of an error, or nothing yet."""
        answer = self.answers.get(caller)
        if answer is None:
            return ""
        return str(answer.error["code"]) if isinstance(answer, messages.Refused) else "done"

    def code(self, number: int, client: str = "ann") -> str:
        """What a client was told about a request: ``reply``, the code of an error, or nothing yet."""
        answer = self.inboxes[client].get(number)
        if answer is None:
            return ""
        return "reply" if isinstance(answer, messages.Reply) else str(answer.error["code"])

    def workers(self) -> list[SimulatedWorker]:
        return [one for one in self.children.values() if one.role == "worker" and one.pid and one.is_alive]

    def loaders(self) -> list[SimulatedLoader]:
        return [one for one in self.children.values() if one.role == "loader" and one.pid and one.is_alive]

    def filled(self, filler: object, number: int) -> None:
        self.store.seal(self.regions[number])
        self.feed(events.RegionsFilled(filler, [number]))

    def are_open(self, numbers: Iterable[int]) -> bool:
        return all(number in self.regions and number not in self.disk for number in numbers)

    def zygote_dies(self, cause: str) -> None:
        """The zygote ends; what it never forked is told dead first, and the core may react to that."""
        if self.zygote is None:
            return
        self._end_zygote()
        self.feed(events.ZygoteDied(cause))

    # --- what the core wants --------------------------------------------------------------------------------

    def _to_client(self, one: instructions.ToClient) -> None:
        self.mailing.told(one.client, one.message)
        if isinstance(one.message, messages.Item):
            self.items.setdefault((one.client, one.message.request), []).append(one.message.body)
        elif not isinstance(one.message, messages.Released):
            self.inboxes.setdefault(one.client, {})[one.message.request] = one.message

    @property
    def said(self) -> list[messages.Message]:
        return [one.message for one in self.instructions if isinstance(one, instructions.ToChild)]

    def _to_child(self, one: instructions.ToChild) -> None:
        assert self.are_open(one.regions)
        if one.child in self.children:  # else it is dead, and the core is about to hear of it
            self.children[one.child].send(one.message, one.regions)

    def _fork(self, one: instructions.ForkChild) -> None:
        kind = {"worker": SimulatedWorker, "loader": SimulatedLoader, "trial": SimulatedTrial}[one.role]
        child = self.children[one.child] = kind(self, one.child)
        if self.zygote is not None:
            self.zygote.order(child)

    def _signal(self, one: instructions.SignalChild) -> None:
        if one.child in self.children:
            self.children[one.child].signal(one.signal)

    def _interrupt(self, one: instructions.Interrupt) -> None:
        if one.child in self.children:
            self.children[one.child].interrupt(one.attempt, kill=one.kill)

    def _grant(self, one: instructions.GrantRegions) -> None:
        loader = self.children.get(one.filler) if type(one.filler) is int else None
        for grant in one.grants:
            if grant.is_new and loader is not None and loader.plan.outcome == "refused":
                self.feed(events.FillingFailed(one.filler, NO_MEMORY))
                return
            if grant.is_new:
                self.regions[grant.number] = self.store.create(grant.size_bytes, "weights")
            elif grant.state == "compare":
                assert self.regions[grant.number].sealed, "what is not filled is to be compared"
        granted = [[grant.number, grant.state] for grant in one.grants]
        if loader is not None:
            loader.send(messages.RegionsGranted(granted), ())
        elif type(one.filler) is not int:
            self._granted[one.filler] = granted
            if one.filler in self._fill_plans:  # it has waited
                self.call_in(0.0, lambda: self._fill_plans.pop(one.filler, lambda: None)())

    def _make(self, one: instructions.MakeRegion) -> None:
        if one.use in self.habits.refused_uses:
            self.feed(events.RegionFailed(one.region, NO_MEMORY))
            return
        is_resizable = one.use == "slot" and not self.is_gpu
        self.regions[one.region] = self.store.create(one.size_bytes, one.use, resizable=is_resizable)
        self.feed(events.RegionMade(one.region, one.size_bytes))

    def _grow(self, one: instructions.GrowRegion) -> None:
        if "slot" in self.habits.refused_uses:
            self.feed(events.RegionFailed(one.region, NO_MEMORY))
            return
        self.store.grow(self.regions[one.region], one.size_bytes)
        self.feed(events.RegionMade(one.region, one.size_bytes))

    def _empty(self, one: instructions.EmptyRegion) -> None:
        assert not self.is_gpu, "pages of a GPU's region are to be given back alone"
        self.store.empty(self.regions[one.region], one.kept_bytes)

    def _move(self, one: instructions.MoveRegions) -> None:
        is_out = one.tier == "disk"
        for number in one.regions:
            assert self.regions[number].sealed, "what is not filled is to be moved"
            assert (number in self.disk) != is_out, f"region {number} is on its way to where it is"
        assert not set(one.regions) & self._mapped(), "a region is moved under somebody who has it mapped"
        self.call_in(MOVE_S, lambda: self._moved(one))

    def _moved(self, one: instructions.MoveRegions) -> None:
        error = NO_MEMORY if one.tier in self.habits.refused_uses else None
        if error is None:
            there = {number for number in one.regions if number in self.regions}
            self.disk = self.disk | there if one.tier == "disk" else self.disk - there
        self.feed(events.RegionsMoved(one.regions, one.tier, MOVE_S, error))

    def _to_caller(self, one: instructions.ToCaller) -> None:
        self.answers[one.caller] = one.message
        if isinstance(one.message, messages.Attached):
            assert self.are_open(one.regions)
            self.attached[one.caller] = one.regions
        elif isinstance(one.message, messages.MailboxGranted):
            assert self.are_open(one.regions)
            self.mailing.granted_to(one.caller, one.message)

    def _mapped(self) -> set[int]:
        """The regions that somebody has mapped."""
        having = [one for one in self.children.values() if isinstance(one, SimulatedThawer) and one.is_alive]
        if self.zygote is not None and not self.core.fleet.is_dismissing:
            having.append(self.zygote)
        mapped = {number for one in having for _, held in one.mapped.values() for number in held}
        return mapped | {number for held in self.attached.values() for number in held}

    def _free(self, numbers: Iterable[int]) -> None:
        mapped = self._mapped()
        for number in numbers:
            assert number not in mapped, "a region is freed under somebody who has it mapped"
            self.disk.discard(number)
            if number in self.regions:  # else its memory was refused
                self.store.close(self.regions.pop(number))

    def _replace_zygote(self) -> None:
        self._end_zygote()
        self.zygotes += 1
        self.zygote = Zygote(self)

    def _end_zygote(self) -> None:
        """End the zygote, and let go of the children that it has not forked, or whose end it has not told."""
        if self.zygote is None:
            return
        self.zygote.is_alive = False
        self.zygote = None
        while orphans := [child for child in self.children.values() if not child.pid or not child.is_alive]:
            for child in sorted(orphans, key=lambda one: one.pid):
                if child.pid:
                    child.tell()
                elif self.child_is_gone(child.number):
                    child.is_alive = False
                    self.feed(events.ChildExited(child.number, "unknown", 0, was_forked=False))

    def _finish(self) -> None:
        assert not self.is_finished
        self.is_finished = True

    def child_is_gone(self, number: int) -> bool:
        """The supervisor's part when a child has ended; false if that was known."""
        return self.children.pop(number, None) is not None

    def _check_nobody_waits_too_long(self) -> None:
        late = [one for one in self.core.requests.everyone() if one.deadline + 2 * _LATE_S < self.now]
        assert not late, f"{late} should have been ended:\n" + "\n".join(self.checked.story)

    def _check_nobody_is_lost(self) -> None:
        """Whoever the core waits for exists: each child is forked, or the zygote has the order to."""
        if self.zygote is None or self.is_finished:
            return
        ordered = {one.number for one in self.zygote.orders if isinstance(one, Child)}
        lost = [child.number for child in self.children.values() if not child.pid and child.number not in ordered]
        assert not lost, f"children {lost} were ordered from a zygote that is gone:\n" + "\n".join(
            self.checked.story
        )
        gone = [one for one in self.core.fleet.workers if one.child not in self.children]
        assert not gone, f"{gone} do not exist:\n" + "\n".join(self.checked.story)
