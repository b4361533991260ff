"""Memory for weights, as events tell of it: regions asked for and filled, moved out and back, or not to be had."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ...protocol.errors import InvalidRequest
from ...protocol.messages import Failed, Record, Refused
from . import events
from .admission import Admission, ReturnClaim
from .attempts import Attempts
from .eviction import Eviction
from .fleet import Fleet
from .instructions import Instruction, ToCaller
from .library import Library
from .pressure import Pressure
from .regions import FillerKey, Want
from .requests import Request
from .weights import Model, WeightSet


class Loading:
    """Tells those who wait what becomes of it.

    Args:
        library, admission, eviction, pressure, attempts, fleet: what is loaded, who waits for memory, who leaves
            it, which workers take too much, who answers requests, and who ends loaders.
        elsewhere: whether another device takes a model for which there is no memory.
        out: where instructions go.
    """

    def __init__(
        self,
        library: Library,
        admission: Admission,
        eviction: Eviction,
        pressure: Pressure,
        attempts: Attempts,
        fleet: Fleet,
        elsewhere: Callable[[Model, Record], bool],
        out: list[Instruction],
    ) -> None:
        self._library = library
        self._admission = admission
        self._eviction = eviction
        self._pressure = pressure
        self._attempts = attempts
        self._fleet = fleet
        self._elsewhere = elsewhere
        self._out = out

    # --- filling --------------------------------------------------------------------------------------------

    def regions_needed(self, event: events.RegionsNeeded, now: float) -> None:
        """Somebody who fills regions asks for some."""
        if type(event.filler) is int and not self._library.is_loading(event.filler):
            return  # nobody wants any more what it loads
        wants = [Want(*want) for want in event.wants]
        try:
            self._library.holdings.regions.check(event.filler, wants)
        except InvalidRequest as error:
            self.filling_failed(events.FillingFailed(event.filler, error.to_record()), now)
        else:
            self._admission.fill(event.filler, wants)

    def file_offered(self, event: events.FileOffered, _now: float) -> None:
        """Somebody has a file that shall be a region."""
        self._library.holdings.offer_file(event.filler, event.identity, event.size_bytes)

    def regions_filled(self, event: events.RegionsFilled, _now: float) -> None:
        """Somebody has filled regions."""
        self._library.holdings.filled(event.filler, event.regions)

    def filling_failed(self, event: events.FillingFailed, now: float) -> None:
        """Somebody does not get its regions: that ends what it loads."""
        self._library.holdings.let_go(event.filler)
        if type(event.filler) is int:
            self.build_failed(events.BuildFailed(event.filler, event.error), now)
            self._fleet.give_up_loader(event.filler)
        else:
            self._out.append(ToCaller(event.filler, Refused(event.error)))

    def build_failed(self, event: events.BuildFailed, _now: float) -> None:
        """A loader could not build its model."""
        self._fail(self._library.build_failed(event.child, event.error), event.error)

    def file_changed(self, event: events.FileChanged, _now: float) -> None:
        """The file that is a region is not what it was."""
        self._fail(self._library.file_changed(event.region, event.error), event.error)

    def may_begin(self, loader: int, private_bytes: int) -> bool:
        """Whether a loader may be forked now that should take so much; from then on that counts as taken.

        Where it is not free, it waits for those of whom something is expected too. What could not be free whatever
        is evicted does not count: what is only expected keeps nobody out.
        """
        ledger = self._admission.ledger
        private_bytes = ledger.expected_bytes(private_bytes)
        lacking_bytes = private_bytes - ledger.free_bytes
        if private_bytes and lacking_bytes > 0 and ledger.is_expecting:
            return False
        if private_bytes and (lacking_bytes <= 0 or lacking_bytes <= self._eviction.freeable_bytes()):
            ledger.expect(loader, private_bytes)
        return True

    # --- room -----------------------------------------------------------------------------------------------

    def make_room(self, now: float) -> None:
        """Serve those who wait for memory, as far as there is any."""
        if not (self._admission or self._library.holdings.unmapped or self._library.has_postponed):
            return
        while refused := self._eviction.proceed(now):  # again, as an older version may be wanted instead
            for claim, error in refused:
                if isinstance(claim, ReturnClaim):
                    self._cannot_return(claim.version, error)
                elif not self._goes_elsewhere(claim.filler, error):
                    self.filling_failed(events.FillingFailed(claim.filler, error), now)
        if not self._admission:
            self._library.resume_postponed()

    def regions_moved(self, event: events.RegionsMoved, now: float) -> None:
        """Regions are out of memory, or back, or could not be moved."""
        for version, error in self._eviction.moved(event, now):
            self._cannot_return(version, error)

    def memory_measured(self, event: events.MemoryMeasured, now: float) -> None:
        """It is known anew what the machine and the pool's processes take."""
        self._admission.ledger.measured(event)
        for loader in self._library.overdue_loaders(now):
            self._admission.ledger.expect_no_more(loader)
        self._pressure.look(event, now)
        self._eviction.relieve(now)

    def _goes_elsewhere(self, filler: FillerKey, error: Record) -> bool:
        """Let another device load a model for which there is no memory here; true if there is one."""
        model = self._library.models.get(self._library.loaded_by(filler))
        return model is not None and self._library.may_depart(model) and self._elsewhere(model, error)

    def _cannot_return(self, version: WeightSet, error: Record) -> None:
        self._library.holdings.tell(version.waiting_to_attach, Refused(error))
        model = self._library.models.get(version.load.name)
        if model is not None and model.current is version:
            self._fail(list(model.queue), error)

    def _fail(self, requests: Iterable[Request], error: Record) -> None:
        for request in requests:
            self._attempts.answer(request, Failed(request.submit.request, error))
