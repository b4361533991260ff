"""Calls under way: from arguments as they come to results, in order or as they come.

Calls are sent in packs, see `packs`, where nobody can tell: not those with a deadline, a session or large arrays,
nor those that may not be tried again, because a pack may end with its worker.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from ..protocol.errors import PoolError
from ..protocol.lists import ItemEncoder, join, one_argument
from ..protocol.tensors import Buffer
from ..protocol.values import encode
from .checks import check_count
from .connection import Connection
from .options import RequestOptions
from .packs import KEPT_S, PACK_BYTES, Pack, PackSize

#: Messages that are sent without a look at what has been answered.
_SENT_UNREAD: Final = 16


class Flow:
    """The calls of one iteration over arguments, their packs, and how large those are to be.

    It belongs to whoever iterates; only a pack that is being filled may be sent by another thread.

    Args:
        connection, options: where the calls go, and how.
        buffersize: how many may be under way before their results are taken; None: as many as keep workers busy.
        may_look_ahead: without a buffersize, have more under way for quick models.
        in_order: whether their results are taken in order, or as they come.

    Attributes:
        condition: notified when a pack is done.
        under_way: calls that were added, and whose results were not taken.

    Raises:
        ConfigError: buffersize is no positive whole number.
    """

    def __init__(
        self,
        connection: Connection,
        options: RequestOptions,
        buffersize: int | None = None,
        *,
        may_look_ahead: bool,
        in_order: bool = True,
    ) -> None:
        if buffersize is not None:
            check_count("buffersize", buffersize, 1, 1 << 31)
        self._connection = connection
        self._options = options
        self._key = (options.model, options.method)
        self._encoder = ItemEncoder()
        self._size = PackSize(
            connection.welcome.workers,
            buffersize,
            may_pack=options.may_be_packed and not connection.expects_large(self._key),
            may_look_ahead=may_look_ahead,
        )
        self.under_way = 0
        self._count = 0  # of all calls so far
        self._unread = 0  # messages that were sent since something was read
        self.condition = threading.Condition()
        self._packs: deque[Pack] = deque()  # in order; those whose results are not taken
        self._done: deque[Pack] | None = None if in_order else deque()  # those of them that are done, as they came
        self._tell: Callable[[], object] | None = None
        self._lock = threading.Lock()  # for the pack that is being filled
        self._filling: Pack | None = None
        self._filled_bytes = 0
        self._postman: threading.Thread | None = None
        self._closing = threading.Event()

    def __repr__(self) -> str:
        return f"<Flow of {self._options.model}: {self.under_way} under way, {self._size}>"

    @property
    def has_room(self) -> bool:
        """Whether another call may be added."""
        return self.under_way < self._size.window

    @property
    def is_empty(self) -> bool:
        """Whether there is no call whose result was not taken."""
        return not self._packs

    # --- calls in -------------------------------------------------------------------------------------------

    def fill(self, source: Iterator[Any]) -> None:
        """Add calls as long as there are arguments, and room."""
        while self.under_way < self._size.window:
            for x in source:
                self.add(x)
                break
            else:
                self.flush()
                return

    def add(self, x: Any) -> None:
        """Add a call with one argument; if that cannot travel, that is what becomes of the call."""
        try:
            body, buffers = self._encoder.encode(x, name="[args, kwargs][0][0]")
        except PoolError as error:
            self.add_failed(error)
            return
        if self._size.calls == 1 or buffers:
            self._send_alone(one_argument(body), buffers)
            return
        with self._lock:
            pack = self._filling
            if pack is None:
                pack = self._filling = self._new_pack()
            pack.bodies.append(body)
            self._count += 1
            self.under_way += 1
            self._filled_bytes += len(body)
            if len(pack.bodies) >= self._size.calls or self._filled_bytes >= PACK_BYTES:
                self._send_filled()
            elif self._postman is None:
                self._postman = threading.Thread(target=self._carry, name="onecopy-postman", daemon=True)
                self._postman.start()

    def add_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Add a call with any arguments; if they cannot travel, that is what becomes of the call."""
        if len(args) == 1 and not kwargs:
            self.add(args[0])
            return
        try:
            body, buffers = encode([list(args), kwargs], name="[args, kwargs]")
        except PoolError as error:
            self.add_failed(error)
        else:
            self._send_alone(body, buffers)

    def add_failed(self, error: PoolError) -> None:
        """Add what was to be a call, and why it is none."""
        self.flush()
        self._new_pack_of(b"").failed(error)

    def flush(self) -> None:
        """Send what waits for its pack to be full."""
        if self._filling is not None:
            with self._lock:
                self._send_filled()

    def flush_if_hungry(self) -> None:
        """Send it if a worker could be without work: then it is not worth waiting for more."""
        if self._filling is None:
            return
        unanswered = 0
        for pack in reversed(self._packs):
            unanswered += pack is not self._filling and not pack.done()
            if unanswered >= self._connection.welcome.workers:
                return
        self.flush()

    def close(self) -> None:
        """Give up every call whose result was not taken."""
        self._closing.set()
        with self._lock:
            self._filling = None
        for pack in self._packs:
            if pack.number and not pack.done():  # 0: it was not even sent
                self._connection.forget(pack.number)

    # --- results out ----------------------------------------------------------------------------------------

    def done(self) -> bool:
        """Whether `take` may be called: a pack is done, or there is none."""
        if self._done is not None:
            return bool(self._done) or not self._packs
        return not self._packs or self._packs[0].done()

    def take(self) -> Pack | None:
        """Return the next pack that is done; None if there is none after all, and something must be waited for."""
        if not self._packs:
            return None
        pack = self._packs[0] if self._done is None else self._done.popleft()
        self._packs.remove(pack)  # it is the first, or one of the first
        if pack.says_nothing:
            self._try_one_by_one(pack)
            return None
        return pack

    def next_pack(self) -> Pack | None:
        """Wait for the next pack; None if no call is under way."""
        while self._packs:
            if not self.done():
                self.flush_if_hungry()
                self._connection.wait(self)
            pack = self.take()
            if pack is not None:
                return pack
        return None

    def settled(self, pack: Pack) -> None:
        """Note that a pack is done, in whichever thread notices it."""
        self._size.learn(pack)
        with self.condition:
            if self._done is not None:
                self._done.append(pack)
            self.condition.notify_all()
        if self._tell is not None:
            self._tell()

    def notify_with(self, tell: Callable[[], object]) -> None:
        """Have a function called besides when a pack is done, because no thread waits for that."""
        self._tell = tell

    # --- packs ----------------------------------------------------------------------------------------------

    def _new_pack(self) -> Pack:
        pack = Pack(self._count, self.condition, self.settled)
        self._packs.append(pack)
        return pack

    def _new_pack_of(self, body: bytes) -> Pack:
        pack = self._new_pack()
        pack.bodies.append(body)
        self._count += 1
        self.under_way += 1
        return pack

    def _send_alone(self, body: bytes, buffers: Sequence[Buffer]) -> None:
        """Send a call of its own; ``body`` encodes ``[args, kwargs]``."""
        self.flush()
        self._send(self._new_pack_of(body), body, buffers, 0)

    def _send_filled(self) -> None:
        """Send the pack that is being filled, if there is one."""
        pack, self._filling, self._filled_bytes = self._filling, None, 0
        if pack is None:
            return
        if len(pack.bodies) == 1:
            self._send(pack, one_argument(pack.bodies[0]), (), 0)
        else:
            self._send(pack, join(pack.bodies), (), len(pack.bodies))

    def _send(self, pack: Pack, body: bytes, buffers: Sequence[Buffer], count: int) -> None:
        self._size.sent(count or 1)
        pack.key = None if count else self._key
        try:
            self._connection.submit(pack, self._options, body, buffers, count=count)
        except PoolError as error:
            pack.failed(error)
        if self._tell is not None:
            self._connection.keep_receiving(urgent=True)  # nobody waits in a thread
            return
        self._unread += 1
        if self._unread >= _SENT_UNREAD:  # there is something to be learned for the next ones
            self._unread = 0
            self._connection.read_once()

    def _try_one_by_one(self, pack: Pack) -> None:
        """Send the calls of a pack again, each alone."""
        for offset, body in enumerate(pack.bodies):
            single = Pack(pack.first + offset, self.condition, self.settled)
            single.bodies.append(body)
            self._packs.insert(offset, single)  # where they were, if order matters
            self._send(single, one_argument(body), (), 0)

    def _carry(self) -> None:
        """Be the postman: send what waits while the source of arguments makes whoever iterates wait."""
        seen: Pack | None = None
        while not self._closing.wait(KEPT_S):
            with self._lock:
                if self._filling is None:
                    self._postman = None
                    return
                if self._filling is seen:
                    self._send_filled()
                seen = self._filling
