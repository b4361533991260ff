"""The zygote and its children: what it has imported, when workers are forked, replaced and dismissed.

A *generation* counts what the zygote has imported. A worker forked before a model's modules were there would
have to import them privately (seconds, and 100 MB for transformers), so workers of an older generation are
replaced when idle: a fork takes milliseconds.

Modules are imported in the zygote itself. If that leaves it with a second thread it must never fork again: it
is replaced by a new zygote that does without the guilty module, and workers import that one on their own. The
same if the zygote dies twice over one adoption. What was refused is reported.

What fails as soon as it starts, worker or zygote, is tried again after a pause that grows: a machine on which
nothing starts must not spend its time on trying.
"""

from __future__ import annotations

import signal
from typing import Final

from ...protocol.messages import Adopt, BuildModel, Leave
from .instructions import ForkChild, Instruction, ReplaceZygote, Report, SignalChild, ToChild, ToZygote
from .workers import Worker, Workers

#: A worker that dies this young without having begun anything counts as a failed start, and so does a zygote
#: that dies before it is ready, or this soon after.
EARLY_DEATH_S: Final = 2.0
#: Pauses before the next start after failed starts in a row.
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 5.0
#: Loaders that live at once: each may hold a whole model in private memory.
MAX_LOADERS: Final = 16
#: From asking the children to leave to SIGTERM; from there to SIGKILL, and to giving up on who survives that.
LEAVE_S: Final = 2.0
TERMINATE_S: Final = 1.0

