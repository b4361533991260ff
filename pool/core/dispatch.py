"""Who gets what: models in their turns, the requests of each, and the workers that they are handed to."""

from __future__ import annotations

from typing import Final

from ...protocol.limits import MAX_BODY_BYTES, MAX_BUFFERS
from .attempts import Attempts
from .library import Library
from .requests import Request
from .schedule import Schedule
from .sessions import Sessions
from .stragglers import Stragglers
from .weights import Model
from .workers import Worker, Workers
from .workspace import Workspace

#: What the bodies of a batch may have together; the header around them must be one that can travel.
_MOST_BODY_BYTES: Final = MAX_BODY_BYTES // 2


class Dispatch:
    """Hands requests to workers as long as there are both.

    Args:
        workers, library, schedule, attempts, workspace: who works, on what, whose turn it is, what came of it, and
            where.

    Attributes:
        sessions: which worker has which.
        stragglers: workers that keep what they were handed ahead of time waiting.
    """

    def __init__(
        self, workers: Workers, library: Library, schedule: Schedule, attempts: Attempts, workspace: Workspace
    ) -> None:
        self.sessions = Sessions()
        self.stragglers = Stragglers(workers, attempts)
        self._workers = workers
        self._library = library
        self._schedule = schedule
        self._attempts = attempts
        self._workspace = workspace

    def take_in(self, model: Model, request: Request, now: float) -> None:
        """Hand a worker a request that has just come, or let it wait for its turn."""
        if not self._hand_at_once(model, request):
            self._schedule.add(model, request, now)

    def _hand_at_once(self, model: Model, request: Request) -> bool:
        """Hand it out past all queues, if nothing else waits and a worker has room: the short way of most."""
        workers = self._workers
        if (
            self._schedule
            or self.sessions.are_waiting
            or request.submit.session
            or self._workspace.is_making
            or workers.are_outdated
            or not model.current.is_ready
            or model.is_at_most
            or not (workers.has_idle if model.current.terms.max_batch > 1 else workers.have_room)
        ):
            return False
        worker = self._worker_for(model, request)
        if worker is None:
            return False
        self._attempts.begin(worker, model, (request,), request.calls)
        return True

    def go_on(self, now: float) -> None:
        """Hand out what waits and can be handed out."""
        if self._workers.may_block:
            self.stragglers.watch(now)
        if self.sessions.are_waiting:
            self._dispatch_sessions(now)
        if self._schedule:
            self._dispatch_models(now)
        # Those that gave way, perhaps to some that have another worker now.
        while self.sessions.are_waiting and self._dispatch_sessions(now):
            self._dispatch_models(now)

    def _dispatch_models(self, now: float) -> None:
        workers = self._workers
        waiting: list[Model] = []  # for a worker that has their modules
        while workers.have_room and (model := self._schedule.first(is_idle=workers.has_idle)) is not None:
            if model.is_at_most:
                worker = self._roomy_seat(model)
                if worker is None:
                    self._schedule.hold(model)
                    continue
            else:
                worker = self._worker_for(model, model.queue.first())
            if worker is None and not workers.are_outdated:
                break
            if worker is None:
                self._schedule.drop(model)
                waiting.append(model)
                continue
            request = model.queue.first()
            if not request.submit.session or self._has_session(worker, model, request, now):
                self._hand(worker, model, request, now)
        for model in waiting:
            self._schedule.note(model, now)

    def _worker_for(self, model: Model, request: Request) -> Worker | None:
        """Return the worker that should run a request: one that is awake, if it is quick and can be taken back."""
        workers, generation = self._workers, model.current.generation
        if model.is_quick and request.may_run_twice and not model.is_below_least:
            return workers.awake(generation) or workers.pick(generation)
        return workers.pick(generation)

    def _roomy_seat(self, model: Model) -> Worker | None:
        """Return a worker that runs a model already, and may be handed more."""
        found = (self._workers.get(child) for child in model.seats)
        return next((one for one in found if one is not None and one.has_room), None)

    def _has_session(self, worker: Worker, model: Model, request: Request, now: float) -> bool:
        """Return whether a worker may have a request of a session now; else it waits for who has the session.

        It does so, too, behind what waits for that worker already: requests of a session run in their order.
        """
        child = self.sessions.worker_of(request)
        if child and (child != worker.child or self.sessions.has_waiting(child)):
            other = self._workers.get(child)
            if other is None or other.is_outdated:
                self.end_sessions(child, now)
            else:
                model.queue.take(request, 0.0, now)
                self.sessions.wait(request, child, now)
                self._schedule.note(model, now)
            return False
        self.sessions.bind(request, worker.child)
        return True

    def _dispatch_sessions(self, now: float) -> bool:
        """Hand what waits for one certain worker to that; true if some of it need not wait for it any more."""
        workers, has_moved = self._workers, False
        for child in self.sessions.able():
            worker, queue = workers.get(child), self.sessions.queue_of(child)
            request = queue.first()
            model = self._library.models[request.submit.model]
            is_fit = worker is not None and not worker.is_outdated and model.current.is_ready
            if worker is None or not is_fit or worker.generation < model.current.generation:
                self.end_sessions(child, now)
                has_moved = True
            elif worker.life.state != "idle" and not worker.has_room:
                self.sessions.is_full(child)
            elif worker.life.state == "idle" and not workers.has_idle:  # no more may run at once
                continue
            elif not (self.sessions.gives_way(child) and self._schedule.first(is_idle=True) is not None):
                self.sessions.bind(request, child)
                self._hand(worker, model, request, now)
        return has_moved

    def end_sessions(self, child: int, now: float) -> None:
        """A worker is gone, or soon will be: its sessions begin anew elsewhere."""
        for request in reversed(self.sessions.end(child)):
            model = self._library.models[request.submit.model]
            self._schedule.add(model, request, now, in_front=True)
            if not model.current.is_ready:  # what the worker had is no more
                self._library.need_answers(model)

    def _hand(self, worker: Worker, model: Model, first: Request, now: float) -> None:
        """Hand a worker a request, and those that may run with it as a batch."""
        queue = first.queue
        assert queue is not None, "what is handed out waits somewhere"
        expected_s = model.expected(first.calls) or 0.0
        queue.take(first, expected_s, now)
        requests, calls = [first], first.calls
        if model.current.terms.max_batch > 1 and _may_join(first):
            limit = model.batching.limit
            body_bytes, buffers = len(first.submit.body), len(first.buffers)
            while calls < limit and queue.calls:
                following = queue.first()
                calls += following.calls
                body_bytes += len(following.submit.body)
                buffers += len(following.buffers)
                is_small_enough = calls <= limit and body_bytes <= _MOST_BODY_BYTES and buffers <= MAX_BUFFERS
                if not is_small_enough or not _are_alike(first, following):
                    calls -= following.calls
                    break
                queue.take(following, expected_s, now)
                requests.append(following)
        self._attempts.begin(worker, model, tuple(requests), calls)
        self._schedule.note(model, now)


def _are_alike(first: Request, following: Request) -> bool:
    """Whether a request may run in a batch with one that may."""
    one, other = first.submit, following.submit
    return one.method == other.method and one.model == other.model and _may_join(following)


def _may_join(request: Request) -> bool:
    """Whether a request may run in a batch with others."""
    return not (request.is_stream or request.submit.session or request.is_suspect)
