"""Calls that travel together, and how many of them do.

What a call costs besides its run is mostly what a message costs, thrice over: here, in the supervisor and in the
worker. So calls of quick models go in packs. How many make a pack is found out from how long packs run, beginning
with one: slow models get one call per message, which any free worker can take.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from ..protocol.errors import InvalidRequest, WorkerDied, from_record
from ..protocol.messages import Reply
from ..protocol.tensors import Buffer
from .parcels import MethodKey

#: A pack that runs for less is followed by larger ones, one that runs for four times as long by smaller ones: by
#: then messages cost a small part of it.
_RUN_S: Final = 0.001
_MOST_CALLS: Final = 256
#: A pack with more bytes than this is full.
PACK_BYTES: Final = 64 << 10
#: Packs that are under way for each worker, so that each has one to run and one that waits.
PACKS_PER_WORKER: Final = 2
#: Calls that are under way for each worker, and at least, unless it is said otherwise.
_CALLS_PER_WORKER: Final = 16
_LEAST_CALLS: Final = 64
#: How far ahead is looked at most where that costs nothing.
_MOST_AHEAD: Final = 16_384
#: A run that takes longer may be the next one, too: what travels together had to wait for it.
_SLOW_S: Final = 0.05
#: So many calls must have been quick before any that are submitted one by one travel together; four times as many
#: whenever that was a mistake, so that it is rarely one where few runs among many are slow.
_LEAST_QUICK: Final = 64
_MOST_QUICK: Final = 4096
#: Of such calls no more travel together.
_MOST_GATHERED: Final = 64
#: A pack that is not full waits so long, or at most twice as long, for calls that do not come.
KEPT_S: Final = 0.01
#: Of a pack these may be due to one of its calls, or to all of them together.
_SAYS_NOTHING: Final = (WorkerDied, InvalidRequest)


class Pack:
    """Calls that travel together, or one call; and what became of them.

    Args:
        first: which of all calls the first of them is.
        condition: notified when it is done.
        tell: called with it when it is done.

    Attributes:
        bodies: the encoded argument of each call; of one that travels alone, what is sent.
        key: of the one call that travels alone: its model and method.
        results: of each call; None for one that failed.
        errors: why a call failed, by its place here.
        error: why nothing is known of any of them.
        seconds: how long they ran.
        is_large: whether there are large arrays in the results.
    """

    __slots__ = (
        "_is_done", "_tell", "bodies", "condition", "error", "errors", "first", "is_large", "key", "number",
        "results", "seconds",
    )  # fmt: skip

    def __init__(self, first: int, condition: threading.Condition, tell: Callable[[Pack], None]) -> None:
        self.condition = condition
        self._tell = tell
        self._is_done = False
        self.number = 0
        self.first = first
        self.key: MethodKey | None = None
        self.bodies: list[bytes] = []
        self.results: list[Any] = []
        self.errors: dict[int, BaseException] = {}
        self.error: BaseException | None = None
        self.seconds = 0.0
        self.is_large = False

    def __repr__(self) -> str:
        return f"<Pack of {len(self.bodies)} from {self.first}{': done' if self._is_done else ''}>"

    @property
    def says_nothing(self) -> bool:
        """Whether its failure says nothing about its single calls."""
        return len(self.bodies) > 1 and isinstance(self.error, _SAYS_NOTHING)

    @property
    def calls(self) -> int:
        """How many calls it answers."""
        return len(self.bodies)

    def done(self) -> bool:
        """Whether it is known what became of all of them."""
        return self._is_done

    def answered(self, reply: Reply, value: Any, buffers: Sequence[Buffer]) -> None:
        """Take the results."""
        self.seconds = reply.seconds
        self.is_large = bool(buffers)
        results: Any = [value] if self.key is not None else value
        if type(results) is not list or len(results) != len(self.bodies):
            self.failed(InvalidRequest(f"the answer to {len(self.bodies)} calls is not a list of as many results"))
            return
        self.results = results
        for index, record in reply.errors:
            self.errors[index] = from_record(record)
        self._settle()

    def failed(self, error: BaseException) -> None:
        """Take the reason why none of them has a result."""
        self.error = error
        self.results = [None] * len(self.bodies)
        self.errors = dict.fromkeys(range(len(self.bodies)), error)
        self._settle()

    def outcomes(self) -> Iterator[Any]:
        """Yield of each call its result, or the error that it failed with."""
        for place, result in enumerate(self.results):
            yield self.errors.get(place, result)

    def yielded(self, _body: bytes, _buffers: Sequence[Buffer]) -> None:
        """Drop an item; calls have results."""

    def late(self, call: int) -> None:
        """Wait for it: results come together."""

    def before_shutdown(self, *, is_exit: bool = False) -> None:
        """Nobody needs to read on for this to be answered."""

    def _settle(self) -> None:
        self._is_done = True
        self._tell(self)


class PackSize:
    """How many calls the next pack has, and how many may be under way.

    Args:
        workers: how many there are.
        buffersize: how many calls may be under way before their results are taken; None: enough to keep the
            workers busy.
        may_pack: whether calls may travel together at all.
        may_look_ahead: without a buffersize, have more under way for quick models.

    Attributes:
        calls: of the next pack.
        window: how many calls may be under way.
    """

    def __init__(self, workers: int, buffersize: int | None, *, may_pack: bool, may_look_ahead: bool) -> None:
        self.calls = 1
        self.window = buffersize or max(_LEAST_CALLS, _CALLS_PER_WORKER * workers)
        self._packs = PACKS_PER_WORKER * workers
        self._ahead = max(self.window, _MOST_AHEAD) if may_look_ahead and buffersize is None else self.window
        # No worker shall be without work while others have several packs.
        self._most = max(1, min(_MOST_CALLS, self._ahead // self._packs)) if may_pack else 1
        self._sent_at = time.perf_counter()
        self._pace_s = 0.0

    def __repr__(self) -> str:
        return f"<PackSize {self.calls} of {self.window}>"

    def sent(self, calls: int) -> None:
        """Note that calls were sent, to know at what pace they come."""
        now = time.perf_counter()
        self._pace_s = (now - self._sent_at) / calls
        self._sent_at = now

    def learn(self, pack: Pack) -> None:
        """Take a pack's run for an example of the next ones."""
        if pack.is_large:  # large arrays travel better alone
            self._most = self.calls = 1
        elif pack.error is not None or pack.seconds > 4 * _RUN_S:
            self.calls = max(1, self.calls // 2)
        elif pack.seconds < _RUN_S and len(pack.bodies) >= self.calls:
            calls = min(2 * self.calls, self._most)
            if calls * self._pace_s < KEPT_S / 2:  # it will be full before anybody misses it
                self.calls = calls
                self.window = max(self.window, min(2 * self._packs * calls, self._ahead))


class Pace:
    """How many calls travel together of those that are submitted one by one: as many as run within a millisecond.

    Attributes:
        calls: so many, at most.
        mean_s: how long one runs, as the mean of the latest.
    """

    def __init__(self) -> None:
        self.calls = 1
        self.mean_s = _RUN_S
        self._quick = 0
        self._wanted = _LEAST_QUICK

    def __repr__(self) -> str:
        return f"<Pace {self.calls}: {self.mean_s * 1e3:.3f} ms, {self._quick} of {self._wanted}>"

    def learn(self, seconds: float, calls: int) -> None:
        """Take for an example how long so many calls ran that travelled together, or one."""
        if seconds > _SLOW_S:
            self.disappointed()
            return
        self.mean_s += (seconds / calls - self.mean_s) / 16
        self._quick += calls
        if self._quick >= self._wanted:
            self.calls = max(1, min(_MOST_GATHERED, int(_RUN_S / max(self.mean_s, 1e-9))))

    def disappointed(self) -> None:
        """Let every call travel alone for a while."""
        if self.calls > 1:
            self._wanted = min(4 * self._wanted, _MOST_QUICK)
        self.calls = 1
        self._quick = 0
