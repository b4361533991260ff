"""Requests become attempts: handed to workers, answered once, taken back from workers that died.

Models with something to run take turns. A request that is handed to a worker becomes a numbered attempt, and only
its newest may answer it. When a worker dies, the attempt that it had begun is blamed, and what it merely held goes
back to the front of its queue, in order.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final, NamedTuple

from ...protocol.errors import PoolError, WorkerDied
from ...protocol.messages import Failed, Released, Reply, Run
from .events import AttemptEnded, ClientKey
from .fleet import Fleet
from .instructions import Instruction, ToChild, ToClient
from .library import Library
from .mailboxes import Mailboxes
from .requests import Request, Requests
from .weights import Model, WeightSet
from .workers import Worker
from .workspace import Workspace

#: What an unmeasured run is expected to take: long, so that nothing waits behind it.
_UNKNOWN_S: Final = 1.0


class _Attempt(NamedTuple):
    """A request that was handed to a worker; ``is_first``: it is the first of its weight set there."""

    request: Request
    model: Model
    version: WeightSet
    is_first: bool


class Attempts:
    """Hands requests to workers, and answers them.

    Args:
        fleet, library, requests, workspace, mailboxes: who runs what, for whom and where.
        out: where instructions go.

    Attributes:
        count: how many there were; the newest one's number.
        retried: how many deaths of workers requests survived.
    """

    def __init__(
        self,
        fleet: Fleet,
        library: Library,
        requests: Requests,
        workspace: Workspace,
        mailboxes: Mailboxes,
        out: list[Instruction],
    ) -> None:
        self.retried = 0
        self._fleet = fleet
        self._library = library
        self._requests = requests
        self._workspace = workspace
        self._mailboxes = mailboxes
        self._out = out
        self.count = 0
        self._running: dict[int, _Attempt] = {}
        self._runnable: OrderedDict[Model, None] = OrderedDict()  # models with work, in the order of their turns

    def running_on(self, attempt: int) -> tuple[int, str]:
        """Return the client's request number and the model of an attempt; ``(0, "")`` if it is over."""
        running = self._running.get(attempt)
        return (running.request.submit.request, running.model.name) if running else (0, "")

    # --- assignment -----------------------------------------------------------------------------------------

    def note_runnable(self, model: Model) -> None:
        """Give a model turns, if it has something to run."""
        if model.is_runnable:
            self._runnable[model] = None

    def dispatch(self) -> None:
        """Hand requests to workers as long as there are both."""
        workers = self._fleet.workers
        waiting: list[Model] = []  # for a worker that has their modules
        while self._runnable:
            model = next(iter(self._runnable))
            worker = workers.pick(model.current.generation)
            if worker is None and not workers.are_outdated:
                break
            del self._runnable[model]
            if worker is None:
                waiting.append(model)
            elif model.queue:  # it is empty if all were answered while they waited
                request = model.next_request()
                self.note_runnable(model)
                self._hand(worker, model, request)
        for model in reversed(waiting):  # they keep their turns
            self._runnable[model] = None
            self._runnable.move_to_end(model, last=False)

    def _hand(self, worker: Worker, model: Model, request: Request) -> None:
        version = model.current
        is_first = version.number not in worker.holds
        self._library.holdings.give(version, worker, eager=False)
        self.count += 1
        attempt = request.attempt = self.count
        request.life.become("running")
        version.running += 1
        self._running[attempt] = _Attempt(request, model, version, is_first)
        expected_s = model.expected_s
        if expected_s is None or is_first or worker.thawing:
            expected_s = _UNKNOWN_S
        self._fleet.workers.hand(worker, attempt, expected_s)
        submit = request.submit
        lease = self._workspace.lease(worker.child, version)
        if request.mailboxes:
            self._mailboxes.give(worker.child, request.mailboxes)
        method, body = submit.method or model.method, submit.body
        order = Run(attempt, version.number, method, body, submit.places, submit.reply, *lease)
        self._out.append(ToChild(worker.child, order, request.buffers, ()))

    def ended(self, event: AttemptEnded, _now: float) -> None:
        """A worker has answered an attempt."""
        worker = self._fleet.workers.get(event.child)
        if worker is None or not self._fleet.workers.took_back(worker, event.attempt):
            return
        request, model, version, is_first = self._running.pop(event.attempt)
        version.running -= 1
        if version is model.current and event.error is None and not is_first:  # the first includes the thaw
            model.measured(event.seconds)
        if request.is_answered_by(event.attempt):
            if event.error is None:
                self.answer(request, Reply(request.submit.request, event.body, event.places), event.buffers)
            else:
                self.answer(request, Failed(request.submit.request, event.error))
        else:
            self._release(request)
        if worker.life.state == "idle":
            self._workspace.rise(worker.child)
            self._fleet.became_idle(worker)

    def requeue(self, attempt: int, *, blamed: bool, cause: str) -> None:
        """Take an attempt back from a worker that died."""
        request, model, version, _ = self._running.pop(attempt)
        version.running -= 1
        if not request.is_answered_by(attempt):
            self._release(request)
            return
        request.deaths += blamed
        if request.deaths > request.submit.retries:
            message = (
                f"{model.name}: the worker died ({cause}) while it ran this request; "
                f"tried {request.deaths} times, retries={request.submit.retries}"
            )
            self.refuse(request, WorkerDied(message, deaths=request.deaths, cause=cause))
            return
        self.retried += blamed
        request.attempt = 0
        request.life.become("queued")
        model.put_back(request)
        self.note_runnable(model)
        if not model.current.is_ready:  # what it ran on is no more
            self._library.need_answers(model)

    # --- answers --------------------------------------------------------------------------------------------

    def answer(self, request: Request, message: Reply | Failed, buffers: list[Any] | None = None) -> None:
        """Answer a request: with its result, or with why there is none."""
        self._requests.settle(request)
        self._out.append(ToClient(request.client, message, buffers or []))
        model = self._library.models[request.submit.model]
        if isinstance(message, Reply):
            model.answered += 1
            self._mailboxes.let_go(request.mailboxes)  # the reply says so
            request.mailboxes = ()
        else:
            model.failed += 1
        self.forget(request)

    def abandon(self, client: ClientKey) -> None:
        """Tell a client that is gone nothing more, not even of what was answered while it runs on."""
        for running in self._running.values():
            if running.request.client == client:
                running.request.is_abandoned = True

    def forget(self, request: Request) -> None:
        """Take a request out of its model's books. As long as it is in them, the model stays."""
        model = self._library.models[request.submit.model]
        model.queue.pop(request, None)
        model.unanswered -= 1
        self._library.leave_if_done(model)
        if request.mailboxes and request.attempt not in self._running:
            self._release(request)

    def _release(self, request: Request) -> None:
        """Let go of the places of a request that failed, now that no worker has an attempt of it any more."""
        if request.mailboxes:
            if not request.is_abandoned:
                self._out.append(ToClient(request.client, Released(request.submit.request), []))
            self._mailboxes.let_go(request.mailboxes)
            request.mailboxes = ()

    def refuse(self, request: Request, error: PoolError) -> None:
        """Answer a request with an error."""
        self.answer(request, Failed(request.submit.request, error.to_record()))
