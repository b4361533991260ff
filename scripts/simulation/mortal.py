"""A machine on which things go wrong: what `machine` simulates, with loaders, a disk, and processes that die.

Workers are forked, loaders write weights, and weights are moved to the disk and back; each takes its time, and may
be ended in the midst of it. Whoever dies has said what he had to say, and is told dead after that.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Final

from onecopy.pool.core import events, instructions
from onecopy.protocol import messages

from .journal import Journal
from .machine import Machine
from .scenario import ModelKind, Scenario

#: How long things take, in seconds; as a real pool's do (see scripts/benchmarks).
_FORK_S: Final = 0.008
_START_S: Final = 0.8
_BUILD_S: Final = 0.5
_FILL_S: Final = 0.05
_MOVE_S: Final = 0.1
_EXIT_S: Final = 0.002
#: The regions of each weight set.
_WANTS: Final = [[64 << 20, b""], [4096, b""]]
_FULL: Final = {"code": "out_of_budget", "message": "the disk is full", "details": {}}


class Process:
    """A child, from the order to fork it until its death was told."""

    def __init__(self, number: int, role: str) -> None:
        self.number = number
        self.role = role
        self.is_forked = False
        self.is_alive = True
        self.inbox: deque[Any] = deque()
        self.running: messages.Run | None = None
        self.name = ""  # of the model that a loader builds
        self.numbers: list[int] = []


class MortalMachine(Machine):
    """A simulated pool whose processes can be killed.

    Args:
        scenario: how many workers and which models there are.

    Attributes:
        on_message: called with each message to a client: the client and the message.
        on_death: called before a worker is killed that the core wants dead.
        disk_is_full: whether nothing can be moved now, neither out of memory nor back.
        unanswered_callers: those who asked for a model to be loaded, unloaded, evicted, and wait.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.on_message: Callable[[Any, Any], None] = lambda _client, _message: None
        self.on_death: Callable[[], None] = lambda: None
        self.disk_is_full = False
        self.unanswered_callers: set[str] = set()
        self._processes: dict[int, Process] = {}
        self._zygote = 0  # which one it is; negative: none is up
        self._callers = 0
        self._random = Random(f"{scenario.seed}: runs of mortals")
        super().__init__(scenario, Journal(0.0, 0.0))

    # --- what others do to it -------------------------------------------------------------------------------

    def load(self, name: str) -> None:
        """Declare a model, or the next version of it, and have it loaded."""
        load = messages.LoadModel(name, "factory", {}, [], name.encode(), [], [""], [], True, [])
        self.feed(events.ModelDeclared(self._caller(), load))

    def unload(self, name: str) -> None:
        """Have a model forgotten."""
        self.feed(events.ModelRemoved(self._caller(), name))

    def evict(self, name: str) -> None:
        """Have a model moved to the disk."""
        self.feed(events.ModelEvicted(self._caller(), name))

    def of_role(self, role: str) -> list[Process]:
        """Return the processes of a role that live, the busy ones first."""
        living = [one for one in self._processes.values() if one.role == role and one.is_forked and one.is_alive]
        return sorted(living, key=lambda one: one.running is None)

    def kill(self, process: Process, cause: str = "SIGKILL") -> None:
        """End a process; the core is told a little later."""
        if process.is_alive and process.is_forked:
            process.is_alive = False
            self.at(self.now + _EXIT_S, lambda _: self._tell_death(process, cause))

    def kill_zygote(self) -> bool:
        """End the zygote, if one is up; what it has not forked never comes."""
        if self._zygote < 0:
            return False
        self._zygote = -self._zygote - 1
        for process in [one for one in self._processes.values() if not one.is_forked]:
            del self._processes[process.number]
            process.is_alive = False
            self.feed(events.ChildExited(process.number, "unknown", 0, was_forked=False))
        self.feed(events.ZygoteDied("SIGKILL"))
        return True

    # --- what it does ---------------------------------------------------------------------------------------

    def _start(self, kinds: dict[str, ModelKind]) -> None:
        self._carry_out |= {
            instructions.ToCaller: lambda one: self.unanswered_callers.discard(one.caller),
            instructions.SignalChild: self._signal,
            instructions.Interrupt: self._interrupt,
            instructions.TellLate: lambda _: None,
            instructions.GrantRegions: self._grant,
            instructions.MoveRegions: lambda one: self.at(self.now + _MOVE_S, self._moved, one),
            instructions.ReplaceZygote: lambda _: self._replace_zygote(),
            instructions.Remember: self._nothing,
            instructions.RememberLoad: self._nothing,
            instructions.Report: self._nothing,
        }
        self._replace_zygote()
        for name in kinds:
            self.load(name)

    def _caller(self) -> str:
        self._callers += 1
        caller = f"caller {self._callers}"
        self.unanswered_callers.add(caller)
        return caller

    def _to_client(self, one: instructions.ToClient) -> None:
        self.on_message(one.client, one.message)

    def _replace_zygote(self) -> None:
        number = abs(self._zygote) + 1
        self._zygote = -number
        self.at(self.now + _START_S, lambda _: self._zygote_up(number))

    def _zygote_up(self, number: int) -> None:
        if self._zygote == -number:
            self._zygote = number
            self.feed(events.ZygoteReady())

    def _to_zygote(self, one: instructions.ToZygote) -> None:
        assert isinstance(one.message, messages.Adopt), "no model is warm here"
        self.feed(events.ModulesAdopted(one.message.generation, {}, threads=1))

    def _fork(self, one: instructions.ForkChild) -> None:
        process = self._processes[one.child] = Process(one.child, one.role)
        self.at(self.now + _FORK_S, self._forked, process)

    def _forked(self, process: Process) -> None:
        if process.is_alive:
            process.is_forked = True
            self.feed(events.ChildForked(process.number, 1000 + process.number))
            self._go_on(process)

    def _tell_death(self, process: Process, cause: str) -> None:
        if self._processes.pop(process.number, None) is not None:
            begun = process.running.attempt if process.running else 0
            self.feed(events.ChildExited(process.number, cause, begun, was_forked=True))

    def _signal(self, one: instructions.SignalChild) -> None:
        if one.child in self._processes:
            self.kill(self._processes[one.child], signal.Signals(one.signal).name)

    def _interrupt(self, one: instructions.Interrupt) -> None:
        process = self._processes.get(one.child)
        is_at_it = process is not None and process.running is not None and process.running.attempt == one.attempt
        if process is not None and is_at_it and one.kill:
            self.on_death()
            self.kill(process)

    # --- children -------------------------------------------------------------------------------------------

    def _to_child(self, one: instructions.ToChild) -> None:
        process = self._processes.get(one.child)
        if process is not None:
            process.inbox.append(one.message)
            self._go_on(process)

    def _go_on(self, process: Process) -> None:
        while process.inbox and process.is_forked and process.is_alive and process.running is None:
            message = process.inbox.popleft()
            if type(message) is messages.Run:
                process.running = message
                seconds = self._times_by_set[message.weight_set](len(message.parts))
                self.at(self.now + seconds, self._ran, (process, message, seconds))
            elif isinstance(message, messages.Thaw):
                self._times_by_set[message.weight_set] = self._run_times[message.model]
                if message.eager:
                    self.feed(events.SetThawed(process.number, message.weight_set, 0, {}, None))
            elif isinstance(message, messages.Forget):
                self.feed(events.SetForgotten(process.number, message.weight_set, unmapped=True))
            elif isinstance(message, messages.BuildModel):
                process.name = message.name
                self._later(process, _BUILD_S, self._ask_for_regions)
            elif isinstance(message, messages.Leave):
                self.kill(process, "exit code 0")

    def _ran(self, run: tuple[Process, messages.Run, float]) -> None:
        process, order, seconds = run
        if not process.is_alive:
            return
        answers = [[answer_to(part[0]), [], [], 0] for part in order.parts]
        self.feed(events.AttemptEnded(process.number, order.attempt, seconds, answers, []))
        process.running = None
        self._go_on(process)

    def _later(self, process: Process, seconds: float, call: Callable[[Process], None]) -> None:
        self.at(self.now + seconds, lambda _: call(process) if process.is_alive else None)

    def _ask_for_regions(self, loader: Process) -> None:
        self.feed(events.MemoryAvailable(1 << 50))
        self.feed(events.RegionsNeeded(loader.number, [(size, digest) for size, digest in _WANTS]))

    def _grant(self, one: instructions.GrantRegions) -> None:
        loader = self._processes.get(one.filler)
        if loader is not None:
            loader.numbers = [grant.number for grant in one.grants]
            self._later(loader, _FILL_S, self._fill)

    def _fill(self, loader: Process) -> None:
        self.feed(events.RegionsFilled(loader.number, loader.numbers))
        built = messages.ModelBuilt([], b"", [], loader.numbers, False, [])
        self.feed(events.ModelBuilt(loader.number, built))
        self.kill(loader, "exit code 0")

    def _moved(self, one: instructions.MoveRegions) -> None:
        self.feed(events.MemoryAvailable(1 << 50))
        error = _FULL if self.disk_is_full else None
        self.feed(events.RegionsMoved(one.regions, one.tier, _MOVE_S, error))


def answer_to(body: bytes) -> bytes:
    """Return the result of a run."""
    return b"answer to " + body
