"""What waits to be handed to a worker: by priority, fair between clients, each client's in its order.

::

    Queue ─┬─ level, priority 0 ───┬─ line of client A: oldest, …, newest
           │                       └─ line of client B: …
           └─ level, priority -10 ─── …

The higher level goes first, until a lower one has had no turn for a second per level of difference: so nothing
starves. Within a level the client goes first that was given least. No operation grows with the number of requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from .events import ClientKey
from .requests import Request
from .turns import Turns

#: How long a request waits for one that is a level of priority above it, at most.
AGE_S: Final = 1.0
#: Lines without requests that a level may have besides those in use, before they are cleared away.
_KEPT_LINES: Final = 64


class Line:
    """The requests of one client that wait on one level.

    Attributes:
        priority: which level that is.
        clock_s, weight: see `turns.Member`.
    """

    __slots__ = ("_turns", "clock_s", "priority", "requests", "weight")

    def __init__(self, priority: int, turns: Turns[Line]) -> None:
        self.weight = 1.0
        self.priority = priority
        self.clock_s = 0.0
        # Ordered, and one that is answered while it waits can be taken out at once.
        self.requests: OrderedDict[Request, None] = OrderedDict()
        self._turns = turns  # which forgets it when nothing waits: that would be a cycle

    def correct(self, seconds: float) -> None:
        """What it was given with its last turn has taken so much longer or, negative, shorter."""
        self._turns.correct(self, seconds)


class _Level:
    """The lines of one priority; ``served_at`` is when it had its last turn, or began to wait for one."""

    __slots__ = ("lines", "priority", "served_at", "turns")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.served_at = 0.0
        self.lines: dict[ClientKey, Line] = {}
        self.turns: Turns[Line] = Turns()

    def line_of(self, client: ClientKey) -> Line:
        line = self.lines.get(client)
        if line is None:
            if len(self.lines) > 2 * len(self.turns) + _KEPT_LINES:
                self.lines = {key: one for key, one in self.lines.items() if one.requests}
            line = self.lines[client] = Line(self.priority, self.turns)
        return line


class Queue:
    """A queue.

    Attributes:
        calls: how many calls wait; a request may stand for many.
        waiting_since: when the first of them came, or when the last turn was; if any wait.
    """

    def __init__(self) -> None:
        self._levels: dict[int, _Level] = {}
        self._waiting: dict[int, _Level] = {}  # those that have requests
        self._count = 0
        self.calls = 0
        self.waiting_since = 0.0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Request]:
        """Yield all requests, level by level and line by line."""
        for level in self._waiting.values():
            for line in level.turns:
                yield from line.requests

    def add(self, request: Request, now: float, *, in_front: bool = False) -> None:
        """Let a request wait behind the others of its client; in front of them if it has waited before."""
        priority = request.submit.priority
        level = self._waiting.get(priority)
        if level is None:
            level = self._levels.get(priority)
            if level is None:
                level = self._levels[priority] = _Level(priority)
            self._waiting[priority] = level
            level.served_at = now
        line = level.line_of(request.client)
        line.requests[request] = None
        if in_front:
            line.requests.move_to_end(request, last=False)
        level.turns.add(line)
        if not self._count:
            self.waiting_since = now
        request.queue = self
        request.line = line
        self._count += 1
        self.calls += request.calls

    def discard(self, request: Request) -> None:
        """Take a request out, wherever it is."""
        line = request.line
        assert line is not None, "it waits nowhere"
        del line.requests[request]
        request.queue = None
        self._count -= 1
        self.calls -= request.calls
        if not line.requests:
            level = self._waiting[line.priority]
            level.turns.drop(line)
            if not level.turns:
                del self._waiting[line.priority]

    def first(self) -> Request:
        """Return the request whose turn it is; there must be one."""
        if len(self._waiting) == 1:
            level = next(iter(self._waiting.values()))
        else:
            level = min(
                self._waiting.values(), key=lambda one: (one.served_at - one.priority * AGE_S, -one.priority)
            )
        line = level.turns.first()
        assert line is not None, "a level without requests waits"
        return next(iter(line.requests))

    def take(self, request: Request, seconds: float, now: float) -> None:
        """Take the first request out; it will be given so much of a worker's time."""
        line = request.line
        assert line is not None, "it waits nowhere"
        level = self._waiting[line.priority]
        level.served_at = now
        level.turns.took(line, seconds)
        self.waiting_since = now
        self.discard(request)
