"""Which model has its turn: those with something to run, by the part of the workers' time that each was given.

A model whose next batch is not full yet waits in a list of its own: an idle worker takes it at once, and a busy
one is handed it ahead of time only when it has waited long enough.
"""

from __future__ import annotations

import heapq

from .requests import Request
from .turns import Clock, Turns
from .weights import Model

_NEVER = float("inf")


class Schedule:
    """The models that have something to run."""

    def __init__(self) -> None:
        clock = Clock()
        self._ready: Turns[Model] = Turns(clock)
        self._filling: Turns[Model] = Turns(clock)
        self._due: list[tuple[float, int, Model]] = []  # a heap: when those that fill have waited long enough
        self._serial = 0
        self._claiming: dict[Model, None] = {}  # the ready ones that run on fewer workers than they should
        self._held: dict[int, dict[Model, None]] = {}  # by worker that runs them, those that wait for room there

    def __bool__(self) -> bool:
        return bool(self._ready) or bool(self._filling)

    def __contains__(self, model: object) -> bool:
        return model in self._ready or model in self._filling

    def add(self, model: Model, request: Request, now: float, *, in_front: bool = False) -> None:
        """Let a request wait for its turn; in front of others of its client if it has waited before."""
        model.queue.add(request, now, in_front=in_front)
        self.note(model, now)

    def note(self, model: Model, now: float) -> None:
        """Have a model where it belongs, as it has more or fewer requests now."""
        self._claiming.pop(model, None)
        if not model.is_runnable:
            self.drop(model)
        elif model.current.terms.max_batch > 1 and self._fills(model, now):
            self._ready.drop(model)
        else:
            if model in self._filling:
                self._filling.drop(model)
            self._ready.add(model)
            if model.is_below_least:
                self._claiming[model] = None

    def _fills(self, model: Model, now: float) -> bool:
        """Return whether a model's next batch is to wait for company; then it is where it belongs."""
        if model.queue.calls >= model.batching.limit:
            return False
        due_at = model.queue.waiting_since + model.batching.wait_s
        if due_at <= now:
            return False
        if model not in self._filling:
            self._filling.add(model)
            self._serial += 1
            heapq.heappush(self._due, (due_at, self._serial, model))
        return True

    def drop(self, model: Model) -> None:
        """A model has nothing to run."""
        self._claiming.pop(model, None)
        self._ready.drop(model)
        self._filling.drop(model)

    def hold(self, model: Model) -> None:
        """A model runs on as many workers as it may, and waits until one of these has room for more."""
        model.is_held = True
        self.drop(model)
        for child in model.seats:
            self._held.setdefault(child, {})[model] = None

    def made_room(self, child: int, now: float) -> None:
        """A worker has done with something, or is gone: those that were held wait for their turn."""
        for model in self._held.pop(child, ()):
            if model.is_held:
                model.is_held = False
                self.note(model, now)

    def first(self, *, is_idle: bool) -> Model | None:
        """Return whose turn it is with a worker that is idle, or with one that has room behind what it runs."""
        if self._claiming and is_idle:
            return next(iter(self._claiming))
        ready = self._ready.first()
        filling = self._filling.first() if is_idle and self._filling else None
        if ready is None or filling is None:
            return ready or filling
        return ready if ready.clock_s <= filling.clock_s else filling

    def took(self, model: Model, seconds: float) -> None:
        """A model has its turn, and is given so much of a worker's time."""
        (self._ready if model in self._ready else self._filling).took(model, seconds)

    def correct(self, model: Model, seconds: float) -> None:
        """A model has used more (or, negative, less) of a worker's time than it was given."""
        (self._ready if model in self._ready else self._filling).correct(model, seconds)

    def time_passed(self, now: float) -> None:
        """Let what has waited long enough be handed out."""
        while self._due and self._due[0][0] <= now:
            model = heapq.heappop(self._due)[2]
            if model in self._filling:
                self._filling.drop(model)
                self.note(model, now)

    def wake_at(self) -> float:
        """Return when `time_passed` has something to do; infinity for never."""
        while self._due and self._due[0][2] not in self._filling:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else _NEVER
