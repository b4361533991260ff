"""The zygote's children, and the zygote itself: when they are forked, replaced and dismissed.

A worker is *outdated* if it lacks what the zygote has by now, or must let go of what it inherited. It is replaced
by one that has it, and goes on working until that one is there: one after another, so that at no time fewer
workers are there than are wanted. One that is busy then is handed nothing more until it is idle. A model whose
modules it lacks it is never handed: that waits for a worker that has them.

What fails as soon as it starts, worker or zygote, is tried again after a pause that grows: a machine on which
nothing starts must not spend its time on trying.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from ...protocol.messages import BuildModel, Leave
from .instructions import ForkChild, Instruction, ReplaceZygote, Report, SignalChild, ToChild
from .numbers import Numbers
from .position import ALONE, Position
from .regions import FillerKey
from .weights import WeightSet
from .workers import Worker, Workers
from .zygote import Zygote

#: A worker that dies this young without having begun anything counts as a failed start, and so does a zygote
#: that dies before it is ready, or this soon after.
EARLY_DEATH_S: Final = 2.0
#: Pauses before the next start after failed starts in a row.
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 5.0
#: Loaders that live at once: each may hold a whole model in private memory.
MAX_LOADERS: Final = 16
#: On a GPU each has a context, which takes half a gigabyte; one builds while another copies.
MAX_GPU_LOADERS: Final = 2
#: From asking the children to leave to SIGTERM; from there to SIGKILL, and to giving up on who survives that.
LEAVE_S: Final = 2.0
TERMINATE_S: Final = 1.0

_NEVER: Final = float("inf")


class _Waiting(NamedTuple):
    """A loader that is not forked yet; see `Fleet.fork_loader`."""

    order: BuildModel
    private_bytes: int
    regions: tuple[int, ...]
    generation: int


class Fleet:
    """Decides about processes; the core tells it what happened.

    Args:
        wanted: how many workers there shall be.
        slots: how many of them may hold work at once.
        out: where instructions go.
        position: on which device.
        numbers: the children's.
        may_begin: whether there is room for a loader that should take so much private memory.
    """

    def __init__(
        self,
        wanted: int,
        slots: int,
        out: list[Instruction],
        position: Position = ALONE,
        numbers: Numbers | None = None,
        may_begin: Callable[[int, int], bool] = lambda _loader, _private_bytes: True,
    ) -> None:
        self.workers = Workers(wanted, slots, position.spare_cores)
        self.zygote = Zygote(out, position.index)
        self.most_loaders = MAX_GPU_LOADERS if position.is_gpu else MAX_LOADERS
        self.is_dismissing = False  # whether the children were told to go
        self.has_given_up = False  # whether some of them did not, not even when they were killed
        self._out = out
        self._device = position.index
        self._numbers = numbers or Numbers()
        self._may_begin = may_begin
        self._zygote_ready_at = _NEVER
        self._zygote_is_missing = False  # to be started when the pause is over
        self._pause_s = 0.0
        self._resume_at = _NEVER  # when the pause is over; never: there is none
        self._loaders: set[int] = set()
        self._waiting_loaders: dict[int, _Waiting] = {}
        self._dismissal_signals: list[int] = [signal.SIGTERM, signal.SIGKILL]
        self._next_signal_at = _NEVER

    # --- the zygote -----------------------------------------------------------------------------------------

    def zygote_ready(self, now: float) -> None:
        """A zygote is up."""
        self.zygote.ready()
        self._zygote_ready_at = now

    def modules_adopted(self, refused: dict[str, str], threads: int) -> None:
        """The zygote has imported, or refused, what it was told to."""
        before = self.zygote.generation
        if not self.zygote.adopted(refused, threads):
            self.replace_zygote()
            return
        if self.zygote.generation > before:
            for worker in self.workers:
                self.workers.outdate(worker)

    def zygote_died(self, cause: str, now: float) -> WeightSet | None:
        """Start another zygote; return the weight set that it shall do without from now on, if there is one."""
        is_failed_start = now - self._zygote_ready_at < EARLY_DEATH_S
        refused = self.zygote.died(cause)
        if self.is_dismissing:
            return refused
        self._out.append(Report(f"the zygote died ({cause}); starting another"))
        for worker in self.workers:  # they share no page with what the next one forks
            self.workers.outdate(worker)
        if is_failed_start:
            self._zygote_is_missing = True
            self._hold_back(now)
        else:
            self.replace_zygote()
        return refused

    def replace_zygote(self) -> None:
        """End the zygote, if there is one, and start another."""
        self.zygote.gone()
        self._zygote_is_missing = False
        self._zygote_ready_at = _NEVER
        if not self.is_dismissing:
            self._out.append(ReplaceZygote(self._device))

    # --- children -------------------------------------------------------------------------------------------

    @property
    def can_fork(self) -> bool:
        """Whether there may be new children, and at once."""
        return self.zygote.is_free and not self.is_dismissing

    def new_child(self) -> int:
        """Return a number that no child has had."""
        return self._numbers.new()

    def never_forked(self) -> None:
        """A child never came into being: its zygote is gone, although its death may be told only later."""
        self.zygote.is_ready = False

    def fork_loader(
        self, order: BuildModel, private_bytes: int = 0, regions: Sequence[int] = (), generation: int = 0
    ) -> int:
        """Have a loader forked that carries out this order, and should take so much; return its number.

        Args:
            order: what it builds.
            private_bytes: how much memory it should take for itself.
            regions: in what it finds that, if it is there already.
            generation: of the zygote, that has the modules which it would import else.
        """
        child = self.new_child()
        self._waiting_loaders[child] = _Waiting(order, private_bytes, tuple(regions), generation)
        self.fork_loaders()
        return child

    def is_to_fork(self, filler: FillerKey) -> bool:
        """Whether this is a loader that is not forked yet."""
        return filler in self._waiting_loaders

    def give_up_loader(self, child: int) -> None:
        """Nobody wants any more what a loader builds: kill it. Others need not wait until it is gone.

        A process that hangs in a driver does not die of that, and its memory counts as long as it has some.
        """
        if self._waiting_loaders.pop(child, None) is None:
            self._loaders.discard(child)
            self._out.append(SignalChild(child, signal.SIGKILL))

    def loader_exited(self, child: int) -> None:
        """A loader is gone, or never came: another may be forked."""
        self._loaders.discard(child)
        self.fork_loaders()

    def fill(self, now: float) -> None:
        """Fork loaders, import, fork workers that are missing, and go on replacing those that are outdated."""
        self.fork_loaders()
        self.zygote.adopt()
        if self.can_fork and not self.is_pausing:
            for _ in range(self.workers.missing):
                self._fork_worker(now)
        self._replace_outdated(now)

    def dismiss(self, worker: Worker) -> None:
        """Let an idle worker go."""
        self.workers.leave(worker)
        self._out.append(ToChild(worker.child, Leave(), [], ()))

    def became_idle(self, worker: Worker) -> None:
        """A worker has nothing to do: let it go if nobody is to stay."""
        if self.is_dismissing:
            self.dismiss(worker)

    def worker_died(self, worker: Worker, begun: int, now: float) -> list[int]:
        """Forget a worker; return the attempts that it held, oldest first."""
        if worker.life.state in ("idle", "busy"):  # the end of others tells nothing about starting
            if not worker.runs and not begun and now - worker.born_at < EARLY_DEATH_S:
                self._hold_back(now)
            else:
                self._pause_s = 0.0
        return self.workers.died(worker)

    @property
    def is_pausing(self) -> bool:
        """Whether no worker is forked for a while, because one failed as soon as it started."""
        return self._resume_at != _NEVER

    def _fork_worker(self, now: float) -> None:
        worker = Worker(self.new_child(), self.zygote.generation, now)
        for version in self.zygote.has.values():
            worker.holds.add(version.number)
            version.holders.add(worker.child)
            version.inheritors.add(worker.child)
        self.workers.add(worker)
        self._out.append(ForkChild(worker.child, "worker"))

    def _replace_outdated(self, now: float) -> None:
        """Let one go whose successor is there, and have the next one's forked."""
        worker = self.workers.replaced()
        if worker is not None:
            self.dismiss(worker)
        while (worker := self.workers.surplus()) is not None:
            self.dismiss(worker)
        # Not while the zygote is about to have more: the successor would be outdated itself.
        if self.can_fork and self.zygote.is_complete and not self.is_pausing and self.workers.needs_successor:
            self._fork_worker(now)

    def fork_loaders(self) -> None:
        """Fork the loaders that wait for it, as far as they may begin."""
        # Never behind an import, which may leave a thread: the zygote would fork with it before it is replaced.
        while self._waiting_loaders and self.can_fork and len(self._loaders) < self.most_loaders:
            child, waiting = next(iter(self._waiting_loaders.items()))
            if waiting.generation > self.zygote.generation or not self._may_begin(child, waiting.private_bytes):
                return
            del self._waiting_loaders[child]
            self._loaders.add(child)
            self._out.append(ForkChild(child, "loader"))
            self._out.append(ToChild(child, waiting.order, [], waiting.regions))

    def _hold_back(self, now: float) -> None:
        """Pause after a failed start; those that fail during the pause do not make it longer."""
        if not self.is_pausing:
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
                self.replace_zygote()

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
