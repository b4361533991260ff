"""Who holds which weight set, and the regions that it lies in: workers, attached processes, whoever fills them.

A weight set is freed when it is retired and its last holder has let go of it, in whatever way.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...protocol.errors import InvalidRequest, ModelNotFound
from ...protocol.messages import Attached, Done, Forget, LoadModel, Message, Refused, Thaw
from .admission import Admission
from .events import CallerKey
from .instructions import FreeRegions, GrantRegions, Instruction, Report, ToCaller, ToChild
from .predictions import Predictions
from .regions import FileIdentity, FillerKey, Regions, Want
from .weights import MAX_THAW_DEATHS, WeightSet
from .workers import Worker
from .workspace import Workspace


class Holdings:
    """Hands weight sets out and takes them back.

    Args:
        workspace: who is told when a weight set is gone.
        admission: who waits for memory.
        predictions: what loads should take.
        out: where instructions go.

    Attributes:
        unmapped: weight sets that are to be evicted, and that nobody has any more, until somebody takes them.
    """

    def __init__(
        self,
        regions: Regions,
        workspace: Workspace,
        admission: Admission,
        predictions: Predictions,
        out: list[Instruction],
    ) -> None:
        self.sets: dict[int, WeightSet] = {}
        self.regions = regions
        self.unmapped: list[WeightSet] = []
        self._workspace = workspace
        self._admission = admission
        self._predictions = predictions
        self._out = out
        self._numbers = 0

    def add(self, load: LoadModel, filler: CallerKey = None) -> WeightSet:
        """Make a weight set; it holds the regions that ``filler`` has filled for it.

        Raises:
            InvalidRequest: one of these is not the filler's, or is not filled; or its options cannot be.
        """
        number = self._numbers + 1
        version = WeightSet(number, load)
        version.expected = self._predictions.of(load)
        self.regions.use(filler, number, load.regions)
        self._numbers = number
        self.sets[number] = version
        return version

    # --- filling --------------------------------------------------------------------------------------------

    def want_regions(self, filler: FillerKey, wants: Sequence[Want]) -> None:
        """Somebody who fills regions asks for some.

        Raises:
            InvalidRequest: what it asks for cannot be.
        """
        # A loader's life is in our hands; an app might be stopped, and nobody should wait for that.
        grants = self.regions.want(filler, wants, may_wait=type(filler) is int)
        if grants or not wants:
            self._out.append(GrantRegions(filler, grants))

    def offer_file(self, filler: FillerKey, identity: FileIdentity, size_bytes: int) -> None:
        """Somebody has a file that shall be a region."""
        self._out.append(GrantRegions(filler, [self.regions.offer(filler, identity, size_bytes)]))

    def filled(self, filler: FillerKey, numbers: list[int]) -> None:
        """Somebody has filled regions, and they are sealed."""
        self.regions.filled(filler, numbers)
        self._answer_waiting()

    def let_go(self, filler: FillerKey) -> None:
        """Somebody fills no regions any more."""
        self._admission.drop_filler(filler)
        self.regions.let_go(filler)
        self._answer_waiting()
        self._free()

    # --- workers --------------------------------------------------------------------------------------------

    def give(self, version: WeightSet, worker: Worker, *, eager: bool) -> None:
        """Hand a weight set to a worker that does not hold it yet."""
        if version.number in worker.holds:
            return
        worker.holds.add(version.number)
        version.holders.add(worker.child)
        if eager:
            worker.thawing[version.number] = None
        self._out.append(ToChild(worker.child, thaw_order(version, eager=eager), [], version.layout))

    def tried(self, worker: Worker, number: int) -> None:
        """A worker has thawed a weight set, or could not, and is none that died of it."""
        if number in worker.thawing:
            del worker.thawing[number]
            self.sets[number].thaw_deaths = 0

    def forgot(self, worker: Worker, number: int) -> None:
        """A worker has unmapped a weight set."""
        worker.holds.discard(number)
        worker.thawing.pop(number, None)
        self.dropped_by(worker.child, number)

    def worker_died(self, worker: Worker, begun: int) -> None:
        """A worker is gone, and with it all that it had mapped."""
        if worker.thawing and not begun:
            self._died_thawing(self.sets[next(iter(worker.thawing))])
        for number in worker.holds:
            self.dropped_by(worker.child, number)
        worker.holds.clear()

    def dropped_by(self, child: int, number: int) -> None:
        """A process of the pool has a weight set no more."""
        version = self.sets.get(number)
        if version is None:
            return
        for having in (version.holders, version.inheritors, version.passing):
            having.discard(child)
        if version.life.state == "draining":
            self._drained(version)
        elif version.life.state == "evicting" and not version.is_mapped:
            self.unmapped.append(version)

    def _died_thawing(self, version: WeightSet) -> None:
        """Do not let one warm model kill worker after worker, from which all models would suffer."""
        version.thaw_deaths += 1
        if version.thaw_deaths >= MAX_THAW_DEATHS and not version.is_dangerous:
            version.is_dangerous = True
            text = f"{version.thaw_deaths} workers died when they were to thaw it; it is thawed when it is run"
            self._out.append(Report(f"{version.load.name} is not kept warm: {text}"))

    # --- attached processes ---------------------------------------------------------------------------------

    def attach(self, version: WeightSet, caller: CallerKey) -> None:
        """Hand a weight set to somebody at the unix socket, now or when it is ready."""
        version.waiting_to_attach.append(caller)
        if version.is_ready:
            self.attach_waiting(version)

    def attach_waiting(self, version: WeightSet) -> None:
        """Hand a weight set that has become ready to those who wait for it."""
        if version.recipe:
            text = f"{version.load.name} cannot be attached to: it cannot be pickled, each worker builds it anew"
            self.tell(version.waiting_to_attach, Refused(InvalidRequest(text).to_record()))
        for caller in version.waiting_to_attach:
            version.attached.add(caller)
            load = version.load
            message = Attached(load.options, version.manifest, version.skeleton, load.paths, self.regions.gpu)
            self._out.append(ToCaller(caller, message, version.layout))
        version.waiting_to_attach.clear()

    def caller_left(self, caller: CallerKey) -> None:
        """Somebody at the unix socket is gone."""
        self.let_go(caller)
        for version in list(self.sets.values()):
            if caller in version.waiting_to_attach:
                version.waiting_to_attach.remove(caller)
            if caller in version.attached:
                version.attached.discard(caller)
                if version.life.state == "draining":
                    self._drained(version)

    # --- the end --------------------------------------------------------------------------------------------

    def retire(self, version: WeightSet, answer: Message) -> None:
        """Free a weight set as soon as nobody holds it; ``answer`` is for who still waits for it.

        The zygote does not have it any more, and who has inherited it was outdated.
        """
        self.tell(version.waiting_for_load, answer)
        self.tell(version.waiting_to_attach, _no_more(version, answer))
        self.tell(version.evictors, _no_more(version, answer))
        self._admission.drop_set(version)
        if version.is_mapped or version.attached:
            were_told = version.life.state == "evicting"
            version.life.become("draining")
            for child in () if were_told else sorted(version.holders - version.inheritors):
                self._out.append(ToChild(child, Forget(version.number), [], ()))
            self._drained(version)
        else:
            self._freed(version)

    def give_up_regions(self, version: WeightSet) -> None:
        """Let go of what a weight set lies in: it is to be built anew when it is needed again."""
        self.regions.unuse(version.number, version.regions)
        version.regions = version.layout = ()
        self._free()

    def tell(self, callers: list[CallerKey], answer: Message) -> None:
        """Answer everybody who waits, once."""
        for caller in callers:
            self._out.append(ToCaller(caller, answer))
        callers.clear()

    def _drained(self, version: WeightSet) -> None:
        """Free a retired weight set if nobody holds it; who is only attached is not waited for."""
        if version.is_mapped:
            return
        if version.attached:
            note = f"unloaded; its memory is freed when {len(version.attached)} attached processes let go of it"
            self.tell(version.unloaders, Done(note))
        else:
            self._freed(version)

    def _freed(self, version: WeightSet) -> None:
        version.life.become("freed")
        del self.sets[version.number]
        self.give_up_regions(version)
        self._workspace.leave(version)  # last: what was freed may be what a slot could not have
        self.tell(version.unloaders, Done("unloaded"))

    def _free(self) -> None:
        if self.regions.freed:
            self._out.append(FreeRegions(tuple(self.regions.freed)))
            self.regions.freed.clear()

    def _answer_waiting(self) -> None:
        for filler, grants in self.regions.answers:
            self._out.append(GrantRegions(filler, grants))
        self.regions.answers.clear()


def thaw_order(version: WeightSet, *, eager: bool) -> Thaw:
    """Return what tells a child to thaw a weight set; the descriptors of its regions go along."""
    load = version.load
    return Thaw(
        version.number, load.name, load.options, version.manifest, version.skeleton, load.paths, version.recipe,
        eager,
    )  # fmt: skip


def _no_more(version: WeightSet, answer: Message) -> Message:
    """Return what somebody is told who wanted to attach to a weight set that is retired."""
    if isinstance(answer, Refused):
        return answer
    error = ModelNotFound(f"{version.load.name} was {getattr(answer, 'note', 'unloaded')}; ask again")
    return Refused(error.to_record())
