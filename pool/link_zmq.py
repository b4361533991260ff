"""A link over ZeroMQ, to a supervisor that listens on tcp."""

from __future__ import annotations

import contextlib
import os
import select
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, cast

import zmq

from ..protocol.errors import InvalidRequest
from ..protocol.frames import multipart, unpack_header
from ..protocol.limits import MAX_OUTBOX_MESSAGES
from ..protocol.messages import Hello, Message
from ..protocol.tensors import Buffer
from .keys import Keys
from .link import Arrived, Link, Loss

_READ_AT_ONCE: Final = 128
_HEARTBEAT_MS: Final = 1000
_LINGER_MS: Final = 100
#: Plain integers: arithmetic with pyzmq's enumerations takes microseconds.
_POLLIN: Final = int(zmq.POLLIN)
_NOBLOCK: Final = int(zmq.NOBLOCK)
_RCVMORE: Final = int(zmq.RCVMORE)
#: What a monitor tells: number and value of an event, in a frame of its own, see zmq_socket_monitor(3).
_EVENT: Final = struct.Struct("=HI")
_ENDED: Final = int(zmq.EVENT_DISCONNECTED)
_HUNG_UP: Final = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
_BROKEN: Final = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
_REFUSED: Final = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
_MISMATCH: Final = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)


class ZmqLink(Link):
    """A ``DEALER``, and what tells that its other end is no more: heartbeats.

    Args:
        endpoint: a tcp endpoint on which a supervisor listens.
        is_watched: whether some thread may be asleep in `sleep`.
        keys: who this client is and whom it trusts; default: anybody may listen, and read along.
    """

    def __init__(self, endpoint: str, is_watched: Callable[[], bool], keys: Keys | None = None) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._is_watched = is_watched
        self._keys = keys
        self._is_lost = False
        self._failure = ""  # of the handshake, which ZeroMQ would begin again and again in silence
        self._arrived: deque[list[bytes]] = deque()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.SNDHWM, MAX_OUTBOX_MESSAGES)
        self._socket.set(zmq.RCVHWM, MAX_OUTBOX_MESSAGES)
        self._socket.set(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        self._socket.set(zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS)
        if keys is not None:
            self._socket.set(zmq.CURVE_PUBLICKEY, keys.public.encode())
            self._socket.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
            self._socket.set(zmq.CURVE_SERVERKEY, keys.server.encode())
        self._monitor = self._socket.get_monitor_socket(_ENDED | _HUNG_UP | _BROKEN | _REFUSED)
        self._poller = select.poll()
        for fd in (_descriptor(self._socket), _descriptor(self._monitor), self._wake):
            self._poller.register(fd, select.POLLIN)
        self._socket.connect(endpoint)

    def greet(self, hello: Hello, timeout_s: float) -> Message | None:
        """See `Link`.

        Raises:
            InvalidRequest: the two sides cannot talk, because of the keys of one of them.
        """
        answer = super().greet(hello, timeout_s)
        if answer is None and self._failure:
            raise InvalidRequest(f"{self._endpoint}: {self._failure}")
        return answer

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
        if not self._is_lost and not _is_readable(self._monitor):
            for fd, _ in self._poller.poll(timeout_ms):
                if fd == self._wake:
                    self._was_woken()
        while _is_readable(self._monitor):
            self._is_lost = True
            event, *_ = self._monitor.recv_multipart(_NOBLOCK)
            self._failure = self._failure or self._failure_of(*_EVENT.unpack(event))
        return "lost" if self._is_lost else ""

    def _failure_of(self, event: int, value: int) -> str:
        """Return what is wrong between the two sides if a handshake has failed; empty if something else has.

        Where one side asks for keys and the other has none, either may notice first, and hang up on the other.
        """
        keys, is_mismatch = self._keys, event == _BROKEN and value == _MISMATCH
        if event == _REFUSED and keys is not None:
            return f"it lets in no client with the public key {keys.public}: it was revoked, or never made there"
        if is_mismatch and keys is not None:
            return "it asks for no keys, so nothing would be protected on its way; leave yours away if need be"
        if event == _HUNG_UP and keys is not None:
            return f"it hung up: its server key is not {keys.server}, which yours are for, or it asks for no keys"
        if event == _HUNG_UP or is_mismatch:
            return "it may ask for keys: a file with some comes from `onecopy keys new`, where it serves"
        return "what answers there is no supervisor" if event == _BROKEN else ""

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
