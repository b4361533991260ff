"""Requests become attempts: handed to workers, answered once, taken back from workers that died.

A request, or a batch of them, that is handed to a worker becomes a numbered attempt, and only the newest attempt
of a request may answer it. When a worker dies, the attempt that it had begun is blamed, and what it merely held
goes back to the front of its queue, in order. Of a batch nobody can tell who is to blame: each of it runs alone
then.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from ...protocol.errors import PoolError, WorkerDied
from ...protocol.messages import ContinueRun, Failed, Item, Released, Reply, Run
from .events import AttemptEnded, ClientKey, ItemYielded
from .fleet import Fleet
from .instructions import Instruction, Interrupt, TellLate, ToChild, ToClient
from .library import Library
from .mailboxes import Mailboxes
from .requests import Request, Requests
from .schedule import Schedule
from .stalls import Stalls
from .weights import Model, WeightSet
from .workers import Worker
from .workspace import Workspace

#: What an unmeasured run is expected to take: long, so that nothing waits behind it.
_UNKNOWN_S: Final = 1.0


class _Attempt(NamedTuple):
    """What was handed to a worker; ``given_s`` is what its model and client were charged for it.

    ``is_first``: it is the first of its weight set there.
    """

    requests: tuple[Request, ...]
    calls: int
    model: Model
    version: WeightSet
    child: int
    given_s: float
    is_first: bool


class Attempts:
    """Hands requests to workers, and answers them.

    Args:
        fleet, library, requests, schedule, workspace, mailboxes: who runs what, for whom, when and where.
        out: where instructions go.

    Attributes:
        count: how many there were; the newest one's number.
        retried: how many deaths of workers requests survived.
        stalls: the streams that wait for their readers.
    """

    def __init__(
        self,
        fleet: Fleet,
        library: Library,
        requests: Requests,
        schedule: Schedule,
        workspace: Workspace,
        mailboxes: Mailboxes,
        out: list[Instruction],
    ) -> None:
        self.count = 0
        self.retried = 0
        self.stalls = Stalls()
        self._fleet = fleet
        self._library = library
        self._requests = requests
        self._schedule = schedule
        self._workspace = workspace
        self._mailboxes = mailboxes
        self._out = out
        self._running: dict[int, _Attempt] = {}

    def running_on(self, attempt: int) -> tuple[int, str]:
        """Return the client's number of an attempt's first request, and its model; ``(0, "")`` if it is over."""
        running = self._running.get(attempt)
        return (running.requests[0].submit.request, running.model.name) if running else (0, "")

    def begin(self, worker: Worker, model: Model, requests: tuple[Request, ...], calls: int) -> None:
        """Hand requests, which have so many calls together, to a worker as one attempt."""
        version, first = model.current, requests[0]
        is_first = version.number not in worker.holds
        self._library.holdings.give(version, worker, eager=False)
        self.count += 1
        attempt = self.count
        version.running += 1
        model.entered(worker.child)
        expected_s = None if is_first or worker.thawing or first.is_stream else model.expected(calls)
        given_s = expected_s or 0.0
        self._running[attempt] = _Attempt(requests, calls, model, version, worker.child, given_s, is_first)
        self._schedule.took(model, given_s)
        self._fleet.workers.hand(worker, attempt, _UNKNOWN_S if expected_s is None else expected_s, calls)
        lease = self._workspace.lease(worker.child, version)
        parts: list[Any] = []
        buffers: list[Any] = []
        priority = first.submit.priority
        for request in requests:
            request.attempt = attempt
            request.life.become("running")
            if request.mailboxes:
                self._mailboxes.give(worker.child, request.mailboxes)
            submit = request.submit
            priority = max(priority, submit.priority)
            parts.append([submit.body, submit.places, submit.reply, submit.calls, len(request.buffers)])
            buffers += request.buffers
        method = first.submit.method or model.method
        order = Run(attempt, version.number, method, parts, first.credit, *lease, priority)
        self._out.append(ToChild(worker.child, order, buffers, ()))

    # --- what becomes of it ---------------------------------------------------------------------------------

    def yielded(self, event: ItemYielded, now: float) -> None:
        """A worker has the next item of a stream."""
        running = self._running.get(event.attempt)
        if running is None or running.child != event.child:
            return
        request = running.requests[0]
        if not request.is_stream or not request.is_answered_by(event.attempt):
            return
        request.items += 1
        request.credit -= 1
        if not request.credit:
            self.stalls.begin(request, now)
        self._out.append(ToClient(request.client, Item(request.submit.request, event.body), event.buffers))

    def go_on(self, request: Request, items: int) -> None:
        """A stream's reader is ready for so many more items."""
        request.credit += items
        self.stalls.end(request)
        running = self._running.get(request.attempt)
        if running is not None:
            self._out.append(ToChild(running.child, ContinueRun(request.attempt, items), [], ()))

    def ended(self, event: AttemptEnded, now: float) -> float:
        """A worker has done with an attempt; return how much work that was, as `Model.work_s` tells."""
        worker = self._fleet.workers.get(event.child)
        if worker is None or not self._fleet.workers.took_back(worker, event.attempt):
            return 0.0
        running = self._running.pop(event.attempt)
        self._left(running, now)
        self._measure(running, event)
        rest = event.buffers
        for request, answer in zip(running.requests, _answers(event, len(running.requests)), strict=True):
            count = 0 if isinstance(answer, dict) else answer[3]
            buffers, rest = rest[:count], rest[count:]
            if not request.is_answered_by(event.attempt):
                self._release(request)
            elif isinstance(answer, dict):
                self.answer(request, Failed(request.submit.request, answer))
            else:
                body, places, errors, _ = answer
                message = Reply(request.submit.request, event.seconds, body, places, errors)
                self.answer(request, message, buffers)
        if running.version.terms.max_batch > 1:  # what is full, and for how long to wait, may be otherwise now
            self._schedule.note(running.model, now)
        if worker.life.state == "idle":
            self._workspace.rise(worker.child)
            self._fleet.became_idle(worker)
        return running.model.work_s(running.calls)

    def _left(self, running: _Attempt, now: float) -> None:
        """Note that an attempt is over, in whatever way."""
        running.version.running -= 1
        model = running.model
        model.left(running.child)
        if model.is_held or model.is_below_least:
            model.is_held = False
            self._schedule.note(model, now)
        self._schedule.made_room(running.child, now)

    def _measure(self, running: _Attempt, event: AttemptEnded) -> None:
        model, first = running.model, running.requests[0]
        model.worker_s += event.seconds
        model.run_times.add(event.seconds)
        more_s = event.seconds - running.given_s
        self._schedule.correct(model, more_s)
        if len(running.requests) == 1 and first.line is not None:
            first.line.correct(more_s)
        has_failed = any(isinstance(answer, dict) for answer in event.answers)
        # The first includes the thaw; and a stream's readers, not its model, say how long it takes.
        if running.version is model.current and not (has_failed or running.is_first or first.is_stream):
            model.measured(running.calls, event.seconds)

    def is_of_many(self, attempt: int) -> bool:
        """Whether an attempt is one request of many calls."""
        requests = self._running[attempt].requests
        return len(requests) == 1 and requests[0].submit.calls > 0

    def tell_late(self, attempt: int) -> None:
        """Tell the client of an attempt of many calls that one of them takes too long."""
        running = self._running[attempt]
        request = running.requests[0]
        if self.is_of_many(attempt) and request.is_answered_by(attempt):
            self._out.append(TellLate(running.child, attempt, request.client, request.submit.request))

    def take_back(self, worker: Worker, now: float) -> None:
        """Let what waits behind the first attempt of a worker run elsewhere, as far as it may.

        The worker may begin it in this very moment. So it must be allowed to run twice, and nobody may read what
        both would write.
        """
        for attempt in reversed(list(worker.outstanding)[1:]):
            running = self._running[attempt]
            wanted = [one for one in running.requests if one.is_answered_by(attempt)]
            if not wanted or not all(one.may_run_twice for one in wanted):
                continue
            self._out.append(Interrupt(worker.child, attempt, kill=False))
            for request in reversed(wanted):
                self._wait_again(request, running.model, now)
            self._need_again(running.model)

    def requeue(self, attempt: int, now: float, *, blamed: bool, cause: str) -> None:
        """Take an attempt back from a worker that died."""
        running = self._running.pop(attempt)
        self._left(running, now)
        self._schedule.correct(running.model, -running.given_s)
        is_batch = len(running.requests) > 1
        for request in reversed(running.requests):
            if not request.is_answered_by(attempt):
                self._release(request)
                continue
            request.deaths += blamed and (not is_batch or not request.submit.retries)
            request.is_suspect |= blamed and is_batch
            if request.deaths > request.submit.retries or request.items:
                self._give_up(request, running.model, cause)
                continue
            self.retried += blamed
            self._wait_again(request, running.model, now)
        self._need_again(running.model)

    def _wait_again(self, request: Request, model: Model, now: float) -> None:
        """Put a request in front of its queue that was handed to a worker in vain."""
        request.attempt = 0
        request.life.become("queued")
        self._schedule.add(model, request, now, in_front=True)

    def _need_again(self, model: Model) -> None:
        """See to it that what waits for a model can run, if what others of it ran on is no more."""
        if model.queue and not model.current.is_ready:
            self._library.need_answers(model)

    def _give_up(self, request: Request, model: Model, cause: str) -> None:
        message = f"{model.name}: the worker died ({cause}) while it ran this request; "
        if request.items:
            message += f"it had sent {request.items} items of a stream, which is not begun again"
        else:
            message += f"tried {request.deaths} times, retries={request.submit.retries}"
        self.refuse(request, WorkerDied(message, deaths=request.deaths, cause=cause))

    # --- answers --------------------------------------------------------------------------------------------

    def answer(self, request: Request, message: Reply | Failed, buffers: list[Any] | None = None) -> None:
        """Answer a request: with its result, or with why there is none."""
        self._requests.settle(request)
        self._out.append(ToClient(request.client, message, buffers or []))
        model = self._library.models[request.submit.model]
        if isinstance(message, Reply):
            failed = len(message.errors)
            model.answered += request.calls - failed
            model.failed += failed
            self._mailboxes.let_go(request.mailboxes)  # the reply says so
            request.mailboxes = ()
        else:
            model.failed += request.calls
        self.forget(request)

    def refuse(self, request: Request, error: PoolError) -> None:
        """Answer a request with an error."""
        self.answer(request, Failed(request.submit.request, error.to_record()))

    def give_up(self, request: Request, error: PoolError, *, kill: bool = False) -> None:
        """Answer a request with an error, and have what runs for nobody any more end soon."""
        attempt = request.attempt
        self.refuse(request, error)
        self._interrupt(attempt, kill=kill)

    def abandon(self, client: ClientKey) -> None:
        """Tell a client that is gone nothing more, not even of what was answered while it runs on."""
        for running in self._running.values():
            for request in running.requests:
                if request.client == client:
                    request.is_abandoned = True

    def left(self, requests: list[Request]) -> None:
        """The client of these requests is gone, and they are answered: nobody wants them."""
        for request in requests:
            self.forget(request)
        for attempt in dict.fromkeys(request.attempt for request in requests):
            self._interrupt(attempt)

    def forget(self, request: Request) -> None:
        """Take a request out of its model's books. As long as it is in them, the model stays."""
        model = self._library.models[request.submit.model]
        if request.is_stream:
            self.stalls.end(request)
        if request.queue is not None:
            request.queue.discard(request)
        if not model.queue.calls:
            self._schedule.drop(model)
        model.unanswered -= 1
        self._library.leave_if_done(model)
        if request.mailboxes and request.attempt not in self._running:
            self._release(request)

    def _interrupt(self, attempt: int, *, kill: bool = False) -> None:
        """Have an attempt end at its next safe point, if nobody waits for any part of it."""
        running = self._running.get(attempt)
        if running is not None and all(request.is_answered for request in running.requests):
            self._out.append(Interrupt(running.child, attempt, kill))

    def _release(self, request: Request) -> None:
        """Let go of the places of a request that failed, now that no worker has an attempt of it any more."""
        if request.mailboxes:
            if not request.is_abandoned:
                self._out.append(ToClient(request.client, Released(request.submit.request), []))
            self._mailboxes.let_go(request.mailboxes)
            request.mailboxes = ()


def _answers(event: AttemptEnded, parts: int) -> list[Any]:
    """Return an answer for each part of an attempt, whatever the worker has said."""
    if len(event.answers) == parts:
        return event.answers
    message = f"the worker has answered {len(event.answers)} of {parts} parts of an attempt"
    return [PoolError(message).to_record()] * parts
