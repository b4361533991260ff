"""One client's conversation with a supervisor over ZeroMQ, shared by all threads of the process.

A ZeroMQ socket belongs to one thread at a time: `_lock` is held for each send or read, never while waiting.
Who reads is decided in `receiving`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import InvalidStateError
from typing import Any, Final, cast

import zmq

from ..protocol.errors import InvalidRequest, PoolError, SupervisorLost, from_record
from ..protocol.frames import pack_header, unpack_header
from ..protocol.limits import MAX_OUTBOX_MESSAGES
from ..protocol.messages import (
    Cancel,
    Failed,
    Goodbye,
    Hello,
    Message,
    Query,
    Rejected,
    Released,
    Reply,
    Submit,
    Welcome,
)
from ..protocol.values import Buffer, decode
from .control import ControlSocket
from .forks import tell_of_forks
from .futures import PoolFuture
from .parcels import MethodKey, Parcels
from .receiving import Receiver, Waitable

_HELLO_S: Final = 10.0
#: A supervisor that does not answer for so long is not waited for.
_FLUSH_S: Final = 5.0
_SEND_RETRY_MS: Final = 1
_READ_AT_ONCE: Final = 128
_HEARTBEAT_MS: Final = 1000
#: Plain integers: arithmetic with pyzmq's enumerations takes microseconds.
_POLLIN: Final = int(zmq.POLLIN)
_NOBLOCK: Final = int(zmq.NOBLOCK)
_RCVMORE: Final = int(zmq.RCVMORE)


class Connection:
    """A client.

    Args:
        endpoint: ``ipc://FOLDER`` of a local supervisor, or a tcp endpoint on which one listens.

    Raises:
        SupervisorLost: nobody serves there.
        InvalidRequest: the endpoint is none, or the supervisor does not want this client.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.directory = ""
        self._lock = threading.Lock()
        self._futures: dict[int, PoolFuture] = {}
        self._numbers = itertools.count(1)
        self._end: PoolError | None = None  # why this connection is of no use any more
        self._is_forked = False
        self._receiver = Receiver(
            self._read, self._sleep, is_due=self._is_due, is_over=lambda: self._end is not None
        )
        self._control: ControlSocket | None = None
        self._parcels: Parcels | None = None
        token = b""
        if endpoint.startswith("ipc://"):
            self.directory = endpoint.removeprefix("ipc://")
            self._control = ControlSocket(self.directory)
            token, target = self._control.admit()
            self._parcels = Parcels(self._control)
        elif endpoint.startswith("tcp://"):
            target = endpoint
            _check_reachable(endpoint)
        else:
            raise InvalidRequest(f"endpoint {endpoint!r}: it must start with ipc:// or tcp://")
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.SNDHWM, MAX_OUTBOX_MESSAGES)
        self._socket.set(zmq.RCVHWM, MAX_OUTBOX_MESSAGES)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._monitor: zmq.Socket[bytes] | None = None
        if self._control is None:
            self._socket.set(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
            self._socket.set(zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS)
            self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._poller = self._make_poller()
        try:
            self._socket.connect(target)
            self.welcome = self._say_hello(token)
        except BaseException:
            self.close()
            raise
        tell_of_forks(self)

    def __repr__(self) -> str:
        state = f"over: {self._end}" if self._end else f"{len(self._futures)} unanswered"
        return f"<Connection {self.endpoint} {state}>"

    # --- asking ---------------------------------------------------------------------------------------------

    def submit(
        self, model: str, method: str, timeout_s: float, retries: int, body: bytes, buffers: Sequence[Buffer]
    ) -> PoolFuture:
        """Send a request; return its future."""
        self.check_usable()
        number, key, parcels = next(self._numbers), (model, method), self._parcels
        places: list[Any] = []
        reply: list[int] = []
        if parcels is not None and (buffers or parcels.expects(key)):
            places, reply, buffers = parcels.send(number, key, buffers)
        future = self._new_future(number, key)
        self._send(Submit(number, model, method, timeout_s, retries, body, places, reply), buffers)
        return future

    def query(self, topic: str) -> Any:
        """Ask for models, memory or status, and wait for the answer."""
        self.check_usable()
        future = self._new_future(next(self._numbers), (topic, ""))
        self._send(Query(future.number, topic), ())
        return future.result()

    def flush(self) -> None:
        """Return when the supervisor has everything that was submitted so far, or is lost."""
        if self._end is not None:
            return
        future = self._new_future(next(self._numbers), ("flush", ""))
        with contextlib.suppress(PoolError, TimeoutError):
            self._send(Query(future.number, "models"), ())
            future.result(_FLUSH_S)
        future.cancel()

    def forget(self, number: int) -> None:
        """Give up an answer."""
        if self._futures.pop(number, None) is not None and self._end is None:
            with contextlib.suppress(PoolError):
                self._send(Cancel(number), ())
                self._await_release(number)

    def wait_for_all(self) -> None:
        """Return when every answer is there, or the supervisor is lost."""
        while self._futures and self._end is None:
            for future in list(self._futures.values()):
                self.wait(future)

    @property
    def unanswered(self) -> int:
        """How many answers are due."""
        return len(self._futures)

    @property
    def fallbacks(self) -> list[str]:
        """What this client does in a second-best way, and why."""
        refusal = self._parcels.mailboxes.refusal if self._parcels is not None else ""
        return [f"large arrays of this client travel through sockets: {refusal}"] if refusal else []

    def check_usable(self) -> None:
        """Raise why this connection cannot be used, if it cannot."""
        if self._is_forked:
            raise InvalidRequest(
                "this Pool was made before a fork, in the parent process; open another here: "
                f"Pool.connect({self.endpoint!r})"
            )
        if self._end is not None:
            raise self._end

    def _new_future(self, number: int, key: MethodKey) -> PoolFuture:
        future = self._futures[number] = PoolFuture(self, number, key)
        return future

    def _send(self, message: Message, buffers: Sequence[Buffer]) -> None:
        frames: list[Buffer] = [pack_header(message), *buffers]
        while True:
            with self._lock:
                if self._end is not None:
                    self._futures.clear()
                    raise self._end
                try:
                    if len(frames) == 1:
                        self._socket.send(frames[0], _NOBLOCK)
                    else:
                        # Copied: the caller may change its arrays as soon as this returns.
                        self._socket.send_multipart(frames, _NOBLOCK, copy=True)
                except zmq.Again:
                    pass
                else:
                    # Sending takes in what the network thread has to say, so that a thread which sleeps on
                    # the descriptor would not hear of an answer that came meanwhile.
                    if self._receiver.is_active and _is_readable(self._socket):
                        os.eventfd_write(self._wake, 1)
                    return
            self._wait_for_room()

    def _wait_for_room(self) -> None:
        """Let answers in while the supervisor does not take more."""
        self._receiver.read_once()
        time.sleep(_SEND_RETRY_MS / 1000)

    # --- receiving ------------------------------------------------------------------------------------------

    def wait(self, waitable: Waitable, timeout: float | None = None) -> None:
        """Return when the waitable is done, or after ``timeout`` seconds."""
        self._receiver.wait(waitable, timeout)

    def keep_receiving(self, *, urgent: bool = False) -> None:
        """See to it that answers are received although nobody waits for them; within 2 ms, or at once."""
        self._receiver.keep_receiving(urgent=urgent)

    def _sleep(self, timeout_ms: float | None) -> None:
        for fd, _ in self._poller.poll(timeout_ms):
            self._woken_by(fd)

    def _woken_by(self, fd: int) -> None:
        if fd == self._wake:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        elif self._control is not None and fd == self._control.fileno():
            self._read()  # what it had still sent
            self._lose(f"the supervisor at {self.endpoint} is gone")
        elif self._monitor is not None and fd == _descriptor(self._monitor) and _is_readable(self._monitor):
            self._read()
            self._lose(f"the connection to {self.endpoint} is lost")

    def _read(self) -> bool:
        """Take what has arrived; return whether there may be more."""
        arrived: list[list[bytes]] = []
        with self._lock:
            if self._socket.closed:
                return False
            receive, has_more_frames = self._socket.recv, self._socket.get
            while len(arrived) < _READ_AT_ONCE and _is_readable(self._socket):
                frames = [receive(_NOBLOCK)]
                while has_more_frames(_RCVMORE):
                    frames.append(receive(_NOBLOCK))
                arrived.append(frames)
        try:
            for frames in arrived:
                self._handle(unpack_header(frames[0]), frames[1:])
        except PoolError as error:  # what came is no message: nothing that follows could be trusted
            self._fail_all(error)
        return len(arrived) == _READ_AT_ONCE

    def _handle(self, message: Message, buffers: list[bytes]) -> None:
        if isinstance(message, Reply):
            self._handle_reply(message, buffers)
        elif isinstance(message, Failed):
            future = self._futures.pop(message.request, None)
            self._await_release(message.request)
            if future is not None:
                _settle(future, None, from_record(message.error))
        elif isinstance(message, Released) and self._parcels is not None:
            self._parcels.ended(message.request)
        elif isinstance(message, Rejected):
            self._fail_all(from_record(message.error))

    def _handle_reply(self, reply: Reply, buffers: Sequence[Buffer]) -> None:
        future, parcels = self._futures.pop(reply.request, None), self._parcels
        if future is None:
            if parcels is not None:
                parcels.ended(reply.request)
            return
        try:
            if parcels is not None and (buffers or reply.request in parcels):
                buffers = parcels.received(reply.request, future.key, reply.places, buffers)
            result = decode(reply.body, buffers)
        except PoolError as error:
            _settle(future, None, error)
        else:
            _settle(future, result, None)

    def _is_due(self) -> bool:
        """Whether something is still to come: answers, or memory."""
        return bool(self._futures or self._parcels)

    def _await_release(self, number: int) -> None:
        """Go on receiving until a request that was given up or has failed is in no worker's hands any more."""
        if self._parcels is not None and number in self._parcels:
            self.keep_receiving()

    def _lose(self, reason: str) -> None:
        self._fail_all(SupervisorLost(reason))

    def _fail_all(self, error: PoolError) -> None:
        """End the connection: every answer that is due becomes this error."""
        self._end = self._end or error
        while self._futures:
            with contextlib.suppress(KeyError):
                _settle(self._futures.popitem()[1], None, error)
        self._receiver.wake_up()

    # --- beginning and end ----------------------------------------------------------------------------------

    def _make_poller(self) -> select.poll:
        poller = select.poll()
        poller.register(_descriptor(self._socket), select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        if self._control is not None:
            poller.register(self._control.fileno(), select.POLLRDHUP)
        if self._monitor is not None:
            poller.register(_descriptor(self._monitor), select.POLLIN)
        return poller

    def _say_hello(self, token: bytes) -> Welcome:
        self._socket.send(pack_header(Hello(token, os.getpid())))
        if not self._socket.poll(int(_HELLO_S * 1000)):
            raise SupervisorLost(f"nobody answers at {self.endpoint}; start one with `onecopy serve pool.toml`")
        answer = unpack_header(self._socket.recv_multipart()[0])
        if isinstance(answer, Rejected):
            raise from_record(answer.error)
        if not isinstance(answer, Welcome):
            raise InvalidRequest(f"{self.endpoint} answers with {type(answer).__name__}: this is no supervisor")
        return answer

    def mark_forked(self) -> None:
        """Note that this process is a fork of the one that made the connection."""
        self._is_forked = True

    def prepare_fork(self) -> None:
        """Leave alone what a child that is about to be forked may go on reading."""
        if self._parcels is not None:
            self._parcels.mailboxes.retire()

    def close(self) -> None:
        """Say goodbye; answers that are still due become `SupervisorLost`. May be called again."""
        if self._is_forked:
            return
        self._fail_all(SupervisorLost("this Pool was closed"))
        if not self._socket.closed:
            os.eventfd_write(self._wake, 1)
        self._receiver.join()
        if self._control is not None and self._parcels is not None:
            self._control.shut()  # a thread may be asking for memory
            self._parcels.mailboxes.close()
        with self._receiver.role, self._lock:
            if self._socket.closed:
                return
            with contextlib.suppress(zmq.ZMQError):
                self._socket.send(pack_header(Goodbye()), zmq.NOBLOCK)
            if self._monitor is not None:
                self._socket.disable_monitor()
                self._monitor.close(0)
            self._socket.close(100)
            self._context.term()
            os.close(self._wake)
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


def _is_readable(zmq_socket: zmq.Socket[bytes]) -> bool:
    return bool(cast("int", zmq_socket.get(zmq.EVENTS)) & _POLLIN)


def _descriptor(zmq_socket: zmq.Socket[bytes]) -> int:
    """Return the descriptor that becomes readable when the socket's state may have changed."""
    return cast("int", zmq_socket.get(zmq.FD))


def _settle(future: PoolFuture, result: Any, error: BaseException | None) -> None:
    """Resolve a future, unless its owner cancelled it in this moment."""
    try:
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
    except InvalidStateError:
        return
