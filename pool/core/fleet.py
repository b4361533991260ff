"""The zygote and its children: what it has imported, when workers are forked, replaced and dismissed.

A *generation* counts what the zygote has imported. A worker forked before a model's modules were there would
have to import them privately (seconds, and 100 MB for transformers), so workers of an older generation are
replaced when idle: a fork takes milliseconds.

Modules are imported in the zygote itself. If that leaves it with a second thread it must never fork again: it
is replaced by a new zygote that does without the guilty module, and workers import that one on their own. The
same if the zygote dies twice over one adoption. What was refused is reported.
"""

from __future__ import annotations

import signal
from typing import Final

from ...protocol.messages import Adopt, BuildModel, Leave
from .instructions import ForkChild, Instruction, ReplaceZygote, Report, SignalChild, ToChild, ToZygote
from .workers import Worker, Workers

#: A worker that dies this young without having run anything counts as a failed start.
EARLY_DEATH_S: Final = 2.0
#: Pauses before the next fork after failed starts in a row.
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 5.0
#: From asking the children to leave to SIGTERM, and from there to SIGKILL.
LEAVE_S: Final = 2.0
TERMINATE_S: Final = 1.0


class Fleet:
    """Decides about processes; the core tells it what happened.

    Args:
        wanted: how many workers there shall be.
        slots: how many of them may hold work at once.
        out: where instructions go.
    """

    def __init__(self, wanted: int, slots: int, out: list[Instruction]) -> None:
        self.workers = Workers(wanted, slots)
        self.generation = 0
        self.refused: dict[str, str] = {}
        self._out = out
        self._children = 0
        self._zygote_is_ready = False
        self._adopted: dict[str, None] = {}
        self._wanted_modules: dict[str, None] = {}
        self._paths: dict[str, None] = {}
        self._wanted_generation = 0
        self._in_flight = 0  # the generation that the zygote is importing, or 0
        self._deaths_in_flight = 0
        self._failed_starts = 0
        self._fork_not_before = 0.0
        self._waiting_loaders: list[tuple[int, BuildModel]] = []
        self._dismissal_signals: list[int] = []
        self._next_signal_at = float("inf")

    @property
    def is_dismissing(self) -> bool:
        """Whether the children were told to go."""
        return self._next_signal_at != float("inf") or bool(self._dismissal_signals)

    # --- imports --------------------------------------------------------------------------------------------

    def need_modules(self, modules: list[str], paths: list[str]) -> int:
        """Have these modules imported in the zygote; return the generation that has them."""
        self._paths.update(dict.fromkeys(paths))
        missing = [name for name in modules if name not in self._wanted_modules and name not in self.refused]
        if missing:
            self._wanted_modules.update(dict.fromkeys(missing))
            self._wanted_generation += 1
            self._adopt()
        return self._wanted_generation

    def zygote_ready(self, now: float) -> None:
        """A zygote is up: let it import, then fork."""
        self._zygote_is_ready = True
        if self._wanted_modules:
            self._adopt()
        for child, order in self._waiting_loaders:
            self._start_loader(child, order)
        self._waiting_loaders.clear()
        self.fill(now)

    def modules_adopted(self, generation: int, refused: dict[str, str], threads: int) -> None:
        """The zygote has imported, or refused, what it was told to."""
        self._in_flight = self._deaths_in_flight = 0
        for name, reason in refused.items():
            self._refuse(name, reason)
        if threads > 1:
            self._replace_zygote()
            return
        self._adopted.update(self._wanted_modules)
        self.generation = max(self.generation, generation)
        if self._wanted_generation > self.generation:
            self._adopt()

    def zygote_died(self, cause: str) -> None:
        """Start another zygote; if it died importing, the second time without those modules."""
        self._zygote_is_ready = False
        if self._in_flight:
            self._deaths_in_flight += 1
            if self._deaths_in_flight > 1:
                self._deaths_in_flight = 0
                for name in [name for name in self._wanted_modules if name not in self._adopted]:
                    self._refuse(name, f"the zygote died ({cause}) when it imported this")
        self._in_flight = 0
        if not self.is_dismissing:
            self._out.append(Report(f"the zygote died ({cause}); starting another"))
            self._out.append(ReplaceZygote())

    def _adopt(self) -> None:
        if self._zygote_is_ready and not self._in_flight:
            self._in_flight = self._wanted_generation
            message = Adopt(self._wanted_generation, list(self._wanted_modules), list(self._paths))
            self._out.append(ToZygote(message))

    def _refuse(self, name: str, reason: str) -> None:
        self._wanted_modules.pop(name, None)
        self.refused[name] = reason
        self._out.append(Report(f"workers import {name} each on their own: {reason}"))

    def _replace_zygote(self) -> None:
        self._zygote_is_ready = False
        self._out.append(ReplaceZygote())

    # --- children -------------------------------------------------------------------------------------------

    def fork_loader(self, order: BuildModel) -> int:
        """Have a loader forked, as soon as there is a zygote, and told what to build; return its number."""
        self._children += 1
        if self._zygote_is_ready:
            self._start_loader(self._children, order)
        else:
            self._waiting_loaders.append((self._children, order))
        return self._children

    def _start_loader(self, child: int, order: BuildModel) -> None:
        # In this order: only a child that was ordered can be sent something.
        self._out.append(ForkChild(child, "loader"))
        self._out.append(ToChild(child, order, [], ()))

    def fill(self, now: float) -> None:
        """Replace outdated idle workers, and fork those that are missing."""
        if not self._zygote_is_ready or self._in_flight or self.is_dismissing or now < self._fork_not_before:
            return
        for worker in self.workers.idle():
            if worker.generation < self.generation:
                self.dismiss(worker)
        for _ in range(self.workers.missing):
            self._children += 1
            self.workers.add(Worker(self._children, self.generation, now))
            self._out.append(ForkChild(self._children, "worker"))

    def dismiss(self, worker: Worker) -> None:
        """Let an idle worker go."""
        self.workers.leave(worker)
        self._out.append(ToChild(worker.child, Leave(), [], ()))

    def worker_died(self, worker: Worker, now: float) -> list[int]:
        """Forget a worker; return the attempts that it held, oldest first."""
        was_leaving = worker.life.state == "leaving"
        if worker.runs:
            self._failed_starts = 0
        elif not was_leaving and not worker.outstanding and now - worker.born_at < EARLY_DEATH_S:
            self._failed_starts += 1
            pause_s = min(FIRST_PAUSE_S * 2**self._failed_starts, LONGEST_PAUSE_S)
            self._fork_not_before = now + pause_s
        return self.workers.died(worker)

    # --- the end --------------------------------------------------------------------------------------------

    def dismiss_all(self, now: float) -> None:
        """Let every worker go; who does not is signalled: `wake_at` says when."""
        if self.is_dismissing:
            return
        for worker in self.workers:
            if worker.life.state == "idle":
                self.dismiss(worker)
        self._dismissal_signals = [signal.SIGTERM, signal.SIGKILL]
        self._next_signal_at = now + LEAVE_S

    def time_passed(self, now: float) -> None:
        """Signal those who should be gone; fork those that were held back."""
        if self._dismissal_signals and now >= self._next_signal_at:
            number = self._dismissal_signals.pop(0)
            for worker in self.workers:
                self._out.append(SignalChild(worker.child, number))
            self._next_signal_at = now + TERMINATE_S if self._dismissal_signals else float("inf")
        self.fill(now)

    def wake_at(self, now: float) -> float:
        """Return when `time_passed` has something to do; infinity for never."""
        fork_at = self._fork_not_before if now < self._fork_not_before else float("inf")
        return min(self._next_signal_at, fork_at)