_NEVER: Final = float("inf")


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
        self.is_dismissing = False  # whether the children were told to go
        self.has_given_up = False  # whether some of them did not, not even when they were killed
        self._out = out
        self._children = 0
        self._zygote_is_ready = False
        self._zygote_ready_at = _NEVER
        self._zygote_is_missing = False  # to be started when the pause is over
        self._adopted: dict[str, None] = {}
        self._wanted_modules: dict[str, None] = {}
        self._paths: dict[str, None] = {}
        self._wanted_generation = 0
        self._in_flight = 0  # the generation that the zygote is importing, or 0
        self._importing: list[str] = []  # ... and its modules
        self._deaths_in_flight = 0
        self._pause_s = 0.0
        self._resume_at = _NEVER  # when the pause is over; never: there is none
        self._loaders: set[int] = set()
        self._waiting_loaders: dict[int, BuildModel] = {}
        self._dismissal_signals: list[int] = [signal.SIGTERM, signal.SIGKILL]
        self._next_signal_at = _NEVER

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
        self._zygote_ready_at = now
        self._fork_loaders()
        if self._wanted_generation:  # even if all was refused: that, too, completes the generation
            self._adopt()
        self.fill(now)

    def modules_adopted(self, generation: int, refused: dict[str, str], threads: int) -> None:
        """The zygote has imported, or refused, what it was told to."""
        importing, self._importing = self._importing, []
        self._in_flight = self._deaths_in_flight = 0
        # With nothing to do without, the next zygote would be no better: this one is as good as it gets.
        must_not_fork = threads > 1 and bool(importing)
        if must_not_fork and not refused:
            refused = dict.fromkeys(importing, "a thread was left after imports, and it may be of this one")
        for name, reason in refused.items():
            self._refuse(name, reason)
        if must_not_fork:
            self._replace_zygote()
            return
        self._adopted.update(dict.fromkeys(importing))
        if generation > self.generation:
            self.generation = generation
            for worker in self.workers:
                self.workers.outdate(worker)
        self._fork_loaders()
        if self._wanted_generation > self.generation:
            self._adopt()

    def zygote_died(self, cause: str, now: float) -> None:
        """Start another zygote; if it died importing, the second time without those modules."""
        is_failed_start = now - self._zygote_ready_at < EARLY_DEATH_S
        self._zygote_is_ready = False
        if self._in_flight:
            self._deaths_in_flight += 1
            if self._deaths_in_flight > 1:
                self._deaths_in_flight = 0
                new = [name for name in self._importing if name not in self._adopted]
                for name in new or self._importing:
                    self._refuse(name, f"the zygote died ({cause}) when it imported this")
        self._in_flight, self._importing = 0, []
        if self.is_dismissing:
            return
        self._out.append(Report(f"the zygote died ({cause}); starting another"))
        if is_failed_start:
            self._zygote_is_missing = True
            self._hold_back(now)
        else:
            self._replace_zygote()

    def _adopt(self) -> None:
        if self._zygote_is_ready and not self._in_flight:
            self._in_flight = self._wanted_generation
            self._importing = list(self._wanted_modules)
            self._out.append(ToZygote(Adopt(self._in_flight, list(self._importing), list(self._paths))))

    def _refuse(self, name: str, reason: str) -> None:
        self._wanted_modules.pop(name, None)
        self.refused[name] = reason
        self._out.append(Report(f"workers import {name} each on their own: {reason}"))

    def _replace_zygote(self) -> None:
        self._zygote_is_ready = self._zygote_is_missing = False
        self._zygote_ready_at = _NEVER
        if not self.is_dismissing:
            self._out.append(ReplaceZygote())

    # --- children -------------------------------------------------------------------------------------------

    def never_forked(self) -> None:
        """A child never came into being: its zygote is gone, although its death may be told only later."""
        self._zygote_is_ready = False

    def fork_loader(self, order: BuildModel) -> int:
        """Have a loader forked that carries out this order; return its number."""
        self._children += 1
        self._waiting_loaders[self._children] = order
        self._fork_loaders()
        return self._children

    def give_up_loader(self, child: int) -> None:
        """Nobody wants any more what a loader builds."""
        if self._waiting_loaders.pop(child, None) is None:
            self._out.append(SignalChild(child, signal.SIGKILL))

    def loader_exited(self, child: int) -> None:
        """A loader is gone, or never came: another may be forked."""
        self._loaders.discard(child)
        self._fork_loaders()

    def fill(self, now: float) -> None:
        """Replace outdated idle workers, and fork those that are missing."""
        is_paused = self._resume_at != _NEVER
        if not self._zygote_is_ready or self._in_flight or self.is_dismissing or is_paused:
            return
        for worker in self.workers.replaceable():
            self.dismiss(worker)
        for _ in range(self.workers.missing):
            self._children += 1
            self.workers.add(Worker(self._children, now))
            self._out.append(ForkChild(self._children, "worker"))

    def dismiss(self, worker: Worker) -> None:
        """Let an idle worker go."""
        self.workers.leave(worker)
        self._out.append(ToChild(worker.child, Leave(), [], ()))

    def became_idle(self, worker: Worker, now: float) -> None:
        """A worker has nothing to do: let it go if it is not to stay."""
        if self.is_dismissing:
            self.dismiss(worker)
        elif worker.is_outdated:
            self.fill(now)

    def worker_died(self, worker: Worker, begun: int, now: float) -> list[int]:
        """Forget a worker; return the attempts that it held, oldest first."""
        if worker.life.state in ("idle", "busy"):  # the end of others tells nothing about starting
            if not worker.runs and not begun and now - worker.born_at < EARLY_DEATH_S:
                self._hold_back(now)
            else:
                self._pause_s = 0.0
        return self.workers.died(worker)

    def _fork_loaders(self) -> None:
        # Never behind an import, which may leave a thread: the zygote would fork with it before it is replaced.
        can_fork = self._zygote_is_ready and not self._in_flight
        while can_fork and self._waiting_loaders and len(self._loaders) < MAX_LOADERS:
            child = next(iter(self._waiting_loaders))
            order = self._waiting_loaders.pop(child)
            self._loaders.add(child)
            self._out.append(ForkChild(child, "loader"))
            self._out.append(ToChild(child, order, [], ()))

    def _hold_back(self, now: float) -> None:
        """Pause after a failed start; those that fail during the pause do not make it longer."""
        if self._resume_at == _NEVER:
            self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
            self._resume_at = now + self._pause_s

    # --- the end --------------------------------------------------------------------------------------------

    def dismiss_all(self, now: float) -> None:
        """Let every worker go; who does not is signalled: `wake_at` says when."""
        if self.is_dismissing:
            return
        self.is_dismissing = True
        for worker in self.workers:
            if worker.life.state == "idle":
                self.dismiss(worker)
        self._next_signal_at = now + LEAVE_S

    def time_passed(self, now: float) -> None:
        """Signal those who should be gone; start those that were held back."""
        if now >= self._next_signal_at:
            self._signal_all(now)
        if now >= self._resume_at:
            self._resume_at = _NEVER
            if self._zygote_is_missing:
                self._replace_zygote()
            self.fill(now)

    def wake_at(self) -> float:
        """Return when `time_passed` has something to do; infinity for never."""
        return min(self._next_signal_at, self._resume_at)

    def _signal_all(self, now: float) -> None:
        if not self._dismissal_signals:
            self.has_given_up = True
            self._next_signal_at = _NEVER
            return
        number = self._dismissal_signals.pop(0)
        for worker in self.workers:
            self._out.append(SignalChild(worker.child, number))
        self._next_signal_at = now + TERMINATE_S
