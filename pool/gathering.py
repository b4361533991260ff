"""Calls that are submitted one by one, and travel together where nobody can tell.

A message costs far more than a short run does. So where there is enough under way, further calls of a quick model
wait here for the next answer, and then travel as one message; `division` tells how many. What waits is sent by
whoever receives, with the answers that keep coming: Nagle's algorithm (RFC 896), for calls.

The calls of a message are sent anew, each alone, if its worker has died or one of them is given up; and all but
one, if that takes so long that the others had better not wait for it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ..protocol.errors import PoolError
from ..protocol.lists import join, one_argument
from ..protocol.messages import Reply
from ..protocol.tensors import Buffer
from ..protocol.values import encode
from .division import GAP_S, ClosedLoop, Division
from .futures import PoolFuture
from .options import RequestOptions
from .packs import PACK_BYTES, Pace, Pack

if TYPE_CHECKING:
    from .connection import Connection

#: No call waits here for longer, whatever becomes of those that are under way.
WAIT_S: Final = 0.005


class Bundle(Pack):
    """Calls that travel together, each with a future of its own.

    Args:
        calls: the future of each, and the encoded argument.
        gathering: told when it is done.

    Attributes:
        futures: of the calls; each of which is in this bundle yet if it says so.
    """

    __slots__ = ("_gathering", "futures")

    def __init__(self, calls: Sequence[tuple[PoolFuture, bytes]], gathering: Gathering) -> None:
        super().__init__(0, gathering.condition, gathering.settled)
        self._gathering = gathering
        self.futures = [future for future, _ in calls]
        self.bodies = [body for _, body in calls]

    def late(self, call: int) -> None:
        """One of the calls takes far longer than it should."""
        self._gathering.late(self, call)

    def settled(self) -> list[tuple[PoolFuture, Any]]:
        """Return what became of the calls: their results, and errors of those whose answers come with this one."""
        outcomes = zip(self.futures, self.outcomes(), strict=True)
        return [one for one in outcomes if one[0].bundle is self or not isinstance(one[1], BaseException)]

    def wanted(self) -> list[tuple[PoolFuture, bytes]]:
        """Return the calls whose answers come with this one."""
        calls = zip(self.futures, self.bodies, strict=True)
        return [(future, body) for future, body in calls if future.bundle is self and not future.done()]


class Gathering:
    """The calls of one model and method, submitted with the same options.

    Any thread may use it. The lock is never held while something is sent or anybody is told: whoever receives
    needs it, too.

    Args:
        connection, options: where the calls go, and how.
        spare_cores: how many cores are left for workers.
        note_waiting: called with it when it is to be looked after.
        clock: tells the time in seconds.

    Attributes:
        condition: notified when a message is answered.
    """

    def __init__(
        self,
        connection: Connection,
        options: RequestOptions,
        spare_cores: int,
        note_waiting: Callable[[Gathering], None],
        clock: Callable[[], float],
    ) -> None:
        self._connection = connection
        self._options = options
        self._note_waiting = note_waiting
        self._clock = clock
        self._key = (options.model, options.method)
        self._pace = Pace()
        self._loop = ClosedLoop(clock)
        self._division = Division(connection.welcome.workers, spare_cores, self._loop, self._pace)
        self.condition = threading.Condition()
        self._lock = threading.Lock()  # for what waits, and for the loop
        self._waiting: list[tuple[PoolFuture, bytes]] = []
        self._waiting_bytes = 0
        self._waiting_since = 0.0
        # Messages under way. As keys, because those can be added and taken out by any thread at once.
        self._alone: dict[PoolFuture, None] = {}
        self._bundles: dict[Bundle, None] = {}

    def __repr__(self) -> str:
        state = f"{len(self._waiting)} wait for {len(self._alone)} calls and {len(self._bundles)} bundles"
        return f"<Gathering of {self._options.model}: {state}, {self._pace}>"

    @property
    def has_waiting(self) -> bool:
        """Whether calls wait."""
        return bool(self._waiting)

    @property
    def may_have_waiting(self) -> bool:
        """Whether calls wait, or might before anything is answered."""
        return bool(self._waiting or self._bundles) or (self._pace.calls > 1 and bool(self._alone))

    @property
    def wait_s(self) -> float:
        """How long calls wait here at most."""
        return GAP_S if self._loop.to_come or not self._messages else WAIT_S

    # --- calls in -------------------------------------------------------------------------------------------

    def submit(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> PoolFuture:
        """Send a call, now or with others; return its future. Raises as `send`."""
        future = self.future()
        self.send(future, args, kwargs)
        return future

    def future(self) -> PoolFuture:
        """Return the future of a call that is still to be sent."""
        return PoolFuture(self._connection, self._key, self)

    def send(self, future: PoolFuture, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Send a call, now or with others.

        Raises:
            InvalidRequest: an argument cannot travel.
            SupervisorLost: the pool is gone.
        """
        self._connection.check_usable()
        with self._lock:
            self._loop.came()
        if kwargs or len(args) != 1:
            self._send_alone(future, *encode([list(args), dict(kwargs)], name="[args, kwargs]"))
            return
        body, buffers = encode(args[0], name="[args, kwargs][0][0]")
        can_wait = self._may_wait and not buffers and len(body) <= PACK_BYTES
        if can_wait and (self._waiting or self._least(1) > 1):
            self._add(future, body)
        else:
            self._send_alone(future, one_argument(body), buffers)

    def flush(self) -> None:
        """Send all that waits."""
        while self._waiting:
            self._send(len(self._waiting))

    def look_after(self, now: float) -> None:
        """Send what waits if a worker could be without work, or it has waited for long; by whoever receives."""
        while self._waiting and len(self._waiting) >= self._least(len(self._waiting)):
            room = self._division.room(self._messages, self._unanswered + len(self._waiting))
            self._send(-(-len(self._waiting) // room))
        if self._waiting and now - self._waiting_since > WAIT_S:
            self.flush()

    @property
    def _messages(self) -> int:
        """How many are under way."""
        return len(self._alone) + len(self._bundles)

    @property
    def _unanswered(self) -> int:
        """How many calls are in those."""
        return len(self._alone) + sum([len(one.bodies) for one in tuple(self._bundles)])

    def _least(self, calls: int) -> int:
        """Return how many calls the next message is to have at least, where so many could be sent."""
        return self._division.least(self._messages, self._unanswered + calls)

    @property
    def _may_wait(self) -> bool:
        is_quick = self._pace.calls > 1 and self._options.may_be_packed
        return is_quick and not self._connection.expects_large(self._key)

    def _add(self, future: PoolFuture, body: bytes) -> None:
        with self._lock:
            if not self._waiting:
                self._waiting_since = self._clock()
            self._waiting.append((future, body))
            self._waiting_bytes += len(body)
        self._note_waiting(self)  # after it is so, lest it be taken for empty
        if self._waiting_bytes >= PACK_BYTES:
            self._send(self._pace.calls)
        elif len(self._waiting) >= self._least(
            len(self._waiting)
        ):  # or what it was to wait for has come meanwhile
            self._send(len(self._waiting))

    # --- messages out ---------------------------------------------------------------------------------------

    def _send_alone(self, future: PoolFuture, body: bytes, buffers: Sequence[Buffer] = ()) -> None:
        """Send a call of its own; ``body`` encodes ``[args, kwargs]``."""
        if self._waiting:
            self.flush()
        self._post(future, body, buffers)

    def _post(self, future: PoolFuture, body: bytes, buffers: Sequence[Buffer] = ()) -> None:
        self._alone[future] = None
        try:
            self._connection.post(future, self._options, body, buffers)
        except BaseException:
            self._alone.pop(future, None)
            raise

    def _send(self, count: int) -> None:
        """Send up to so many of the calls that wait, as one message."""
        calls: list[tuple[PoolFuture, bytes]] = []
        try:
            with self._lock:
                calls.extend(self._taken(min(count, self._pace.calls)))
            self._send_as_one([one for one in calls if not one[0].done()])
        except BaseException:  # a signal handler raises, and whoever waits for these calls knows nothing of it
            self._wait_again(calls)
            raise

    def _wait_again(self, calls: list[tuple[PoolFuture, bytes]]) -> None:
        """Let calls wait that did before, in front of others."""
        for future, _ in calls:
            future.bundle = None
        with self._lock:
            self._waiting[:0] = calls
            self._waiting_bytes += sum(len(body) for _, body in calls)
        self._note_waiting(self)

    def _taken(self, count: int) -> list[tuple[PoolFuture, bytes]]:
        """Take out the first of the calls that wait, as many as fit into one message; with the lock."""
        sizes_bytes = itertools.accumulate(len(body) for _, body in self._waiting[:count])
        end = max(1, sum(size_bytes <= PACK_BYTES for size_bytes in sizes_bytes))
        taken = self._waiting[:end]
        del self._waiting[:end]
        self._waiting_bytes -= sum(len(body) for _, body in taken)
        return taken

    def _send_as_one(self, calls: Sequence[tuple[PoolFuture, bytes]]) -> None:
        if len(calls) < 2:
            self._send_each(calls)
            return
        bundle = Bundle(calls, self)
        for future in bundle.futures:
            future.bundle = bundle
        self._bundles[bundle] = None
        try:
            self._connection.post(bundle, self._options, join(bundle.bodies), count=len(calls))
        except PoolError as error:
            bundle.failed(error)
        except BaseException:
            self._forget(bundle)
            raise

    def _send_each(self, calls: Iterable[tuple[PoolFuture, bytes]]) -> None:
        for future, body in calls:
            future.bundle = None
            if future.done():
                continue
            try:
                self._post(future, one_argument(body))
            except PoolError as error:
                future.failed(error)

    # --- answers --------------------------------------------------------------------------------------------

    def ended(self, future: PoolFuture, reply: Reply | None) -> None:
        """A call that travelled alone has ended: it was answered, it has failed, or it was given up."""
        self._alone.pop(future, None)
        if reply is not None:
            self._was_answered(1)
            self._pace.learn(reply.seconds, 1)

    def settled(self, bundle: Pack) -> None:
        """A message of many calls is answered, or has failed."""
        assert isinstance(bundle, Bundle)
        self._bundles.pop(bundle, None)
        if bundle.error is not None or bundle.is_large:
            self._pace.disappointed()
        else:
            self._was_answered(len(bundle.bodies))
            self._pace.learn(bundle.seconds, len(bundle.bodies))
        if bundle.says_nothing:
            self._send_each(bundle.wanted())
        else:
            _deliver(bundle.settled())
        with self.condition:
            self.condition.notify_all()

    def _was_answered(self, calls: int) -> None:
        with self._lock:
            self._loop.answered(calls)

    def late(self, bundle: Bundle, call: int) -> None:
        """One call of a message takes so long that the others had better not wait for it."""
        self._pace.disappointed()
        late = bundle.futures[call] if call < len(bundle.futures) else None
        self._send_each([one for one in bundle.wanted() if one[0] is not late])

    def give_up(self, future: PoolFuture, *, kill: bool) -> None:
        """Nobody wants the answer to a call any more."""
        bundle, future.bundle = future.bundle, None
        if isinstance(bundle, Bundle):  # perhaps the others will be given up as well, so they wait for a moment
            self._forget(bundle, kill=kill)
            self._wait_again(bundle.wanted())
            self._connection.keep_receiving()
        elif future.number and self._connection.forget(future.number, kill=kill):
            self.ended(future, None)
            self.look_after(self._clock())
        # Else it waits, and is left out when its turn has come.

    def _forget(self, bundle: Bundle, *, kill: bool = False) -> None:
        self._bundles.pop(bundle, None)
        self._connection.forget(bundle.number, kill=kill)


def _deliver(outcomes: list[tuple[PoolFuture, Any]]) -> None:
    """Settle futures, all of them, even if a signal handler raises in the midst of it."""
    for place, (future, outcome) in enumerate(outcomes):
        try:
            future.bundle = None  # which refers to it
            future.settle(outcome)
        except BaseException:
            _deliver(outcomes[place:])
            raise
