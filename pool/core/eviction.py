"""Weight sets out of memory and back: who leaves when room is needed, and who waits for room.

::

    ready ──► evicting: workers let go of it, then it is written out ──► evicted
      ▲                                                                     │ needed
      └── returning: it waits for its turn, and what is not cached is read ◄┘

Whoever wants memory waits in one line. For the first of it weight sets are evicted, those of the least value: how
often a set is used, times what its return costs, by the bytes that its eviction frees. What waits for it counts as
use to come, and what has come back only just stays for a multiple of what that has cost: so most of the time is
work, however little the budget is. What is in memory is never more than the ledger allows; what could not fit even
if everything left that may is refused at once, with the numbers.

What cannot be written out from a GPU is given up, if a loader can build it anew when it is needed.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ...protocol.errors import InvalidRequest, ModelNotFound, OutOfBudget, PoolError
from ...protocol.messages import Done, Forget, Record, Refused
from .admission import Admission, Claim, FillClaim, ReturnClaim
from .events import ModelEvicted, ModelPinned, RegionsMoved
from .instructions import Instruction, MoveRegions, Report, ToCaller, ToChild
from .library import Library
from .residents import Residents
from .schedule import Schedule
from .seen import Seen
from .sessions import Sessions
from .weights import Model, WeightSet

#: Workers that have not let go of a set for so long are not counted on: another set is evicted besides.
STUCK_S: Final = 1.0
_NEVER: Final = float("inf")


class Refusal(NamedTuple):
    """A claim that cannot be met, and why."""

    claim: Claim
    error: Record


class _Leaving(NamedTuple):
    """What the eviction of a set will free, and since when it is under way."""

    size_bytes: int
    began_at: float


class Eviction:
    """Decides who is in memory.

    Args:
        admission: who waits for memory, and how much there is.
        library, schedule, sessions: what there is, what of it waits for workers, and what workers keep of it.
        out: where instructions go.
    """

    def __init__(
        self,
        admission: Admission,
        library: Library,
        schedule: Schedule,
        sessions: Sessions,
        out: list[Instruction],
    ) -> None:
        self._admission = admission
        self._ledger = admission.ledger
        self._library = library
        self._holdings = library.holdings
        self._regions = library.holdings.regions
        self._schedule = schedule
        self._residents = Residents(library, sessions)
        self._out = out
        self._leaving: dict[WeightSet, _Leaving] = {}
        self._returning: dict[WeightSet, None] = {}  # those that are being read
        self._look_at = _NEVER

    # --- what callers ask for -------------------------------------------------------------------------------

    def pin(self, event: ModelPinned, _now: float) -> None:
        """Let a model stay in memory, or not any more."""
        try:
            model = self._library.find(event.name)
        except ModelNotFound as error:
            self._out.append(ToCaller(event.caller, Refused(error.to_record())))
            return
        model.is_pinned = event.is_pinned
        self._library.need_answers(model)
        self._out.append(ToCaller(event.caller, Done("pinned" if event.is_pinned else "not pinned")))

    def evict(self, event: ModelEvicted, now: float) -> None:
        """Move a model out of memory, until it is needed again."""
        try:
            model = self._library.find(event.name)
            version = model.current
            if version.life.state == "ready":
                if reason := self._residents.reason_to_stay(model):
                    raise InvalidRequest(f"{event.name} stays in memory: {reason}")
                version.evictors.append(event.caller)
                self._begin(model, now)
                return
            if version.life.state != "evicted":
                raise InvalidRequest(f"{event.name} is {version.life.state}, and cannot be evicted now")
        except PoolError as error:
            self._out.append(ToCaller(event.caller, Refused(error.to_record())))
        else:
            self._out.append(ToCaller(event.caller, Done("it was not in memory")))

    # --- the line -------------------------------------------------------------------------------------------

    def proceed(self, now: float) -> list[Refusal]:
        """Serve those who wait, and make room for the first; return those who can never be served."""
        self._forget_retired()
        for version in self._holdings.unmapped:
            self._write_out(version)
        self._holdings.unmapped.clear()
        self._look_at = _NEVER
        refused: list[Refusal] = []
        while (claim := self._admission.first()) is not None:
            needed_bytes = self._admission.needs(claim)
            if isinstance(claim, ReturnClaim) and self._is_leaving(claim.version):
                break
            if self._admission.fits(claim):
                self._grant(claim, now)
                continue
            if self._make_room(needed_bytes, now):
                if self._admission.fits(claim):  # what was given up on a GPU is free at once
                    continue
                break
            if self._waits_for_room(claim, needed_bytes):
                break
            if self._ledger.expect_no_more():  # it is only expected, and would keep out what is really there
                continue
            if not self._put_back_another(claim):
                refused.append(self._refuse(claim, needed_bytes))
        return refused

    def relieve(self, now: float) -> None:
        """Make room if more is taken than may be, or the system has less than is to stay free."""
        if self._ledger.free_bytes < 0:
            self._make_room(0, now)

    def freeable_bytes(self) -> int:
        """Return what would be free besides if everything left that may."""
        return self._residents.freeable_bytes(but=None)

    def wake_at(self) -> float:
        """Return when `proceed` may have something to do that nothing else tells; infinity for never."""
        return self._look_at if self._admission else _NEVER

    def _grant(self, claim: Claim, now: float) -> None:
        self._admission.drop(claim)
        if isinstance(claim, FillClaim):
            self._holdings.want_regions(claim.filler, claim.wants)
            return
        version = claim.version
        numbers = self._regions.away(version.regions)
        self._returning[version] = None
        if numbers:
            self._regions.move(numbers, "returning")
            self._out.append(MoveRegions(numbers, "memory"))
        self._finish_returns(now)

    def _make_room(self, needed_bytes: int, now: float) -> bool:
        """Evict as many sets as it takes; true if there will be room without anything else."""
        while needed_bytes - self._ledger.free_bytes > self._coming_bytes(now):
            victim, soonest = self._residents.victim(now)
            if victim is None:
                self._look_at = min(self._look_at, soonest)
                return False
            self._begin(victim, now)
        for version, one in self._leaving.items():
            if version.is_mapped and now < one.began_at + STUCK_S:
                self._look_at = min(self._look_at, one.began_at + STUCK_S)
        return True

    def _waits_for_room(self, claim: Claim, needed_bytes: int) -> bool:
        """Whether there will be room once others have done what they are at."""
        filler, version = (claim.filler, None) if isinstance(claim, FillClaim) else (None, claim.version)
        if self._library.has_active_loads(but=filler):
            return True
        freeable_bytes = self._residents.freeable_bytes(but=version)
        return needed_bytes <= self._ledger.free_bytes + freeable_bytes

    def _put_back_another(self, claim: Claim) -> bool:
        """Have the youngest other load begin anew later, so that one at least comes to its end."""
        fillers = [one.filler for one in self._admission if isinstance(one, FillClaim) and one is not claim]
        loaders = [one for one in fillers if self._library.is_loading(one)]
        if loaders:
            self._library.postpone(max(loaders))
        return bool(loaders)

    def _refuse(self, claim: Claim, needed_bytes: int) -> Refusal:
        self._admission.drop(claim)
        if isinstance(claim, ReturnClaim):
            what = f"the return of {claim.version.load.name}"
            claim.version.life.become("evicted")
        else:
            name = self._library.loaded_by(claim.filler)
            what = f"loading {name}" if name else "what is handed over"
        text, numbers = self._ledger.refusal(what, needed_bytes, self._residents.could_free())
        return Refusal(claim, OutOfBudget(text, **numbers).to_record())

    # --- who leaves -----------------------------------------------------------------------------------------

    def _begin(self, model: Model, now: float) -> None:
        version = model.current
        self._leaving[version] = _Leaving(self._residents.own_bytes(version), now)
        version.life.become("evicting")
        self._schedule.drop(model)
        for child in sorted(version.holders):
            self._out.append(ToChild(child, Forget(version.number), [], ()))
        if not version.is_mapped:
            self._write_out(version)

    def _write_out(self, version: WeightSet) -> None:
        """No worker has it any more: move what no other set in memory lies in."""
        if version.life.state != "evicting":
            return
        numbers = tuple(self._residents.movable(version))
        if numbers:
            self._regions.move(numbers, "leaving")
            self._out.append(MoveRegions(numbers, "disk"))
        else:
            self._evicted(version)

    def _evicted(self, version: WeightSet) -> None:
        self._leaving.pop(version, None)
        version.life.become("evicted")
        version.evictions += 1
        self._holdings.tell(version.evictors, Done("evicted"))
        model = self._library.models.get(version.load.name)
        if model is not None and (model.unanswered or version.waiting_to_attach or model.is_pinned):
            self._library.need(version)

    # --- what was moved -------------------------------------------------------------------------------------

    def moved(self, event: RegionsMoved, now: float) -> list[tuple[WeightSet, Record]]:
        """Regions are where they were to go, or where they were; return the sets that cannot return, and why."""
        is_away = (event.tier == "disk") == (event.error is None)
        known = [number for number in event.regions if number in self._regions]
        self._regions.moved(tuple(known), is_away=is_away)
        self._forget_retired()
        concerned = {self._holdings.sets[one] for number in known for one in self._regions[number].weight_sets}
        if event.tier == "disk":
            for version in concerned & self._leaving.keys():
                self._left(version, event.error, now)
            return []
        if event.error is None:
            for version in concerned & self._returning.keys():
                version.return_s = event.seconds
                self._library.predictions.saw(version, Seen(return_s=event.seconds))
            self._finish_returns(now)
            return []
        lost = concerned & self._returning.keys()
        for version in lost:
            del self._returning[version]
            version.life.become("evicted")
        return [(version, event.error) for version in lost]

    def _left(self, version: WeightSet, error: Record | None, now: float) -> None:
        if version.life.state != "evicting" or version.is_mapped or self._is_leaving(version):
            return
        if error is None:
            self._evicted(version)
            return
        if self._regions.is_gpu and version.load.source != "frozen":
            self._give_up(version, str(error["message"]))
            return
        self._leaving.pop(version)
        self._holdings.tell(version.evictors, Refused(error))
        self._out.append(Report(f"{version.load.name} stays in memory: {error['message']}"))
        # Not again and again: where there is no room on the disk now there will be none in a moment.
        version.stays_because = f"it could not be written out: {error['message']}"
        self._ready(version, now)

    def _give_up(self, version: WeightSet, reason: str) -> None:
        if not version.rebuilt_because:
            version.rebuilt_because = f"it could not be written out: {reason}"
            text = "is built anew when it is needed again"
            self._out.append(Report(f"{version.load.name} {text}: {version.rebuilt_because}"))
        self._holdings.give_up_regions(version)
        version.is_given_up = True
        self._evicted(version)

    def _finish_returns(self, now: float) -> None:
        self._forget_retired()
        for version in list(self._returning):
            states = {self._regions[number].life.state for number in version.regions}
            if not states & {"away", "returning"}:
                del self._returning[version]
                version.returns += 1
                self._ready(version, now)

    def _ready(self, version: WeightSet, now: float) -> None:
        version.life.become("ready")
        version.resident_since = now
        self._holdings.attach_waiting(version)
        self._schedule.note(self._library.models[version.load.name], now)

    def _forget_retired(self) -> None:
        """Forget those that were unloaded meanwhile."""
        for state, versions in (("evicting", self._leaving), ("returning", self._returning)):
            for version in [one for one in versions if one.life.state != state]:
                del versions[version]

    def _coming_bytes(self, now: float) -> int:
        """Return what evictions under way will free, unless workers cannot let go."""
        return sum(
            one.size_bytes
            for version, one in self._leaving.items()
            if not version.is_mapped or now - one.began_at < STUCK_S
        )

    def _is_leaving(self, version: WeightSet) -> bool:
        """Whether something that a set lies in is being written out."""
        return any(self._regions[number].life.state == "leaving" for number in version.regions)
