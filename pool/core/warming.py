"""Warm weight sets, from being ready to being in the zygote, where workers find them thawed.

::

    ready ──► tried in a throwaway fork ──► thawed in the zygote ──► workers without it are replaced, one by one
                       │                            │
                       └── refused ◄────────────────┘     each worker thaws it on its own

Meanwhile it can run already, in workers that thaw it when it is first run. To thaw runs code of users: what dies,
hangs, raises or leaves a thread does so in a child that nobody needs. Workers thaw at once what raises or leaves a
thread, which hurts no other model; what dies twice or hangs they thaw when it is run. One is tried at a time,
because each may take the memory of a whole model. What lies in the zygote goes with it: to let go of one weight
set takes a new zygote, and new workers for all that have inherited it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, Final

from .fleet import Fleet
from .holdings import Holdings, thaw_order
from .instructions import ForkChild, Instruction, Report, SignalChild, ToChild
from .weights import MAX_THAW_DEATHS, WeightSet
from .workers import Worker
from .zygote import MAX_THAW_S

_NEVER: Final = float("inf")
_TOO_LONG: Final = f"it took longer than {MAX_THAW_S:g} s"


class Trial:
    """A throwaway fork that thaws one weight set.

    Attributes:
        child: its number.
        version: what it thaws.
        ends_at: when it is ended.
        is_open: whether there is no result yet.
        holds: all weight sets that it has mapped.
    """

    def __init__(self, child: int, version: WeightSet, ends_at: float) -> None:
        self.child = child
        self.version = version
        self.ends_at = ends_at
        self.is_open = True
        self.holds: list[WeightSet] = []


class Warming:
    """Decides which weight sets are thawed in the zygote.

    Args:
        fleet: who forks.
        holdings: who holds what.
        out: where instructions go.

    Attributes:
        refused: why a weight set is not thawed in the zygote, by number.
    """

    def __init__(self, fleet: Fleet, holdings: Holdings, out: list[Instruction]) -> None:
        self.refused: dict[int, str] = {}
        self._fleet = fleet
        self._holdings = holdings
        self._out = out
        self._untried: dict[int, WeightSet] = {}
        self._trial: Trial | None = None

    def want(self, version: WeightSet) -> None:
        """Have a weight set thawed before workers are forked; it is ready."""
        if self._holdings.regions.is_gpu:
            self._refuse(version, "the zygote must not use the GPU", is_dangerous=False)
        else:
            self._untried[version.number] = version

    def drop(self, version: WeightSet) -> None:
        """Let go of a weight set that is about to be retired."""
        self._untried.pop(version.number, None)
        self.refused.pop(version.number, None)
        trial = self._trial
        if trial is not None and version in trial.holds:
            if trial.is_open and trial.version is not version:
                self._untried[trial.version.number] = trial.version
            self._end(trial)
        if self._fleet.zygote.drop(version):
            self._fleet.replace_zygote()
        self._outdate(lambda worker: worker.child in version.inheritors)

    def proceed(self, now: float) -> None:
        """Try and thaw what is next, if anything is and the zygote has nothing else to do."""
        if self._fleet.can_fork and self._untried and self._trial is None:
            number = next(iter(self._untried))
            self._try(self._untried.pop(number), now)
        if self._fleet.can_fork:
            self._fleet.zygote.thaw(now)

    def give_refused(self, worker: Worker) -> None:
        """Have a worker thaw at once what the zygote cannot, and what did not kill several workers already."""
        for number in self.refused:
            version = self._holdings.sets[number]
            if version.is_warm:
                self._holdings.give(version, worker, eager=True)

    # --- what happened --------------------------------------------------------------------------------------

    def tried(self, child: int, error: dict[str, Any] | None) -> None:
        """A throwaway fork has thawed its weight set, or could not."""
        trial = self._trial
        if trial is None or trial.child != child or not trial.is_open:
            return
        trial.is_open = False
        trial.version.thaw_deaths = 0
        if error is None:
            self._fleet.zygote.want(trial.version)
        else:
            self._refuse(trial.version, str(error["message"]), is_dangerous=False)

    def thawed(self, error: dict[str, Any] | None) -> None:
        """The zygote has thawed what it was told to, or could not and is of no use any more."""
        version = self._fleet.zygote.thawed(has_failed=error is not None)
        if version is None:
            return
        if error is not None:
            self._refuse(version, str(error["message"]), is_dangerous=False)
            self._fleet.replace_zygote()
            return
        self._outdate(lambda worker: worker.child not in version.inheritors)

    def zygote_died(self, cause: str, refused: WeightSet | None) -> None:
        """The zygote is gone, and does without a weight set from now on."""
        if refused is not None:
            self._refuse(refused, f"the zygote died ({cause}) when it thawed it", is_dangerous=True)

    def child_exited(self, child: int, cause: str, *, was_forked: bool) -> bool:
        """Note the end of a throwaway fork; false if the child was none."""
        trial = self._trial
        if trial is None or trial.child != child:
            return False
        self._trial = None
        if trial.is_open:
            self._died_trying(trial.version, cause, was_forked=was_forked)
        for version in trial.holds:
            self._holdings.dropped_by(child, version.number)
        return True

    def time_passed(self, now: float) -> None:
        """End what takes too long."""
        trial = self._trial
        if trial is not None and now >= trial.ends_at:
            if trial.is_open:
                self._refuse(trial.version, _TOO_LONG, is_dangerous=True)
            self._end(trial)
        if self._fleet.zygote.is_stuck(now) and (stuck := self._fleet.zygote.thawed(has_failed=True)):
            self._refuse(stuck, _TOO_LONG, is_dangerous=True)
            self._fleet.replace_zygote()

    def wake_at(self) -> float:
        """Return when `time_passed` has something to do; infinity for never."""
        return min(self._trial.ends_at if self._trial else _NEVER, self._fleet.zygote.wake_at())

    # --- inside ---------------------------------------------------------------------------------------------

    def _try(self, version: WeightSet, now: float) -> None:
        trial = self._trial = Trial(self._fleet.new_child(), version, now + MAX_THAW_S)
        trial.holds = [*self._fleet.zygote.has.values(), version]
        for held in trial.holds:
            held.passing.add(trial.child)
        self._out.append(ForkChild(trial.child, "trial"))
        self._out.append(ToChild(trial.child, thaw_order(version, eager=True), [], version.layout))

    def _died_trying(self, version: WeightSet, cause: str, *, was_forked: bool) -> None:
        version.thaw_deaths += was_forked
        if version.thaw_deaths < MAX_THAW_DEATHS:
            self._untried[version.number] = version
        else:
            reason = f"{version.thaw_deaths} processes that tried it died ({cause})"
            self._refuse(version, reason, is_dangerous=True)

    def _outdate(self, is_to_go: Callable[[Worker], bool]) -> None:
        for worker in self._fleet.workers:
            if is_to_go(worker):
                self._fleet.workers.outdate(worker)

    def _end(self, trial: Trial) -> None:
        trial.is_open, trial.ends_at = False, _NEVER
        self._out.append(SignalChild(trial.child, signal.SIGKILL))

    def _refuse(self, version: WeightSet, reason: str, *, is_dangerous: bool) -> None:
        when = "when it is first run there" if is_dangerous else "as soon as it starts"
        self.refused[version.number] = f"each worker thaws it on its own, {when}: {reason}"
        self._out.append(Report(f"{version.load.name}: {self.refused[version.number]}"))
        version.is_dangerous = version.is_dangerous or is_dangerous
        for worker in self._fleet.workers:
            # One that is outdated would import the model's modules privately, for seconds, and then go.
            if worker.life.state in ("idle", "busy") and not worker.is_outdated:
                self.give_refused(worker)
