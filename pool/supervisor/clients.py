"""Who may talk, whatever the transport: admission, and messages of those who are admitted.

A transport makes a `Peer` for each connection and brings its messages here. The first must be `Hello`, of a local
client with the token that it got from the control socket; over tcp none is asked for.
"""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final, Literal

from ...protocol.errors import InvalidRequest, PoolBusy, PoolError
from ...protocol.limits import MAX_CLIENTS, MAX_OUTBOX_BYTES, MAX_OUTBOX_MESSAGES
from ...protocol.messages import Goodbye, Hello, Message, Ping, Pong, Rejected, Submit, Welcome

#: How long a token that nobody presented is good for.
TOKEN_S: Final = 30.0

Transport = Literal["unix", "ipc", "tcp"]


class Peer(ABC):
    """A connection over which a client may talk.

    Attributes:
        transport: a unix stream, or ZeroMQ over ipc or tcp.
    """

    transport: Transport

    @abstractmethod
    def send(self, message: Message, buffers: list[Any]) -> None:
        """Send a message; keep it if the client does not keep up, up to a bound.

        Raises:
            PoolError: too much is kept, or the message cannot travel.
        """

    @abstractmethod
    def reject(self, rejected: Rejected) -> None:
        """Send a last message, and drop what waits before it."""

    @abstractmethod
    def close(self) -> None:
        """Have nothing more to do with the client; what it is being told goes its way. May be called again."""


class Clients:
    """All clients.

    Args:
        name, workers: what a client is welcomed with.
        received: called with each message of a known client, and its buffers.
        joined: called when a client is known, with who had asked for its token; None over tcp.
        left: called when one is gone.
    """

    def __init__(
        self,
        name: str,
        workers: int,
        *,
        received: Callable[[Peer, Message, list[Any]], None],
        joined: Callable[[Peer, Any], None],
        left: Callable[[Peer], None],
    ) -> None:
        self._welcome = Welcome(name, workers)
        self._received = received
        self._joined = joined
        self._left = left
        self._tokens: dict[bytes, tuple[float, Any]] = {}  # when each was made, in that order, and for whom
        self._peers: set[Peer] = set()

    def __len__(self) -> int:
        return len(self._peers)

    def __contains__(self, peer: Peer) -> bool:
        return peer in self._peers

    def make_token(self, owner: Any = None) -> bytes:
        """Return a new token, good for one hello of a local client.

        Raises:
            PoolBusy: more are unused than there can be clients.
        """
        now = time.monotonic()
        while self._tokens and now - self._tokens[oldest := next(iter(self._tokens))][0] > TOKEN_S:
            del self._tokens[oldest]
        if len(self._tokens) >= MAX_CLIENTS:
            raise PoolBusy(f"{MAX_CLIENTS} tokens were asked for and not used yet; try again later")
        token = secrets.token_bytes(16)
        self._tokens[token] = (now, owner)
        return token

    def void_tokens(self, owner: Any) -> None:
        """Somebody who may have asked for tokens is gone."""
        for token in [token for token, (_, one) in self._tokens.items() if one is owner]:
            del self._tokens[token]

    def take(self, peer: Peer, message: Message, buffers: list[Any]) -> None:
        """Handle a message that has come; whoever breaks the rules is rejected."""
        try:
            if peer not in self._peers:
                self._from_stranger(peer, message)
            elif isinstance(message, Submit):
                self._received(peer, message, buffers)
            elif isinstance(message, Ping):
                self.send(peer, Pong(), [])
            elif isinstance(message, Goodbye):
                self.drop(peer)
            else:
                self._received(peer, message, buffers)
        except PoolError as error:
            self.reject(peer, error)

    def send(self, peer: Peer, message: Message, buffers: list[Any]) -> None:
        """Send a client a message, unless it is gone; one that does not read them is rejected."""
        if peer in self._peers:
            try:
                peer.send(message, buffers)
            except PoolError as error:
                self.reject(peer, error)

    def reject(self, peer: Peer, error: PoolError) -> None:
        """Tell a peer what was wrong and have nothing more to do with it."""
        peer.reject(Rejected(error.to_record()))
        self.drop(peer)

    def drop(self, peer: Peer) -> None:
        """Forget a peer; it is told nothing."""
        peer.close()
        if peer in self._peers:
            self._peers.discard(peer)
            self._left(peer)

    def _from_stranger(self, peer: Peer, message: Message) -> None:
        if not isinstance(message, Hello):
            raise InvalidRequest("say hello first")
        token = self._tokens.pop(message.token, None)
        if peer.transport != "tcp" and token is None:
            raise InvalidRequest("this token is unknown or used up; ask the control socket for one")
        if len(self._peers) >= MAX_CLIENTS:
            raise PoolBusy(f"{MAX_CLIENTS} clients are connected, which is the most there can be")
        self._peers.add(peer)
        self._joined(peer, token[1] if token else None)
        self.send(peer, self._welcome, [])


def check_outbox(messages: int, size_bytes: int) -> None:
    """Raise `PoolBusy` if more waits for a client than may."""
    if messages > MAX_OUTBOX_MESSAGES or size_bytes > MAX_OUTBOX_BYTES:
        waiting = f"{messages:,} answers of {size_bytes:,} bytes wait for this client"
        raise PoolBusy(f"{waiting}, which does not read them; it is disconnected")
