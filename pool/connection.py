"""One client's conversation with a supervisor: what was asked, and whom the answers are for.

All threads of the process share it. Who reads is decided in `receiving`; how, in `link`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from ..protocol.errors import InvalidRequest, PoolError, SupervisorLost, from_record
from ..protocol.messages import (
    Cancel,
    Continue,
    Failed,
    Goodbye,
    Hello,
    Item,
    Late,
    Message,
    Query,
    Rejected,
    Released,
    Reply,
    Submit,
    Welcome,
)
from ..protocol.values import Buffer, decode
from .environment import cores
from .forks import tell_of_forks
from .futures import Expected, PoolFuture
from .gatherings import Gatherings
from .options import RequestOptions
from .parcels import MethodKey, Parcels
from .reaching import reach
from .receiving import Receiver, Waitable
from .spinning import CLIENT_SPIN_CALLS

_HELLO_S: Final = 10.0
#: A supervisor that does not answer for so long is not waited for.
_FLUSH_S: Final = 5.0
_SEND_RETRY_S: Final = 0.001
#: How long the oldest answer is waited for when any would do.
_LOOK_AGAIN_S: Final = 0.01


class Connection:
    """A client.

    Args:
        endpoint: ``ipc://FOLDER`` of a local supervisor, or a tcp endpoint on which one listens.
        keys: over tcp, the file with this client's keys; default: ``$ONECOPY_KEYS``, or none.

    Attributes:
        is_forked: whether this process is a fork of the one that made it, which alone can use it.
        gatherings: of calls that may travel together.

    Raises:
        SupervisorLost: nobody serves there.
        ConfigError: the keys cannot be read, or there is no use for them.
        InvalidRequest: the endpoint is none, or the supervisor does not want this client.
    """

    def __init__(self, endpoint: str, keys: str | None = None) -> None:
        self.endpoint = endpoint
        self._expected: dict[int, Expected] = {}
        self._numbers = itertools.count(1)
        self._end: PoolError | None = None  # why this connection is of no use any more
        self._reader = 0  # the thread that handles what has arrived
        self.is_forked = False
        self._is_exiting = False
        self._has_cores = cores() > 1  # else whoever is waited for could not run meanwhile
        self._receiver = Receiver(
            self._read, self._sleep, is_due=self._is_due, is_over=lambda: self._end is not None
        )
        self._handlers: dict[type[Message], Callable[[Any, list[bytes]], None]] = {
            Reply: self._handle_reply,
            Item: self._handle_item,
            Failed: self._handle_failed,
            Released: self._handle_released,
            Late: self._handle_late,
            Rejected: lambda message, _: self._fail_all(from_record(message.error)),
        }
        self.gatherings = Gatherings(self)
        way = reach(endpoint, keys, self._may_spin, lambda: self._receiver.is_active)
        self.directory, self._link, self._control, token = way
        self._parcels = Parcels(way.control) if way.control is not None else None
        try:
            self.welcome = self._say_hello(token)
        except BaseException:
            self.close()
            raise
        tell_of_forks(self)

    def __repr__(self) -> str:
        state = f"over: {self._end}" if self._end else f"{len(self._expected)} unanswered"
        return f"<Connection {self.endpoint} {state}>"

    # --- asking ---------------------------------------------------------------------------------------------

    def submit(
        self,
        expected: Expected,
        options: RequestOptions,
        body: bytes,
        buffers: Sequence[Buffer] = (),
        *,
        count: int = 0,
        credit: int = 0,
    ) -> None:
        """Send a request; ``body`` to ``credit`` are as in `Submit`.

        Raises:
            SupervisorLost: the pool is gone.
        """
        self.check_usable()
        self.post(expected, options, body, buffers, count=count, credit=credit)

    def post(
        self,
        expected: Expected,
        options: RequestOptions,
        body: bytes,
        buffers: Sequence[Buffer] = (),
        *,
        count: int = 0,
        credit: int = 0,
    ) -> None:
        """Send what was accepted before, also when the interpreter exits; arguments and errors as in `submit`."""
        number = expected.number = next(self._numbers)
        parcels = self._parcels
        places: list[Any] = []
        reply: list[int] = []
        if parcels is not None and (buffers or parcels.expects(expected.key)):
            places, reply, buffers = parcels.send(number, expected.key, buffers)
        self._expected[number] = expected
        message = Submit(
            number, options.model, options.method, options.timeout_s or 0.0, options.retries, options.priority,
            options.session, count, credit, body, places, reply,
        )  # fmt: skip
        try:
            self._send(message, buffers)
        except InvalidRequest:  # it cannot travel
            self._expected.pop(number, None)
            if parcels is not None:
                parcels.ended(number)
            raise

    def expects_large(self, key: MethodKey) -> bool:
        """Whether results of this model and method have had large arrays lately."""
        return self._parcels is not None and self._parcels.expects(key)

    def let_continue(self, number: int, items: int) -> None:
        """Let so many more items of a stream come."""
        if number in self._expected and self._end is None:
            with contextlib.suppress(PoolError):
                self._send(Continue(number, items), ())

    def query(self, topic: str) -> Any:
        """Ask for models, memory or status, and wait for the answer."""
        self.check_usable()
        return self._ask(topic).result()

    def flush(self) -> None:
        """Return when the supervisor has everything that was submitted so far, or is lost."""
        self.gatherings.flush()
        if self._end is not None:
            return
        with contextlib.suppress(PoolError):
            future = self._ask("models")
            with contextlib.suppress(PoolError, TimeoutError):
                future.result(_FLUSH_S)
            future.cancel()

    def forget(self, number: int, *, kill: bool = False) -> bool:
        """Give up an answer; with ``kill`` even at the price of the worker that is at it. False: it is not due."""
        if not self._give_up(number, kill=kill):
            return False
        self._await_release(number)
        if self._link.has_unsent:
            self.keep_receiving()  # nobody may be waiting for anything else
        return True

    def abandon(self, number: int) -> None:
        """Give up an answer that nobody can ask for any more. This may be called while garbage is collected."""
        self._give_up(number, kill=False)

    def before_shutdown(self) -> None:
        """Give up what nobody but this thread could bring to its end."""
        for expected in list(self._expected.values()):
            expected.before_shutdown()

    def before_exit(self) -> None:
        """Take no more requests, and give up every stream, because the interpreter exits."""
        self.gatherings.flush()
        self._is_exiting = True
        for expected in list(self._expected.values()):
            expected.before_shutdown(is_exit=True)

    def wait_for_all(self) -> None:
        """Return when every answer is there, or the supervisor is lost."""
        while (self._expected or self.gatherings) and self._end is None:
            self.gatherings.flush()
            for expected in list(self._expected.values()):
                self.wait(expected)

    def wait_until_below(self, count: int) -> None:
        """Return when fewer answers than this are due, or the supervisor is lost."""
        while len(self._expected) >= count and self._end is None:
            for oldest in list(self._expected.values())[:1]:
                self.wait(oldest, _LOOK_AGAIN_S)

    @property
    def unanswered(self) -> int:
        """How many answers are due; those to calls that travel together come as one."""
        return len(self._expected)

    @property
    def fallbacks(self) -> list[str]:
        """What this client does in a second-best way, and why."""
        refusal = self._parcels.mailboxes.refusal if self._parcels is not None else ""
        return [f"large arrays of this client travel through sockets: {refusal}"] if refusal else []

    def check_usable(self) -> None:
        """Raise why this connection cannot be used, if it cannot."""
        if self.is_forked:
            raise InvalidRequest(
                "this Pool was made before a fork, in the parent process; open another here: "
                f"Pool.connect({self.endpoint!r})"
            )
        if self._end is not None:
            raise self._end
        if self._is_exiting:
            raise SupervisorLost("the interpreter exits, and this Pool takes no more requests")

    def _ask(self, topic: str) -> PoolFuture:
        future = PoolFuture(self, (topic, ""))
        future.number = next(self._numbers)
        self._expected[future.number] = future
        self._send(Query(future.number, topic), ())
        return future

    def _give_up(self, number: int, *, kill: bool) -> bool:
        if self._expected.pop(number, None) is None or self._end is not None or self.is_forked:
            return False
        self._link.leave(Cancel(number, kill))
        return True

    def _send(self, message: Message, buffers: Sequence[Buffer]) -> None:
        while True:
            if self._end is not None:
                self._expected.clear()
                raise self._end
            if self._link.send(message, buffers):
                return
            # The supervisor takes no more as long as we take no answers.
            if self._reader == threading.get_ident():  # a callback sends, or what has waited goes out
                self._link.read()
            else:
                self._receiver.read_once()
            time.sleep(_SEND_RETRY_S)

    # --- receiving ------------------------------------------------------------------------------------------

    def wait(self, waitable: Waitable, timeout: float | None = None) -> None:
        """Return when the waitable is done, or after ``timeout`` seconds."""
        self._receiver.wait(waitable, timeout)

    def read_once(self) -> None:
        """Take what has arrived, unless another thread does."""
        self._receiver.read_once()

    def keep_receiving(self, *, urgent: bool = False) -> None:
        """See to it that answers are received although nobody waits for them; within 2 ms, or at once."""
        self._receiver.keep_receiving(urgent=urgent)

    def _may_spin(self) -> bool:
        if not self._has_cores or len(self._expected) != 1:
            return False
        return all(one.calls <= CLIENT_SPIN_CALLS for one in tuple(self._expected.values()))

    def _sleep(self, timeout_ms: float | None) -> None:
        loss = self._link.sleep(self.gatherings.sleep_ms(timeout_ms))
        if loss:
            self._read()  # what it had still sent
            who = "the supervisor at" if loss == "gone" else "the connection to"
            self._fail_all(SupervisorLost(f"{who} {self.endpoint} is {loss}"))

    def _read(self) -> bool:
        """Take what has arrived; return whether there may be more."""
        self._reader = threading.get_ident()
        try:
            has_more = self._link.read()
            while (arrived := self._link.take()) is not None:
                message, buffers = arrived
                handler = self._handlers.get(type(message))
                if handler is not None:
                    handler(message, buffers)
            self.gatherings.look_after()
        except PoolError as error:  # what came is no message: nothing that follows could be trusted
            self._fail_all(error)
            return False
        finally:
            self._reader = 0
        return has_more

    def _handle_reply(self, reply: Reply, buffers: Sequence[Buffer]) -> None:
        expected, parcels = self._expected.pop(reply.request, None), self._parcels
        if expected is None:
            if parcels is not None:
                parcels.ended(reply.request)
            return
        try:
            if parcels is not None and (buffers or reply.request in parcels):
                buffers = parcels.received(reply.request, expected.key, reply.places, buffers)
            value = decode(reply.body, buffers)
        except PoolError as error:
            expected.failed(error)
        else:
            expected.answered(reply, value, buffers)

    def _handle_item(self, item: Item, buffers: list[bytes]) -> None:
        expected = self._expected.get(item.request)
        if expected is not None:
            expected.yielded(item.body, buffers)

    def _handle_failed(self, failed: Failed, _buffers: list[bytes]) -> None:
        expected = self._expected.pop(failed.request, None)
        self._await_release(failed.request)
        if expected is not None:
            expected.failed(from_record(failed.error))

    def _handle_released(self, released: Released, _buffers: list[bytes]) -> None:
        if self._parcels is not None:
            self._parcels.ended(released.request)

    def _handle_late(self, late: Late, _buffers: list[bytes]) -> None:
        expected = self._expected.get(late.request)
        if expected is not None:
            expected.late(late.call)

    def _is_due(self) -> bool:
        """Whether something is still to come: answers, or memory."""
        return bool(self._expected or self.gatherings or self._parcels or self._link.has_unsent)

    def _await_release(self, number: int) -> None:
        """Go on receiving until a request that was given up or has failed is in no worker's hands any more."""
        if self._parcels is not None and number in self._parcels:
            self.keep_receiving()

    def _fail_all(self, error: PoolError) -> None:
        """End the connection: every answer that is due becomes this error."""
        self._end = self._end or error
        while self._expected:
            with contextlib.suppress(KeyError):
                self._expected.popitem()[1].failed(error)
        self.gatherings.flush()  # which fails as well
        self._receiver.wake_up()

    # --- beginning and end ----------------------------------------------------------------------------------

    def _say_hello(self, token: bytes) -> Welcome:
        answer = self._link.greet(Hello(token, os.getpid()), _HELLO_S)
        if answer is None:
            raise SupervisorLost(f"nobody answers at {self.endpoint}; start one with `onecopy serve pool.toml`")
        if isinstance(answer, Rejected):
            raise from_record(answer.error)
        if not isinstance(answer, Welcome):
            raise InvalidRequest(f"{self.endpoint} answers with {type(answer).__name__}: this is no supervisor")
        return answer

    def mark_forked(self) -> None:
        """Note that this process is a fork of the one that made the connection."""
        self.is_forked = True

    def prepare_fork(self) -> None:
        """Leave alone what a child that is about to be forked may go on reading."""
        if self._parcels is not None:
            self._parcels.mailboxes.retire()

    def close(self) -> None:
        """Say goodbye; answers that are still due become `SupervisorLost`. May be called again."""
        if self.is_forked:
            return
        self._fail_all(SupervisorLost("this Pool was closed"))
        self._link.wake_up()
        self._receiver.join()
        if self._control is not None and self._parcels is not None:
            self._control.shut()  # a thread may be asking for memory
            self._parcels.mailboxes.close()
        with self._receiver.role:
            self._link.close(Goodbye())
            if self._control is not None:
                self._control.close()
