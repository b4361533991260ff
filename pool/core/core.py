"""The only brain of a device: ``handle(event, now) -> instructions``. No input, no output, no clock.

Rule 1: nothing but `Core.handle` changes state. Rule 2: every accepted request is answered exactly once, and
only by its newest attempt. Rule 3: the cost of an event does not grow with workers, models or queues.

Each part of it has a module of its own: requests and their deadlines, models and their weight sets, memory,
processes, attempts. This one tells them what happened.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any

from ...protocol.errors import InvalidRequest, LoadFailed, RequestCancelled, SupervisorLost
from ...protocol.messages import Leave, Record, Refused
from . import events
from .admission import Admission
from .attempts import Attempts
from .concurrency import Concurrency
from .dispatch import Dispatch
from .events import Event
from .eviction import Eviction
from .fleet import Fleet
from .instructions import Finish, Instruction, SignalChild, ToCaller, ToChild
from .intake import Intake
from .ledger import NO_ALLOWANCE, Allowance, Ledger
from .library import Library
from .loading import Loading
from .mailboxes import NO_BUDGET, Budget, Mailboxes
from .numbers import Numbers
from .position import ALONE, Position
from .predictions import Predictions
from .pressure import Pressure
from .regions import Regions
from .requests import Requests
from .schedule import Schedule
from .seen import Seen
from .sizing import Sizing
from .weights import Model
from .workspace import Workspace


class Core:
    """The state of a device of a pool, and of what runs there.

    Args:
        workers: how many worker processes there shall be, at most.
        slots: how many of them may hold work at once.
        history: what weight sets were seen to need, in bytes, by their identity and the signature of inputs.
        mailboxes: how much memory there may be for large arrays of clients.
        slot_bytes: how large slots are; 0: as large as it turns out to be needed.
        allowance: how much memory the pool may take.
        max_private_bytes: a worker that has more private memory is replaced between its runs; 0: however much.
        least_workers: how many there shall be at least; 0: always as many.
        position: which of the pool's devices this is.
        host: the core of the first device, in whose memory mailboxes lie; None: this is it.
        loads: what loads were seen to take, by their key; the first device's are those of all.
        is_adaptive: whether fewer workers than that may hold work, if that brings more done.

    Attributes:
        name, is_gpu, peers: as in `Position`.
        elsewhere: called with a model that is being built, and for which there is no memory, and with the
            refusal: whether another device will take it.
    """

    def __init__(
        self,
        workers: int,
        slots: int,
        history: Mapping[str, Mapping[str, int]] | None = None,
        mailboxes: Budget = NO_BUDGET,
        slot_bytes: int = 0,
        allowance: Allowance = NO_ALLOWANCE,
        max_private_bytes: int = 0,
        least_workers: int = 0,
        position: Position = ALONE,
        host: Core | None = None,
        *,
        loads: Mapping[str, Seen] | None = None,
        is_adaptive: bool = False,
    ) -> None:
        numbers = (position.index, position.count)
        self.name, self.is_gpu, self.peers = position.name, position.is_gpu, position.peers
        self.elsewhere: Callable[[Model, Record], bool] = lambda _model, _error: False
        self._out: list[Instruction] = host._out if host else []  # mailboxes are of all devices
        self._libraries: list[Library] = host._libraries if host else []
        self.predictions: Predictions = host.predictions if host else Predictions(loads or {}, self._out)
        self.fleet = Fleet(
            workers, slots, self._out, position, Numbers(*numbers),
            lambda loader, private_bytes: self.loading.may_begin(loader, private_bytes),
        )  # fmt: skip
        regions = Regions(Numbers(*numbers), gpu=position.gpu)
        self.workspace = Workspace(slots, slot_bytes, regions, history or {}, self._out, position.is_gpu)
        self.ledger = Ledger(self.name, allowance, regions, lambda: self.workspace.needed_bytes)
        self.admission = Admission(self.ledger, regions)
        self.library = Library(
            self.fleet, regions, self.workspace, self.admission, self.predictions, self._out, self._libraries
        )
        self.requests, self.schedule = Requests(), Schedule()
        self.mailboxes: Mailboxes = (
            host.mailboxes if host else Mailboxes(mailboxes, regions, self.ledger, self._out)
        )
        self.attempts = Attempts(
            self.fleet, self.library, self.requests, self.schedule, self.workspace, self.mailboxes, self._out
        )
        self.dispatch = Dispatch(self.fleet.workers, self.library, self.schedule, self.attempts, self.workspace)
        self.intake = Intake(self.library, self.requests, self.dispatch, self.attempts, self.mailboxes, self._out)
        self.eviction = Eviction(self.admission, self.library, self.schedule, self.dispatch.sessions, self._out)
        self.sizing = Sizing(least_workers or workers, self.fleet.workers, self.ledger)
        pressure = Pressure(self.ledger, self.fleet, max_private_bytes, self._out)
        self.loading: Loading = Loading(
            self.library, self.admission, self.eviction, pressure, self.attempts, self.fleet,
            lambda model, error: self.elsewhere(model, error), self._out,
        )  # fmt: skip
        self.concurrency = Concurrency(slots, is_adaptive=is_adaptive)
        self._is_finished = False
        self._handlers = self._table()

    def _table(self) -> dict[type, Callable[[Any, float], None]]:
        """Return what takes in each kind of event."""
        return {
            events.ClientJoined: self.intake.joined,
            events.ClientLeft: self.intake.left,
            events.Submitted: self.intake.submitted,
            events.Cancelled: self.intake.cancelled,
            events.Continued: self.intake.continued,
            events.MailboxWanted: self._mailbox_wanted,
            events.MailboxReturned: self._mailbox_returned,
            events.ModelDeclared: self._model_declared,
            events.ModelArrived: self._model_arrived,
            events.PartReleased: lambda event, _: self.library.release_part(event.name),
            events.ModelRemoved: lambda event, _: self.library.remove(event.caller, event.name),
            events.ZygoteReady: self._zygote_ready,
            events.ZygoteDied: self._zygote_died,
            events.ModulesAdopted: self._modules_adopted,
            events.SetAdopted: self._set_adopted,
            events.ChildForked: self._child_forked,
            events.ChildExited: self._child_exited,
            events.ModelWanted: self._model_wanted,
            events.ModelPinned: self.eviction.pin,
            events.ModelEvicted: self.eviction.evict,
            events.CallerLeft: self._caller_left,
            events.RegionMade: self._region_made,
            events.RegionFailed: self._region_failed,
            events.SlotUsed: self._slot_used,
            events.RegionsNeeded: self.loading.regions_needed,
            events.FileOffered: self.loading.file_offered,
            events.RegionsFilled: self.loading.regions_filled,
            events.FillingFailed: self.loading.filling_failed,
            events.RegionsMoved: self.loading.regions_moved,
            events.MemoryAvailable: lambda event, _: self.ledger.available(event),
            events.MemoryMeasured: self.loading.memory_measured,
            events.FileChanged: self.loading.file_changed,
            events.ModelBuilt: self._model_built,
            events.BuildFailed: self.loading.build_failed,
            events.SetThawed: self._set_thawed,
            events.SetForgotten: self._set_forgotten,
            events.ItemYielded: self.attempts.yielded,
            events.AttemptEnded: self._attempt_ended,
            events.StopAsked: self._stop_asked,
            events.TimePassed: self._time_passed,
        }

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take in what happened at ``now`` (seconds on any monotonic clock); return what is to be done."""
        if self._is_finished:  # what was under way may still be told, and is of no matter
            return []
        self._handlers[type(event)](event, now)  # pyright: ignore[reportArgumentType] - the table pairs them
        self.loading.make_room(now)
        self.fleet.fork_loaders()  # one may have waited for what is free by now
        if self.fleet.workers.are_outdated:  # whatever made them so, and before they are handed more
            self._tend(now)
        if not self.workspace.is_making:  # slots will be there in a moment, or it is known that they will not
            self.dispatch.go_on(now)
        if self.sizing.is_variable and self.sizing.look(now, is_waiting=bool(self.schedule)):
            self._tend(now)
        if self.stopping:
            self._go_on_stopping(now)
        out = self._out[:]
        self._out.clear()
        return out

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self._is_finished

    @property
    def stopping(self) -> str:
        """The sentence that newcomers are refused with, once it was asked to stop; empty before."""
        return self.intake.closed

    def wake_at(self) -> float:
        """Return when `TimePassed` is due; infinity for never."""
        return min(
            self.requests.next_deadline(),
            self.schedule.wake_at(),
            self.attempts.stalls.wake_at(),
            self.dispatch.stragglers.wake_at(),
            self.fleet.wake_at(),
            self.library.warming.wake_at(),
            self.eviction.wake_at(),
            self.sizing.wake_at(),
        )

    # --- requests -------------------------------------------------------------------------------------------

    def _attempt_ended(self, event: events.AttemptEnded, now: float) -> None:
        work_s = self.attempts.ended(event, now)
        self.dispatch.sessions.became_able(event.child)
        if self.concurrency.is_adaptive:
            self.concurrency.ended(work_s, now, is_saturated=bool(self.schedule))
            self.fleet.workers.slots = self.concurrency.limit

    def _mailbox_wanted(self, event: events.MailboxWanted, _now: float) -> None:
        self.mailboxes.want(event.caller, event.size_bytes)

    def _mailbox_returned(self, event: events.MailboxReturned, _now: float) -> None:
        try:
            self.mailboxes.give_back(event.caller, event.mailbox)
        except InvalidRequest as error:
            self._out.append(ToCaller(event.caller, Refused(error.to_record())))

    # --- models ---------------------------------------------------------------------------------------------

    def _model_declared(self, event: events.ModelDeclared, now: float) -> None:
        if self.stopping:
            self.library.refuse(event.caller, SupervisorLost(self.stopping))
            return
        self.library.declare(event.caller, event.load)
        self._collect_ready(now)

    def _model_arrived(self, event: events.ModelArrived, now: float) -> None:
        model = self.library.arrive(event)
        for request in event.requests:
            self.requests.adopt(request)
            model.unanswered += 1
            self.schedule.add(model, request, now)
        self.library.need(model.current)

    def depart(self, model: Model) -> events.ModelArrived:
        """Let a model go that another device shall load, with all that waits for it."""
        departure = self.library.depart(model)
        for request in departure.requests:
            model.queue.discard(request)
        self.requests.let_go(departure.requests)
        self.schedule.drop(model)
        return departure

    def _model_wanted(self, event: events.ModelWanted, now: float) -> None:
        if self.stopping:
            self.library.refuse(event.caller, SupervisorLost(self.stopping))
            return
        self.library.attach(event.caller, event.name)
        self._collect_ready(now)

    def _caller_left(self, event: events.CallerLeft, _now: float) -> None:
        self.library.holdings.caller_left(event.caller)
        self.mailboxes.caller_left(event.caller)

    def _model_built(self, event: events.ModelBuilt, now: float) -> None:
        try:
            self.library.built(event.child, event.built)
        except InvalidRequest as error:
            self.loading.filling_failed(events.FillingFailed(event.child, error.to_record()), now)
        self._collect_ready(now)

    def _collect_ready(self, now: float) -> None:
        """Let models run whose weight sets became ready."""
        for model in self.library.adopted():
            model.current.resident_since = now
            self.library.loaded(model.current, now)
            self.workspace.join(model.current)
            self.schedule.note(model, now)
        self._tend(now)

    def _set_thawed(self, event: events.SetThawed, now: float) -> None:
        worker = self.fleet.workers.get(event.child)
        if worker is None:
            self.library.warming.tried(event.child, event.error)
            self._tend(now)
            return
        self.library.holdings.tried(worker, event.weight_set)  # a failure is told again by each run
        if event.error is None:
            self.library.thawed(event.weight_set, event.private_bytes, event.opaque)

    def _set_forgotten(self, event: events.SetForgotten, _now: float) -> None:
        worker = self.fleet.workers.get(event.child)
        if worker is None:
            return
        if event.unmapped:
            self.library.holdings.forgot(worker, event.weight_set)
        else:  # something in it holds on: its end frees the memory
            self.fleet.workers.outdate(worker)

    # --- memory that runs use -------------------------------------------------------------------------------

    def _region_made(self, event: events.RegionMade, _now: float) -> None:
        self.workspace.region_made(event.region, event.size_bytes)
        self.mailboxes.region_made(event.region)

    def _region_failed(self, event: events.RegionFailed, _now: float) -> None:
        self.workspace.region_failed(event.region, str(event.error["message"]))
        self.mailboxes.region_failed(event.region, event.error)

    def _slot_used(self, event: events.SlotUsed, _now: float) -> None:
        version = self.library.holdings.sets.get(event.used.weight_set)
        if version is not None and (need_bytes := self.workspace.used(event.child, version, event.used)):
            self.predictions.saw(version, Seen(need_bytes=need_bytes))

    # --- processes ------------------------------------------------------------------------------------------

    def _zygote_ready(self, event: events.ZygoteReady, now: float) -> None:
        self.workspace.without = event.without_slots
        self.fleet.zygote_ready(now)
        self._tend(now)

    def _zygote_died(self, event: events.ZygoteDied, now: float) -> None:
        refused = self.fleet.zygote_died(event.cause, now)
        self.library.warming.zygote_died(event.cause, refused)

    def _modules_adopted(self, event: events.ModulesAdopted, now: float) -> None:
        self.fleet.modules_adopted(event.refused, event.threads)
        self._collect_ready(now)

    def _set_adopted(self, event: events.SetAdopted, now: float) -> None:
        self.library.warming.thawed(event.error)
        if event.error is None:
            self.library.thawed(event.weight_set, event.private_bytes, event.opaque)
        self._tend(now)

    def _child_forked(self, event: events.ChildForked, now: float) -> None:
        worker = self.fleet.workers.get(event.child)
        if worker is None:
            self.library.loader_forked(event.child, now)
            return
        self.fleet.workers.started(worker, event.pid)
        self.ledger.worker_came(event.child)
        self.fleet.became_idle(worker)
        if worker.life.state == "idle":
            self.library.warming.give_refused(worker)
        self._tend(now)

    def _child_exited(self, event: events.ChildExited, now: float) -> None:
        if not event.was_forked:
            self.fleet.never_forked()
        worker = self.fleet.workers.get(event.child)
        if worker is None:
            if self.library.warming.child_exited(event.child, event.cause, was_forked=event.was_forked):
                self._tend(now)
            elif self.library.loader_exited(event.child, was_forked=event.was_forked):
                error = LoadFailed(f"the loader died ({event.cause}) while it built the model")
                self.loading.build_failed(events.BuildFailed(event.child, error.to_record()), now)
            return
        self.ledger.worker_gone(event.child)
        self.workspace.died(event.child)
        self.mailboxes.worker_died(event.child)
        held = self.fleet.worker_died(worker, event.begun, now)
        self.dispatch.end_sessions(event.child, now)
        for attempt in reversed(held):  # what it had already goes in front of what waited for it
            self.attempts.requeue(attempt, now, blamed=attempt == event.begun, cause=event.cause)
        self.library.holdings.worker_died(worker, event.begun)
        self._tend(now)

    def _tend(self, now: float) -> None:
        """See to it that everybody is there who should be; workers first, as none is forked during a thaw."""
        self.fleet.fill(now)
        self.library.warming.proceed(now)

    # --- time and the end -----------------------------------------------------------------------------------

    def _time_passed(self, _event: events.TimePassed, now: float) -> None:
        self.intake.time_passed(now)
        self.schedule.time_passed(now)
        self.dispatch.stragglers.time_passed(now)
        self.library.warming.time_passed(now)
        self.fleet.time_passed(now)
        self._tend(now)

    def _stop_asked(self, event: events.StopAsked, _now: float) -> None:
        self.intake.closed = "the pool is shutting down and takes no new requests"
        if not event.drain:
            for request in list(self.requests.everyone()):
                self.attempts.refuse(request, RequestCancelled("the pool was shut down"))
            for worker in self.fleet.workers:
                if worker.life.state == "busy":
                    self._out.append(ToChild(worker.child, Leave(), [], ()))
                    self._out.append(SignalChild(worker.child, signal.SIGTERM))

    def _go_on_stopping(self, now: float) -> None:
        if self.requests.unanswered or self._is_finished:
            return
        self.fleet.dismiss_all(now)
        if not len(self.fleet.workers) or self.fleet.has_given_up:
            self._is_finished = True
            self._out.append(Finish())
