"""A client's ZeroMQ socket, shared by all threads of the process.

The socket belongs to one thread at a time: its lock is held for each send or read, never while waiting. Whoever
collects garbage may be in the midst of anything, with that lock held. So what is to be sent for something that
nobody refers to any more is only left here, and sent by whoever has the lock, or had it last.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Literal, cast

import zmq

from ..protocol.limits import MAX_OUTBOX_MESSAGES
from ..protocol.tensors import Buffer

_READ_AT_ONCE: Final = 128
_HEARTBEAT_MS: Final = 1000
_LINGER_MS: Final = 100
#: Plain integers: arithmetic with pyzmq's enumerations takes microseconds.
_POLLIN: Final = int(zmq.POLLIN)
_NOBLOCK: Final = int(zmq.NOBLOCK)
_RCVMORE: Final = int(zmq.RCVMORE)

Loss = Literal["", "gone", "lost"]


class Link:
    """The socket, and what tells that its other end is no more.

    Args:
        control: the descriptor of a unix socket to the same supervisor, which tells of its end; None over tcp,
            where heartbeats do.
        is_watched: whether some thread may be asleep in `sleep`.
    """

    def __init__(self, control: int | None, is_watched: Callable[[], bool]) -> None:
        self._control = control
        self._is_watched = is_watched
        self._lock = threading.Lock()
        self._left: deque[bytes] = deque()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.SNDHWM, MAX_OUTBOX_MESSAGES)
        self._socket.set(zmq.RCVHWM, MAX_OUTBOX_MESSAGES)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._monitor: zmq.Socket[bytes] | None = None
        if control is None:
            self._socket.set(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
            self._socket.set(zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS)
            self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._poller = self._make_poller()

    def connect(self, target: str, greeting: bytes, timeout_s: float) -> bytes | None:
        """Connect and greet; return the first frame of the answer, or None if there is none in time."""
        self._socket.connect(target)
        self._socket.send(greeting)
        if not self._socket.poll(int(timeout_s * 1000)):
            return None
        return self._socket.recv_multipart()[0]

    def send(self, frames: Sequence[Buffer]) -> bool:
        """Send a message; false if there is no room for it now."""
        with self._lock:
            is_sent = self._try_send(frames)
        if self._left:
            self._send_what_is_left()
        return is_sent

    def leave(self, header: bytes) -> None:
        """Have a message sent without waiting for anything, now or soon; also while garbage is collected."""
        self._left.append(header)
        self._send_what_is_left()

    def read(self) -> tuple[list[list[bytes]], bool]:
        """Return the messages that have arrived, and whether there may be more."""
        arrived: list[list[bytes]] = []
        with self._lock:
            if self._socket.closed:
                return arrived, False
            receive, has_more_frames = self._socket.recv, self._socket.get
            while len(arrived) < _READ_AT_ONCE and _is_readable(self._socket):
                frames = [receive(_NOBLOCK)]
                while has_more_frames(_RCVMORE):
                    frames.append(receive(_NOBLOCK))
                arrived.append(frames)
        if self._left:
            self._send_what_is_left()
        return arrived, len(arrived) == _READ_AT_ONCE

    def sleep(self, timeout_ms: float | None) -> Loss:
        """Return when something may have arrived, or after so many milliseconds; tell of a lost other end."""
        loss: Loss = ""
        for fd, _ in self._poller.poll(timeout_ms):
            if fd == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            elif fd == self._control:
                loss = "gone"
            elif self._monitor is not None and fd == _descriptor(self._monitor) and _is_readable(self._monitor):
                loss = "lost"
        return loss

    def wake_up(self) -> None:
        """Have whoever sleeps look around."""
        if not self._socket.closed:
            os.eventfd_write(self._wake, 1)

    def close(self, farewell: bytes) -> None:
        """Say a last word, unless it was said. Nobody may sleep here any more."""
        with self._lock:
            if self._socket.closed:
                return
            with contextlib.suppress(zmq.ZMQError):
                self._socket.send(farewell, _NOBLOCK)
            if self._monitor is not None:
                self._socket.disable_monitor()
                self._monitor.close(0)
            self._socket.close(_LINGER_MS)
            self._context.term()
            os.close(self._wake)

    def _try_send(self, frames: Sequence[Buffer]) -> bool:
        try:
            if len(frames) == 1:
                self._socket.send(frames[0], _NOBLOCK)
            else:
                # Copied: the caller may change its arrays as soon as this returns.
                self._socket.send_multipart(frames, _NOBLOCK, copy=True)
        except zmq.Again:
            return False
        # Sending takes in what the network thread has to say, so that a thread which sleeps on the descriptor
        # would not hear of an answer that came meanwhile.
        if self._is_watched() and _is_readable(self._socket):
            os.eventfd_write(self._wake, 1)
        return True

    def _send_what_is_left(self) -> None:
        """Send it if nobody has the lock: whoever has will look here after giving it back."""
        while self._left and self._lock.acquire(blocking=False):
            try:
                while self._left and not self._socket.closed:
                    if not self._try_send([self._left[0]]):
                        return  # whoever sends or reads next has another try
                    self._left.popleft()
                if self._socket.closed:
                    self._left.clear()
            finally:
                self._lock.release()

    def _make_poller(self) -> select.poll:
        poller = select.poll()
        poller.register(_descriptor(self._socket), select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        if self._control is not None:
            poller.register(self._control, select.POLLRDHUP)
        if self._monitor is not None:
            poller.register(_descriptor(self._monitor), select.POLLIN)
        return poller


def _is_readable(zmq_socket: zmq.Socket[bytes]) -> bool:
    return bool(cast("int", zmq_socket.get(zmq.EVENTS)) & _POLLIN)


def _descriptor(zmq_socket: zmq.Socket[bytes]) -> int:
    """Return the descriptor that becomes readable when the socket's state may have changed."""
    return cast("int", zmq_socket.get(zmq.FD))
