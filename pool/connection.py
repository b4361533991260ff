"""One client's conversation with a supervisor: what was asked, and whom the answers are for.

All threads of the process share it. Who reads is decided in `receiving`; how, in `link`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
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
    Message,
    Query,
    Rejected,
    Released,
    Reply,
    Submit,
    Welcome,
)
from ..protocol.values import Buffer, decode
from .checks import ConfigError
from .control import ControlSocket, connect
from .environment import cores, default_keys
from .forks import tell_of_forks
from .futures import Expected, PoolFuture
from .keys import read_secret
from .link import Link
from .link_unix import UnixLink
from .link_zmq import ZmqLink
from .options import RequestOptions
from .parcels import MethodKey, Parcels
from .receiving import Receiver, Waitable

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

    Raises:
        SupervisorLost: nobody serves there.
        ConfigError: the keys cannot be read, or there is no use for them.
        InvalidRequest: the endpoint is none, or the supervisor does not want this client.
    """

    def __init__(self, endpoint: str, keys: str | None = None) -> None:
        self.endpoint = endpoint
        self.directory = ""
        self._expected: dict[int, Expected] = {}
        self._numbers = itertools.count(1)
        self._end: PoolError | None = None  # why this connection is of no use any more
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
            Rejected: lambda message, _: self._fail_all(from_record(message.error)),
        }
        self._control: ControlSocket | None = None
        self._parcels: Parcels | None = None
        token = b""
        if endpoint.startswith("ipc://"):
            if keys:
                raise ConfigError(f"keys are for tcp; {endpoint} knows its clients by their user")
            self.directory = endpoint.removeprefix("ipc://")
            self._control = ControlSocket(self.directory)
            token = self._control.admit()
            self._parcels = Parcels(self._control)
            try:
                self._link: Link = UnixLink(connect(self.directory), self._may_spin)
            except BaseException:
                self._control.close()
                raise
        elif endpoint.startswith("tcp://"):
            file = keys or default_keys()
            own_keys = read_secret(file, of_client=True) if file else None
            _check_reachable(endpoint)
            self._link = ZmqLink(endpoint, lambda: self._receiver.is_active, own_keys)
        else:
            raise InvalidRequest(f"endpoint {endpoint!r}: it must start with ipc:// or tcp://")
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
        if self._end is not None:
            return
        with contextlib.suppress(PoolError):
            future = self._ask("models")
            with contextlib.suppress(PoolError, TimeoutError):
                future.result(_FLUSH_S)
            future.cancel()

    def forget(self, number: int, *, kill: bool = False) -> None:
        """Give up an answer; with ``kill`` even at the price of the worker that is at it."""
        if self._give_up(number, kill=kill):
            self._await_release(number)
            if self._link.has_unsent:
                self.keep_receiving()  # nobody may be waiting for anything else

    def abandon(self, number: int) -> None:
        """Give up an answer that nobody can ask for any more. This may be called while garbage is collected."""
        self._give_up(number, kill=False)

    def before_shutdown(self) -> None:
        """Give up what nobody but this thread could bring to its end."""
        for expected in list(self._expected.values()):
            expected.before_shutdown()

    def before_exit(self) -> None:
        """Take no more requests, and give up every stream, because the interpreter exits."""
        self._is_exiting = True
        for expected in list(self._expected.values()):
            expected.before_shutdown(is_exit=True)

    def wait_for_all(self) -> None:
        """Return when every answer is there, or the supervisor is lost."""
        while self._expected and self._end is None:
            for expected in list(self._expected.values()):
                self.wait(expected)

    def wait_until_below(self, count: int) -> None:
        """Return when fewer answers than this are due, or the supervisor is lost."""
        while len(self._expected) >= count and self._end is None:
            for oldest in list(self._expected.values())[:1]:
                self.wait(oldest, _LOOK_AGAIN_S)

    @property
    def unanswered(self) -> int:
        """How many answers are due."""
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
            self._receiver.read_once()  # the supervisor takes no more as long as we take no answers
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
        return self._has_cores and len(self._expected) == 1

    def _sleep(self, timeout_ms: float | None) -> None:
        loss = self._link.sleep(timeout_ms)
        if loss:
            self._read()  # what it had still sent
            who = "the supervisor at" if loss == "gone" else "the connection to"
            self._fail_all(SupervisorLost(f"{who} {self.endpoint} is {loss}"))

    def _read(self) -> bool:
        """Take what has arrived; return whether there may be more."""
        has_more = self._link.read()
        try:
            while (arrived := self._link.take()) is not None:
                message, buffers = arrived
                handler = self._handlers.get(type(message))
                if handler is not None:
                    handler(message, buffers)
        except PoolError as error:  # what came is no message: nothing that follows could be trusted
            self._fail_all(error)
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

    def _is_due(self) -> bool:
        """Whether something is still to come: answers, or memory."""
        return bool(self._expected or self._parcels or self._link.has_unsent)

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


def _check_reachable(endpoint: str) -> None:
    """Raise `SupervisorLost` at once if nobody listens; ZeroMQ itself would go on trying in silence."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _HELLO_S).close()
    except ValueError:
        raise InvalidRequest(f"endpoint {endpoint!r} is not of the form tcp://HOST:PORT") from None
    except OSError as error:
        raise SupervisorLost(f"nobody serves at {endpoint} ({error.strerror or error})") from None
