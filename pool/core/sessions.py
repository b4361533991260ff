"""Sessions: requests that go to the worker that had the session before, as long as it lives.

What waits for such a worker waits in a queue of its own, which takes turns with everybody else's for that worker.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Final, TypeAlias

from .queue import Queue
from .requests import Request

#: So many sessions are remembered; then the one that was used longest ago is forgotten, and begins anew.
MOST_SESSIONS: Final = 65_536

_Key: TypeAlias = tuple[str, str]  # model and session


class Sessions:
    """Which worker has which session, and what waits for it."""

    def __init__(self) -> None:
        self._workers: OrderedDict[_Key, int] = OrderedDict()  # the last is the most recent
        self._keys: dict[int, set[_Key]] = {}
        self._models: Counter[str] = Counter()
        self._queues: dict[int, Queue] = {}
        self._able: dict[int, None] = {}  # workers that may have room for what waits for them
        self._others_turn: set[int] = set()

    def __len__(self) -> int:
        return len(self._workers)

    def waiting(self) -> Counter[str]:
        """Return of each model how many calls wait for the workers that have their sessions."""
        calls: Counter[str] = Counter()
        for queue in self._queues.values():
            for request in queue:
                calls[request.submit.model] += request.calls
        return calls

    def has(self, model: str) -> bool:
        """Whether a worker has a session of a model."""
        return self._models[model] > 0

    def has_session(self, model: str, session: str) -> bool:
        """Whether a worker has this session."""
        return (model, session) in self._workers

    def worker_of(self, request: Request) -> int:
        """Return the worker that has the request's session; 0 for none."""
        return self._workers.get((request.submit.model, request.submit.session), 0)

    def bind(self, request: Request, child: int) -> None:
        """Note that a worker has the request's session."""
        key = (request.submit.model, request.submit.session)
        if key not in self._workers and len(self._workers) == MOST_SESSIONS:
            oldest, worker = self._workers.popitem(last=False)
            self._keys[worker].discard(oldest)
            self._count_down(oldest[0])
        self._models[key[0]] += key not in self._workers
        self._workers[key] = child
        self._workers.move_to_end(key)
        self._keys.setdefault(child, set()).add(key)

    def wait(self, request: Request, child: int, now: float) -> None:
        """Let a request wait for the worker that has its session."""
        self._queues.setdefault(child, Queue()).add(request, now)
        self._able[child] = None

    def has_waiting(self, child: int) -> bool:
        """Whether something waits for a worker."""
        return child in self._queues and self._queues[child].calls > 0

    @property
    def are_waiting(self) -> bool:
        """Whether something waits for a worker that may have room."""
        return bool(self._able)

    def queue_of(self, child: int) -> Queue:
        """Return what waits for a worker."""
        return self._queues[child]

    def became_able(self, child: int) -> None:
        """A worker has done something, and may have room."""
        if child in self._queues:
            self._able[child] = None

    def able(self) -> Iterator[int]:
        """Yield the workers that may have room for what waits for them."""
        for child in list(self._able):
            if self._queues[child].calls:
                yield child
            else:
                del self._able[child], self._queues[child]
                self._others_turn.discard(child)

    def is_full(self, child: int) -> None:
        """A worker has no room until it has done something."""
        self._able.pop(child, None)

    def gives_way(self, child: int) -> bool:
        """Return whether it is the turn of others at a worker; every second time it is."""
        if child in self._others_turn:
            self._others_turn.discard(child)
            return True
        self._others_turn.add(child)
        return False

    def end(self, child: int) -> list[Request]:
        """Forget a worker; return what waited for it, in order."""
        for key in self._keys.pop(child, ()):
            if self._workers.pop(key, None) is not None:
                self._count_down(key[0])
        self._able.pop(child, None)
        self._others_turn.discard(child)
        queue = self._queues.pop(child, None)
        if queue is None:
            return []
        waiting = list(queue)
        for request in waiting:
            queue.discard(request)
        return waiting

    def _count_down(self, model: str) -> None:
        self._models[model] -= 1
        if not self._models[model]:  # models come and go, under ever new names
            del self._models[model]
