"""The ZeroMQ side: who may talk, and answers that wait for slow readers.

One ROUTER for the ipc endpoint, where a client must present the token that it got from the unix socket, and
one for tcp on loopback, if that is wanted, where none is asked for. ``ROUTER_MANDATORY`` makes a peer that does
not keep up visible: a default ROUTER would drop its messages silently.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

import zmq

from ...protocol.errors import InvalidRequest, PoolBusy, PoolError
from ...protocol.frames import check_buffers, pack_header, unpack_header
from ...protocol.limits import MAX_CLIENTS, MAX_OUTBOX_BYTES, MAX_OUTBOX_MESSAGES
from ...protocol.messages import Goodbye, Hello, Message, Ping, Pong, Rejected, Submit, Welcome

#: Messages that ZeroMQ itself holds for one peer; what is beyond waits in an outbox here.
_HIGH_WATER: Final = 1000
#: Messages read in one turn, so that workers get theirs in between.
_READ_AT_ONCE: Final = 64
#: How often a full peer is tried again: ZeroMQ does not tell when one peer of a ROUTER has room.
_RETRY_S: Final = 0.005
#: How long a token that nobody presented is good for.
TOKEN_S: Final = 30.0
#: Buffers from here on are handed to ZeroMQ without a copy.
_NO_COPY_BYTES: Final = 64 * 1024
_HEARTBEAT_MS: Final = 2000
#: Plain integers: arithmetic with pyzmq's enumerations takes microseconds.
_POLLIN: Final = int(zmq.POLLIN)
_NOBLOCK: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.SNDMORE) | _NOBLOCK


class Peer(NamedTuple):
    """A client's address: which socket, and ROUTER's identity of its connection."""

    transport: str
    identity: bytes


class ClientSockets:
    """All clients.

    Args:
        name, workers: what a client is welcomed with.
        received: called with each message of a known client, and its buffers.
        joined, left: called when a client is known, and when it is gone.
        call_at: the reactor's timer.
    """

    def __init__(
        self,
        name: str,
        workers: int,
        *,
        received: Callable[[Peer, Message, list[Any]], None],
        joined: Callable[[Peer, bytes], None],
        left: Callable[[Peer], None],
        call_at: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._welcome = Welcome(name, workers)
        self._received = received
        self._joined = joined
        self._left = left
        self._call_at = call_at
        self._context = zmq.Context()
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._tokens: dict[bytes, float] = {}
        self._peers: set[Peer] = set()
        self._outboxes: dict[Peer, deque[list[Any]]] = {}
        self._outbox_bytes: dict[Peer, int] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def bind(self, transport: str, endpoint: str) -> int:
        """Listen at an endpoint; return the descriptor that tells of changes.

        Raises:
            PoolError: the endpoint is in use or cannot be bound.
        """
        router = self._sockets.get(transport)
        if router is None:
            router = self._sockets[transport] = self._context.socket(zmq.ROUTER)
            router.set(zmq.ROUTER_MANDATORY, 1)
            router.set(zmq.SNDHWM, _HIGH_WATER)
            router.set(zmq.RCVHWM, _HIGH_WATER)
            router.set(zmq.LINGER, 0)
            if transport == "tcp":
                router.set(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
                router.set(zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS)
        try:
            router.bind(endpoint)
        except zmq.ZMQError as error:
            raise PoolError(f"cannot listen at {endpoint}: {error.strerror}") from error
        return cast("int", router.get(zmq.FD))

    def endpoint(self, transport: str) -> str:
        """Return the endpoint that was bound last, its port resolved."""
        return cast("bytes", self._sockets[transport].get(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()

    def make_token(self) -> bytes:
        """Return a new token, good for one hello over ipc."""
        now = time.monotonic()
        for token in [token for token, made_at in self._tokens.items() if now - made_at > TOKEN_S]:
            del self._tokens[token]
        token = secrets.token_bytes(16)
        self._tokens[token] = now
        return token

    def poll(self) -> bool:
        """Read what has arrived, up to a bound; return whether there may be more."""
        has_more = False
        for transport, router in self._sockets.items():
            if cast("int", router.get(zmq.EVENTS)) & _POLLIN:
                has_more = self._read(transport, router) or has_more
        return has_more

    def send(self, peer: Peer, message: Message, buffers: list[Any]) -> None:
        """Send a client a message; keep it if the client does not keep up, up to a bound."""
        if peer not in self._peers:
            return
        frames = [pack_header(message), *buffers]
        outbox = self._outboxes.get(peer)  # most have none: they keep up
        if outbox is not None:
            self._keep(peer, outbox, frames)
        elif not self._try(peer, frames):
            outbox = self._outboxes[peer] = deque()
            self._outbox_bytes[peer] = 0
            self._keep(peer, outbox, frames)
            self._call_at(time.monotonic() + _RETRY_S, self._retry)

    def drop(self, peer: Peer) -> None:
        """Forget a client; it is told nothing."""
        if peer in self._peers:
            self._peers.discard(peer)
            self._outboxes.pop(peer, None)
            self._outbox_bytes.pop(peer, None)
            self._left(peer)

    def close(self, linger_ms: int) -> None:
        """Close the sockets, after giving what was sent a moment to leave."""
        for router in self._sockets.values():
            router.close(linger_ms)
        self._context.term()

    # --- reading --------------------------------------------------------------------------------------------

    def _read(self, transport: str, router: zmq.Socket[bytes]) -> bool:
        receive, more = router.recv, zmq.RCVMORE
        for _ in range(_READ_AT_ONCE):
            try:
                identity = receive(_NOBLOCK)
            except zmq.Again:
                return False
            frames: list[bytes] = []
            while router.get(more):
                frames.append(receive(_NOBLOCK))
            self._take(Peer(transport, identity), frames)
            if not cast("int", router.get(zmq.EVENTS)) & _POLLIN:  # cheaper than an exception
                return False
        return True

    def _take(self, peer: Peer, frames: list[bytes]) -> None:
        try:
            if not frames:
                raise InvalidRequest("an empty message")
            message = unpack_header(frames[0])
            buffers = frames[1:]
            if buffers:
                check_buffers([len(frame) for frame in buffers])
            if peer in self._peers:
                self._from_client(peer, message, buffers)
            else:
                self._from_stranger(peer, message)
        except PoolError as error:
            self._reject(peer, error)

    def _from_client(self, peer: Peer, message: Message, buffers: list[Any]) -> None:
        if isinstance(message, Submit):
            self._received(peer, message, buffers)
        elif isinstance(message, Ping):
            self.send(peer, Pong(), [])
        elif isinstance(message, Goodbye):
            self.drop(peer)
        else:
            self._received(peer, message, buffers)

    def _from_stranger(self, peer: Peer, message: Message) -> None:
        if not isinstance(message, Hello):
            raise InvalidRequest("say hello first")
        if peer.transport == "ipc" and self._tokens.pop(message.token, None) is None:
            raise InvalidRequest("this token is unknown or used up; ask the control socket for one")
        if len(self._peers) >= MAX_CLIENTS:
            raise PoolBusy(f"{MAX_CLIENTS} clients are connected, which is the most there can be")
        self._peers.add(peer)
        self._joined(peer, message.token)
        self.send(peer, self._welcome, [])

    def _reject(self, peer: Peer, error: PoolError) -> None:
        """Tell a peer what was wrong and have nothing more to do with it."""
        frames = [pack_header(Rejected(error.to_record()))]
        with contextlib.suppress(zmq.ZMQError):
            self._sockets[peer.transport].send_multipart([peer.identity, *frames], _NOBLOCK)
        self.drop(peer)

    # --- sending --------------------------------------------------------------------------------------------

    def _try(self, peer: Peer, frames: list[Any]) -> bool:
        """Send now; false if the peer has no room. A peer that is gone is dropped."""
        router = self._sockets[peer.transport]
        try:
            router.send(peer.identity, _MORE)
            for frame in frames[:-1]:
                router.send(frame, _MORE, copy=len(frame) < _NO_COPY_BYTES)
            last = frames[-1]
            router.send(last, _NOBLOCK, copy=len(last) < _NO_COPY_BYTES)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.drop(peer)
        return True

    def _keep(self, peer: Peer, outbox: deque[list[Any]], frames: list[Any]) -> None:
        outbox.append(frames)
        self._outbox_bytes[peer] += sum(map(len, frames))
        if len(outbox) > MAX_OUTBOX_MESSAGES or self._outbox_bytes[peer] > MAX_OUTBOX_BYTES:
            waiting = f"{len(outbox):,} answers of {self._outbox_bytes[peer]:,} bytes wait for this client"
            self._reject(peer, PoolBusy(f"{waiting}, which does not read them; it is disconnected"))

    def _retry(self) -> None:
        for peer in list(self._outboxes):
            outbox = self._outboxes[peer]
            while outbox and self._try(peer, outbox[0]):
                if peer not in self._peers:
                    break
                self._outbox_bytes[peer] -= sum(map(len, outbox.popleft()))
            if not outbox and peer in self._peers:
                del self._outboxes[peer], self._outbox_bytes[peer]
        if self._outboxes:
            self._call_at(time.monotonic() + _RETRY_S, self._retry)


def ipc_endpoint(path: str) -> str:
    """Return ZeroMQ's name for a socket file."""
    return f"ipc://{os.path.abspath(path)}"
