"""Clients over ZeroMQ: those that come over tcp, and those in other languages.

One ROUTER for ipc and, if it is wanted, one for tcp, which asks for keys where there are some.
``ROUTER_MANDATORY`` makes a peer that does not keep up visible: a default ROUTER would drop its messages silently.
What waits for such a peer waits in an outbox here.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal, cast

import zmq

from ...protocol.errors import InvalidRequest, PoolError
from ...protocol.frames import check_buffers, multipart, unpack_header
from ...protocol.messages import Message, Pong, Rejected
from ..keys import KeyFolder
from .clients import Clients, Peer, check_outbox
from .reactor import Reactor
from .zap import Doorkeeper

#: Messages that ZeroMQ itself holds for one peer; what is beyond waits in an outbox here.
_HIGH_WATER: Final = 1000
#: Messages read in one turn, so that workers get theirs in between.
_READ_AT_ONCE: Final = 64
#: How often a full peer is tried again: ZeroMQ does not tell when one peer of a ROUTER has room.
_RETRY_S: Final = 0.005
#: How often peers that say nothing are told something: only then a ROUTER tells that one is gone.
_LOOK_S: Final = 5.0
#: Buffers from here on are handed to ZeroMQ without a copy.
_NO_COPY_BYTES: Final = 64 * 1024
_HEARTBEAT_MS: Final = 2000
#: Plain integers: arithmetic with pyzmq's enumerations takes microseconds.
_POLLIN: Final = int(zmq.POLLIN)
_NOBLOCK: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.SNDMORE) | _NOBLOCK

ZmqTransport = Literal["ipc", "tcp"]


class _Router:
    """A socket. It is no descriptor to be read; it has one that becomes readable when its state may have changed.

    Args:
        transport: what it is for.
        socket: the socket.
        reactor: in whose turns it is read.
        received: called with what has come: the peer's identity, the frames, and the key that let it in; the
            last may be missing of a peer that is known.

    Attributes:
        peers: those that have said something, by identity.
    """

    def __init__(
        self,
        transport: ZmqTransport,
        socket: zmq.Socket[bytes],
        reactor: Reactor,
        received: Callable[[_Router, bytes, list[bytes], str], None],
    ) -> None:
        self.transport: ZmqTransport = transport
        self.socket = socket
        self.peers: dict[bytes, ZmqPeer] = {}
        self._reactor = reactor
        self._received = received
        self._will_be_read = False
        reactor.watch(cast("int", socket.get(zmq.FD)), self.read_soon)

    def read_soon(self) -> None:
        """Have it read in the next turn."""
        if not self._will_be_read:
            self._will_be_read = True
            self._reactor.call_soon(self._read)

    def send(self, identity: bytes, frames: list[Any]) -> bool:
        """Send now; false if the peer has no room.

        Raises:
            zmq.ZMQError: the peer is gone.
        """
        send = self.socket.send
        try:
            send(identity, _MORE)
            for frame in frames[:-1]:
                send(frame, _MORE, copy=len(frame) < _NO_COPY_BYTES)
            send(frames[-1], _NOBLOCK, copy=len(frames[-1]) < _NO_COPY_BYTES)
        except zmq.Again:
            return False
        finally:
            self.read_soon()  # to send takes in what the network thread says, and the descriptor is silent then
        return True

    def _read(self) -> None:
        self._will_be_read = False
        receive, get, more = self.socket.recv, self.socket.get, zmq.RCVMORE
        for _ in range(_READ_AT_ONCE):
            if not cast("int", get(zmq.EVENTS)) & _POLLIN:  # cheaper than an exception
                return
            identity = receive(_NOBLOCK)
            frames: list[bytes] = []
            key = ""
            if identity not in self.peers and get(more):
                first = receive(_NOBLOCK, copy=False)
                key, frames = _key_of(first), [first.bytes]
            while get(more):
                frames.append(receive(_NOBLOCK))
            self._received(self, identity, frames, key)
        self.read_soon()


class ZmqPeer(Peer):
    """A connection that ROUTER tells apart from others by its identity.

    Attributes:
        key: whose public key let it in, in Z85; empty where none is asked for.
    """

    def __init__(self, router: _Router, identity: bytes, server: ZmqServer, key: str) -> None:
        self.transport = router.transport
        self.key = key
        self._router = router
        self._identity = identity
        self._server = server
        self._outbox: deque[list[Any]] = deque()
        self._outbox_bytes = 0

    def __repr__(self) -> str:
        return f"<ZmqPeer {self.transport} {self._identity.hex()}, {len(self._outbox)} unsent>"

    def send(self, message: Message, buffers: list[Any]) -> None:
        """See `Peer`."""
        frames = multipart(message, buffers)
        if not self._outbox and self._try(frames):
            return
        self._outbox.append(frames)
        self._outbox_bytes += sum(map(len, frames))
        check_outbox(len(self._outbox), self._outbox_bytes)
        self._server.retry_later(self)

    def retry(self) -> bool:
        """Send what waits; false if there is still no room."""
        while self._outbox:
            if not self._try(self._outbox[0]):
                return False
            if self._outbox:
                self._outbox_bytes -= sum(map(len, self._outbox.popleft()))
        return True

    def look(self) -> None:
        """Find out whether it is still there; what it is told it may ignore."""
        if not self._outbox:
            self._try(multipart(Pong()))

    def reject(self, rejected: Rejected) -> None:
        """See `Peer`; one that has no room for it hears it when it next sends something."""
        self._outbox.clear()
        with contextlib.suppress(zmq.ZMQError):
            self._router.send(self._identity, multipart(rejected))

    def close(self) -> None:
        """See `Peer`."""
        self._outbox.clear()
        self._router.peers.pop(self._identity, None)

    def _try(self, frames: list[Any]) -> bool:
        """Send now; false if there is no room. A peer that is gone is dropped."""
        try:
            return self._router.send(self._identity, frames)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._server.lost(self)
            return True


class ZmqServer:
    """Reads what clients send over ZeroMQ.

    Args:
        clients: whom messages are for.
        reactor: whose turns it reads in.
    """

    def __init__(self, clients: Clients, reactor: Reactor) -> None:
        self._clients = clients
        self._reactor = reactor
        self._doorkeeper: Doorkeeper | None = None
        self._context = zmq.Context()
        self._routers: dict[ZmqTransport, _Router] = {}
        self._full: dict[ZmqPeer, None] = {}
        self._is_looking = False

    def ask_for_keys(self, folder: KeyFolder, note: Callable[[str], None]) -> None:
        """Let in over tcp only those whose keys lie in a folder; to be said before anything is bound.

        Raises:
            ConfigError: the folder has no keys, or others can get at them.
        """
        self._doorkeeper = Doorkeeper(self._context, folder, self._reactor, note)

    def bind(self, transport: ZmqTransport, endpoint: str) -> None:
        """Listen at an endpoint.

        Raises:
            PoolError: the endpoint is in use or cannot be bound.
        """
        router = self._routers.get(transport) or self._make_router(transport)
        try:
            router.socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise PoolError(f"cannot listen at {endpoint}: {error.strerror}") from error

    def endpoint(self, transport: ZmqTransport) -> str:
        """Return the endpoint that was bound last, its port resolved."""
        return cast("bytes", self._routers[transport].socket.get(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()

    def retry_later(self, peer: ZmqPeer) -> None:
        """Try to send a peer what waits for it, until it is sent."""
        if not self._full:
            self._reactor.call_at(time.monotonic() + _RETRY_S, self._retry)
        self._full[peer] = None

    def lost(self, peer: ZmqPeer) -> None:
        """A peer is gone."""
        self._clients.drop(peer)

    def close(self, linger_ms: int) -> None:
        """Close the sockets, after giving what was sent a moment to leave."""
        for router in self._routers.values():
            router.socket.close(linger_ms)
        if self._doorkeeper is not None:
            self._doorkeeper.close()
        self._context.term()

    def _make_router(self, transport: ZmqTransport) -> _Router:
        socket = self._context.socket(zmq.ROUTER)
        socket.set(zmq.ROUTER_MANDATORY, 1)
        socket.set(zmq.SNDHWM, _HIGH_WATER)
        socket.set(zmq.RCVHWM, _HIGH_WATER)
        socket.set(zmq.LINGER, 0)
        if transport == "tcp":
            socket.set(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
            socket.set(zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS)
            if self._doorkeeper is not None:
                self._doorkeeper.guard(socket)
        router = self._routers[transport] = _Router(transport, socket, self._reactor, self._take)
        return router

    def _take(self, router: _Router, identity: bytes, frames: list[bytes], key: str) -> None:
        peer = router.peers.get(identity)
        is_new = peer is None
        if peer is None:
            peer = router.peers[identity] = ZmqPeer(router, identity, self, key)
            self._look_later()
        try:
            if is_new and router.transport == "tcp":
                self._check_stranger(peer, identity)
            if not frames:
                raise InvalidRequest("an empty message")
            message = unpack_header(frames[0])
            buffers = frames[1:]
            if buffers:
                check_buffers([len(frame) for frame in buffers])
        except PoolError as error:
            self._clients.reject(peer, error)
        else:
            self._clients.take(peer, message, buffers)

    def _look_later(self) -> None:
        if not self._is_looking:
            self._is_looking = True
            self._reactor.call_at(time.monotonic() + _LOOK_S, self._look)

    def _look(self) -> None:
        """Forget the peers that have gone without a word."""
        self._is_looking = False
        for peer in [peer for router in self._routers.values() for peer in router.peers.values()]:
            try:
                self._check_key(peer)
                peer.look()
            except PoolError as error:
                self._clients.reject(peer, error)
        if any(router.peers for router in self._routers.values()):
            self._look_later()

    def _check_stranger(self, peer: ZmqPeer, identity: bytes) -> None:
        """Refuse whoever picks its own identity, which another could take as soon as the first is away."""
        if not identity.startswith(b"\0"):  # as those are that ZeroMQ gives
            raise InvalidRequest("a client over tcp leaves its routing id to ZeroMQ")
        self._check_key(peer)

    def _check_key(self, peer: ZmqPeer) -> None:
        """Refuse a peer whose key was revoked, though its connection is one that was let in before."""
        if self._doorkeeper is not None and peer.transport == "tcp" and not self._doorkeeper.knows(peer.key):
            raise InvalidRequest("the key of this client was revoked")

    def _retry(self) -> None:
        for peer in list(self._full):
            if peer.retry():
                del self._full[peer]
        if self._full:
            self._reactor.call_at(time.monotonic() + _RETRY_S, self._retry)


def _key_of(frame: zmq.Frame) -> str:
    """Return the key of whoever sent a frame; empty where none was asked for."""
    try:
        return cast("str", frame.get("User-Id"))
    except zmq.ZMQError:
        return ""


def ipc_endpoint(path: str) -> str:
    """Return ZeroMQ's name for a socket file."""
    return f"ipc://{os.path.abspath(path)}"
