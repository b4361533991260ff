"""A link over ZeroMQ, to a supervisor that listens on tcp."""

from __future__ import annotations

import contextlib
import os
import select
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, cast

import zmq

from ..protocol.frames import multipart, unpack_header
from ..protocol.limits import MAX_OUTBOX_MESSAGES
from ..protocol.messages import Message
from ..protocol.tensors import Buffer
from .link import Arrived, Link, Loss

_READ_AT_ONCE: Final = 128
_HEARTBEAT_MS: Final = 1000
_LINGER_MS: Final = 100
#: Plain integers: arithmetic with pyzmq's enumerations takes microseconds.
_POLLIN: Final = int(zmq.POLLIN)
_NOBLOCK: Final = int(zmq.NOBLOCK)
_RCVMORE: Final = int(zmq.RCVMORE)


class ZmqLink(Link):
    """A ``DEALER``, and what tells that its other end is no more: heartbeats.

    Args:
        endpoint: a tcp endpoint on which a supervisor listens.
        is_watched: whether some thread may be asleep in `sleep`.
    """

    def __init__(self, endpoint: str, is_watched: Callable[[], bool]) -> None:
        super().__init__()
        self._is_watched = is_watched
        self._arrived: deque[list[bytes]] = deque()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.SNDHWM, MAX_OUTBOX_MESSAGES)
        self._socket.set(zmq.RCVHWM, MAX_OUTBOX_MESSAGES)
        self._socket.set(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        self._socket.set(zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._poller = select.poll()
        for fd in (_descriptor(self._socket), _descriptor(self._monitor), self._wake):
            self._poller.register(fd, select.POLLIN)
        self._socket.connect(endpoint)

    def take(self) -> Arrived | None:
        """See `Link`."""
        if not self._arrived:
            return None
        frames = self._arrived[0]
        taken = Arrived(unpack_header(frames[0]), frames[1:])
        del self._arrived[0]
        return taken

    def sleep(self, timeout_ms: float | None) -> Loss:
        """See `Link`."""
        # Descriptors tell only of what has changed since the sockets themselves were asked.
        with self._lock:
            if self._arrived or self._is_closed or _is_readable(self._socket):
                return ""
        if not _is_readable(self._monitor):
            for fd, _ in self._poller.poll(timeout_ms):
                if fd == self._wake:
                    self._was_woken()
        return "lost" if _is_readable(self._monitor) else ""

    def _read(self) -> bool:
        count = 0
        with self._lock:
            receive, has_more_frames = self._socket.recv, self._socket.get
            while count < _READ_AT_ONCE and _is_readable(self._socket):
                frames = [receive(_NOBLOCK)]
                while has_more_frames(_RCVMORE):
                    frames.append(receive(_NOBLOCK))
                self._arrived.append(frames)
                count += 1
        return count == _READ_AT_ONCE

    def _try_send(self, message: Message, buffers: Sequence[Buffer]) -> bool:
        frames = multipart(message, buffers)
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

    def _close(self, farewell: Message) -> None:
        with contextlib.suppress(zmq.ZMQError):
            self._socket.send_multipart(multipart(farewell), _NOBLOCK)
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(_LINGER_MS)
        self._context.term()


def _is_readable(zmq_socket: zmq.Socket[bytes]) -> bool:
    return bool(cast("int", zmq_socket.get(zmq.EVENTS)) & _POLLIN)


def _descriptor(zmq_socket: zmq.Socket[bytes]) -> int:
    """Return the descriptor that becomes readable when the socket's state may have changed."""
    return cast("int", zmq_socket.get(zmq.FD))
