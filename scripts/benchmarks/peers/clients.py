"""How requests are sent: by futures, by calls in threads, or over HTTP. All by one thread of the load generator.

A client sends without waiting and tells afterwards what has been answered, and when. The moment is noted where the
answer arrives, which for futures is the thread of the peer's own library.
"""

from __future__ import annotations

import contextlib
import queue
import selectors
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from .workloads import encode

_READ_BYTES = 1 << 20
#: How long a server may take to answer a request.
_TIMEOUT_S = 60.0


class Answer(NamedTuple):
    """An answer: the number of its request, when it came, and what it is, or the error."""

    number: int
    done_at: float
    value: Any


class Client(ABC):
    """Sends requests to a peer."""

    @abstractmethod
    def call(self, payload: Any) -> Any:
        """Send a request and wait for its answer, in the quickest way that the peer offers."""

    @abstractmethod
    def submit(self, payload: Any, number: int) -> None:
        """Send a request."""

    @abstractmethod
    def wait(self, timeout_s: float) -> list[Answer]:
        """Return what has been answered; wait for the first, but no longer than this."""

    @abstractmethod
    def close(self) -> None:
        """End the client, which nobody waits for any more."""


class FutureClient(Client):
    """A client of what returns a future.

    Args:
        send: sends a request; returns a future that takes callbacks.
        call: sends a request and waits, if there is a quicker way than waiting for the future.
    """

    def __init__(self, send: Callable[[Any], Future[Any]], call: Callable[[Any], Any] | None = None) -> None:
        self._send = send
        self._call = call
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()

    def call(self, payload: Any) -> Any:
        return self._call(payload) if self._call else self._send(payload).result()

    def submit(self, payload: Any, number: int) -> None:
        def note(future: Future[Any]) -> None:
            done_at = time.perf_counter()
            self._answers.put(Answer(number, done_at, future.exception() or future.result()))

        self._send(payload).add_done_callback(note)

    def wait(self, timeout_s: float) -> list[Answer]:
        answers: list[Answer] = []
        with contextlib.suppress(queue.Empty):
            answers.append(self._answers.get(timeout=timeout_s))
            while True:
                answers.append(self._answers.get_nowait())
        return answers

    def close(self) -> None:
        """The peer's own pool is ended by its adapter."""


class CallingClient(FutureClient):
    """A client of what only offers calls that wait: they wait in threads.

    Args:
        call: sends a request and waits for its answer; called in several threads at once.
        threads: how many requests can be under way.
    """

    def __init__(self, call: Callable[[Any], Any], threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads)
        super().__init__(lambda payload: self._threads.submit(call, payload), call)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


class HttpError(Exception):
    """A server answered something else than 200, or ended the connection."""


class HttpClient(Client):
    """A client of an HTTP/1.1 server: a connection for each request under way, kept open.

    Less than what common libraries do for each request, so that it is the server that is measured.

    Args:
        port: on which the server listens on this machine.
        path: that is posted to.
        headers: besides those that every request has.
        frame: makes a body of a payload; default: its bytes.
        unframe: takes the answer's bytes out of a body.
    """

    def __init__(
        self,
        port: int,
        path: str,
        headers: dict[str, str] | None = None,
        frame: Callable[[Any], list[bytes | memoryview]] | None = None,
        unframe: Callable[[bytes], bytes] | None = None,
    ) -> None:
        lines = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/octet-stream"} | (headers or {})
        self._head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._address = ("127.0.0.1", port)
        self._frame = frame or (lambda payload: [encode(payload)])
        self._unframe = unframe or (lambda body: body)
        self._idle: list[socket.socket] = []
        self._selector = selectors.DefaultSelector()

    def call(self, payload: Any) -> Any:
        connection = self._connection()
        reply = Reply()
        try:
            self._send(connection, payload)
            while not reply.feed(connection.recv(_READ_BYTES)):
                pass
            answer = self._read(reply)
        except (OSError, HttpError):
            connection.close()
            raise
        self._idle.append(connection)
        return answer

    def submit(self, payload: Any, number: int) -> None:
        connection = self._connection()
        self._send(connection, payload)
        self._selector.register(connection, selectors.EVENT_READ, (number, Reply()))

    def wait(self, timeout_s: float) -> list[Answer]:
        answers: list[Answer] = []
        for key, _ in self._selector.select(timeout_s):
            number, reply = key.data
            connection: Any = key.fileobj
            try:
                if not reply.feed(connection.recv(_READ_BYTES)):
                    continue
                value = self._read(reply)
                self._idle.append(connection)
            except (OSError, HttpError) as error:
                value = error
                connection.close()
            self._selector.unregister(connection)
            answers.append(Answer(number, time.perf_counter(), value))
        return answers

    def close(self) -> None:
        for connection in [*self._idle, *(key.fileobj for key in self._selector.get_map().values())]:
            connection.close()
        self._selector.close()

    def _connection(self) -> socket.socket:
        if self._idle:
            return self._idle.pop()
        connection = socket.create_connection(self._address, _TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _send(self, connection: socket.socket, payload: Any) -> None:
        parts = self._frame(payload)
        head = f"{self._head}Content-Length: {sum(map(len, parts))}\r\n\r\n".encode()
        if sum(map(len, parts)) < _READ_BYTES:
            connection.sendall(b"".join((head, *parts)))
            return
        for part in (head, *parts):
            connection.sendall(part)

    def _read(self, reply: Reply) -> Any:
        if reply.status != 200:
            raise HttpError(f"{reply.status}: {reply.body[:300]!r}")
        return np.frombuffer(self._unframe(reply.body), np.float32)


class Reply:
    """The answer of a server, as it comes in."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._body_at = self._end = 0
        self.status = 0

    def feed(self, received: bytes) -> bool:
        """Add what has been received; return whether this was the last of it.

        Raises:
            HttpError: the connection has ended, or the answer does not say how long it is.
        """
        if not received:
            raise HttpError("the server ended the connection")
        self._received += received
        if not self._end and (head_end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[:head_end]).lower()
            self.status = int(head[9:12])
            _, named, rest = head.partition(b"\r\ncontent-length:")
            if not named:
                raise HttpError(f"an answer without a length: {head!r}")
            self._body_at = head_end + 4
            self._end = self._body_at + int(rest.partition(b"\r\n")[0])
        return bool(self._end) and len(self._received) >= self._end

    @property
    def body(self) -> bytes:
        """What stands behind the head."""
        return bytes(self._received[self._body_at : self._end])
