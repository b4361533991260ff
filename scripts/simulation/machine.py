"""A machine on which everything goes well: the core, a clock, and workers that take the time that they are given.

It does what the supervisor and the processes of a pool do, as far as the core can see, and checks nothing. The
zygote is up, regions are made and weight sets thawed as soon as they are wanted, and no process dies. Messages
take no time, and neither does the core. Runs do not hold each other up, so all workers may run at once.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from onecopy.pool.core import events, instructions
from onecopy.pool.core.core import Core
from onecopy.pool.core.events import Event
from onecopy.protocol import messages

from .journal import Journal
from .scenario import ModelKind, Scenario
from .service import run_time

_NEVER = float("inf")
_TIME_PASSED = events.TimePassed()
#: A request's body is its number in so many bytes.
_NUMBER_BYTES = 8
#: What is said to children and needs no answer.
_NOTHING_TO_SAY = (messages.MapSlot, messages.UnmapSlot)


class Worker:
    """A worker process: what it was told to run, one after another."""

    __slots__ = ("child", "is_busy", "orders")

    def __init__(self, child: int) -> None:
        self.child = child
        self.orders: deque[messages.Run] = deque()
        self.is_busy = False


class Machine:
    """A simulated pool; nothing happens in it but by `run`.

    Args:
        scenario: how many workers and which models there are.
        journal: where it is noted what happened.

    Attributes:
        now: the time, in seconds.
        handle: `Core.handle`, or what is to be called in its place.
        models: the names of all models.
        on_answer: called with the number of each request that was answered.
        is_finished: whether the pool has ended.
    """

    def __init__(self, scenario: Scenario, journal: Journal) -> None:
        self.now = 0.0
        self.core = Core(scenario.seats, scenario.seats)
        self.handle: Callable[[Event, float], list[Any]] = self.core.handle
        self.journal = journal
        self.on_answer: Callable[[int], None] = lambda _: None
        self.is_finished = False
        random = Random(f"{scenario.seed}: runs")
        kinds = {f"model {number}": kind for number, kind in enumerate(scenario.each_model)}
        self.models = list(kinds)
        self._run_times = {name: run_time(kind, random) for name, kind in kinds.items()}
        self._times_by_set: dict[int, Callable[[int], float]] = {}
        self._workers: dict[int, Worker] = {}
        self._agenda: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._serial = 0
        self._waiting: deque[Event] = deque()
        self._is_handling = False
        self._carry_out: dict[type, Callable[[Any], None]] = {
            instructions.ToClient: self._to_client,
            instructions.ToChild: self._to_child,
            instructions.ForkChild: self._fork,
            instructions.ToZygote: self._to_zygote,
            instructions.MakeRegion: self._region_made,
            instructions.GrowRegion: self._region_made,
            instructions.ToCaller: self._nothing,
            instructions.EmptyRegion: self._nothing,
            instructions.FreeRegions: self._nothing,
            instructions.Finish: self._finish,
        }
        self._start(kinds)

    # --- time -----------------------------------------------------------------------------------------------

    def at(self, when: float, call: Callable[[Any], None], argument: Any = None) -> None:
        """Have something called when it is that time."""
        self._serial += 1
        heapq.heappush(self._agenda, (when, self._serial, call, argument))

    def step(self, until: float = _NEVER) -> bool:
        """Let happen what is due next; false if nothing is until then."""
        wake_at = self.core.wake_at()
        due = self._agenda[0][0] if self._agenda else _NEVER
        if min(wake_at, due) > until or wake_at == due == _NEVER or self.is_finished:
            return False
        if wake_at <= due:
            self.now = max(self.now, wake_at)
            self.feed(_TIME_PASSED)
            if self.core.wake_at() <= wake_at:
                raise RuntimeError(f"the core was woken at {wake_at}, as it had asked, and asks for that again")
        else:
            self.now, _, call, argument = heapq.heappop(self._agenda)
            call(argument)
        return True

    def run(self, until: float = _NEVER) -> None:
        """Let happen what happens until then; without an end, until nothing more would."""
        while self.step(until):
            pass
        if until != _NEVER:
            self.now = max(self.now, until)

    def feed(self, event: Event) -> None:
        """Let the core handle an event, and carry out what it wants; what comes of that is fed after it."""
        waiting = self._waiting
        waiting.append(event)
        if self._is_handling:
            return
        self._is_handling = True
        handle, carry_out = self.handle, self._carry_out
        while waiting:
            for one in handle(waiting.popleft(), self.now):
                carry_out[type(one)](one)
        self._is_handling = False

    def stop(self) -> None:
        """End the pool once everything is answered."""
        self.feed(events.StopAsked(drain=True))
        self.run()

    # --- clients --------------------------------------------------------------------------------------------

    def join(self, client: int) -> None:
        """Let a client come."""
        self.feed(events.ClientJoined(client))

    def send(self, client: int, model: int, priority: int = 0) -> None:
        """Let a client ask for a model, by number."""
        number = self.journal.sent(self.now, client, model)
        body = number.to_bytes(_NUMBER_BYTES, "little")
        submit = messages.Submit(number, self.models[model], "", 0.0, 0, priority, "", 0, 0, body, [], [])
        self.feed(events.Submitted(client, submit, []))

    def _to_client(self, one: instructions.ToClient) -> None:
        number = one.message.request
        self.journal.answered(self.now, number, has_failed=type(one.message) is not messages.Reply)
        self.on_answer(number)

    # --- processes ------------------------------------------------------------------------------------------

    def _start(self, kinds: dict[str, ModelKind]) -> None:
        """Declare the models, and fork workers that have all of them."""
        for name, kind in kinds.items():
            options = {
                "warm": True, "max_batch": kind.max_batch, "max_wait_ms": kind.max_wait_ms, "share": kind.share,
                "adaptive": kind.adaptive,
            }  # fmt: skip
            load = messages.LoadModel(name, "frozen", options, [], b"", [], [], [], False, [])
            self.feed(events.ModelDeclared(f"caller of {name}", load))
        self.feed(events.ZygoteReady())

    def _fork(self, one: instructions.ForkChild) -> None:
        if one.role == "worker":
            self._workers[one.child] = Worker(one.child)
        self.feed(events.ChildForked(one.child, 1000 + one.child))

    def _to_zygote(self, one: instructions.ToZygote) -> None:
        if isinstance(one.message, messages.Adopt):
            self.feed(events.ModulesAdopted(one.message.generation, {}, threads=1))
        else:
            self._times_by_set[one.message.weight_set] = self._run_times[one.message.model]
            self.feed(events.SetAdopted(one.message.weight_set, 0, {}, None))

    def _to_child(self, one: instructions.ToChild) -> None:
        message = one.message
        if type(message) is messages.Run:
            worker = self._workers[one.child]
            worker.orders.append(message)
            if not worker.is_busy:
                self._begin(worker)
        elif isinstance(message, messages.Thaw):  # a throwaway fork tries it
            self.feed(events.SetThawed(one.child, message.weight_set, 0, {}, None))
            self.feed(events.ChildExited(one.child, "exit code 0", 0, was_forked=True))
        elif isinstance(message, messages.Leave):
            del self._workers[one.child]
            self.feed(events.ChildExited(one.child, "exit code 0", 0, was_forked=True))
        elif not isinstance(message, _NOTHING_TO_SAY):
            raise TypeError(f"no simulated process knows what to do with {message}")

    def _begin(self, worker: Worker) -> None:
        order = worker.orders.popleft()
        worker.is_busy = True
        seconds = self._times_by_set[order.weight_set](len(order.parts))
        self.at(self.now + seconds, self._end, (worker, order, self.now, seconds))

    def _end(self, run: tuple[Worker, messages.Run, float, float]) -> None:
        worker, order, begun_s, seconds = run
        numbers = [int.from_bytes(part[0], "little") for part in order.parts]
        self.journal.ran(begun_s, self.now, numbers)
        answers = [[b"", [], [], 0] for _ in numbers]
        self.feed(events.AttemptEnded(worker.child, order.attempt, seconds, answers, []))
        worker.is_busy = False
        if worker.orders:
            self._begin(worker)

    # --- the rest -------------------------------------------------------------------------------------------

    def _region_made(self, one: instructions.MakeRegion | instructions.GrowRegion) -> None:
        self.feed(events.RegionMade(one.region, one.size_bytes))

    def _nothing(self, one: object) -> None:
        """Nobody waits for what comes of it."""

    def _finish(self, _: instructions.Finish) -> None:
        self.is_finished = True
