"""Who is let in over tcp where keys are asked for: answers to ZeroMQ's own question (ZAP, its RFC 27).

ZeroMQ has proved already that a client has the secret half of the key that it names. What is left is whether that
key is one of the known ones, and that is as the folder has it then: what is revoked is refused from then on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, cast

import zmq
from zmq.utils import z85

from ..keys import KeyFolder
from .reactor import Reactor

#: Where ZeroMQ asks, and the name under which the tcp socket does.
_ENDPOINT: Final = "inproc://zeromq.zap.01"
_DOMAIN: Final = b"onecopy"
_VERSION: Final = b"1.0"
_KEY_BYTES: Final = 32
#: Clients that come too quickly are answered in several turns, so that others get theirs in between.
_ANSWERED_AT_ONCE: Final = 16
#: How long after a refusal was noted the next ones are only counted: strangers must not fill the log.
_QUIET_S: Final = 10.0
#: Who has not proved who it is by then is hung up on.
_HANDSHAKE_MS: Final = 5000


class Doorkeeper:
    """Lets in the clients whose keys lie in a folder.

    Args:
        context: of the socket at which clients come.
        folder: the keys.
        reactor: in whose turns clients are let in.
        note: called with what a log shall tell.

    Raises:
        ConfigError: the folder has no keys, or others can get at them.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        folder: KeyFolder,
        reactor: Reactor,
        note: Callable[[str], None],
    ) -> None:
        self._pair = folder.server()
        folder.clients()  # what is broken is told now, rather than when its client comes
        self._folder = folder
        self._reactor = reactor
        self._note = note
        self._quiet_until = 0.0
        self._unnoted = 0
        self._socket = context.socket(zmq.REP)
        self._socket.set(zmq.LINGER, 0)
        self._socket.bind(_ENDPOINT)
        reactor.watch(cast("int", self._socket.get(zmq.FD)), self._read)
        reactor.call_soon(self._read)  # what came before it was watched

    def guard(self, socket: zmq.Socket[bytes]) -> None:
        """Have a socket ask for keys, before it is bound."""
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set(zmq.CURVE_SECRETKEY, self._pair.secret.encode())
        socket.set(zmq.ZAP_DOMAIN, _DOMAIN)
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody is let in where nobody answers
        socket.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)

    def knows(self, public: str) -> bool:
        """Whether the client with this key is let in, now."""
        return public in self._folder.known()

    def close(self) -> None:
        """Let nobody in any more."""
        self._reactor.forget(cast("int", self._socket.get(zmq.FD)))
        self._socket.close(0)

    def _read(self) -> None:
        for _ in range(_ANSWERED_AT_ONCE):
            if not cast("int", self._socket.get(zmq.EVENTS)) & int(zmq.POLLIN):
                return
            self._socket.send_multipart(self._answer(self._socket.recv_multipart()))
        self._reactor.call_soon(self._read)

    def _answer(self, question: list[bytes]) -> list[bytes]:
        """Return version, number, status code and text, who it is, and nothing more about it."""
        _, number, _, address, _, mechanism, *credentials = question
        key = credentials[0] if mechanism == b"CURVE" and credentials else b""
        public = z85.encode(key).decode() if len(key) == _KEY_BYTES else ""
        if public and self.knows(public):
            return [_VERSION, number, b"200", b"OK", public.encode(), b""]
        self._refused(address.decode(errors="replace"), public)
        return [_VERSION, number, b"400", b"this key is not known", b"", b""]

    def _refused(self, address: str, public: str) -> None:
        self._unnoted += 1
        if time.monotonic() < self._quiet_until:
            return
        others = f", and {self._unnoted - 1} more since the last was noted" if self._unnoted > 1 else ""
        self._note(f"refused {address} with key {public or 'of no kind'}, which {self._folder.path} lacks{others}")
        self._unnoted, self._quiet_until = 0, time.monotonic() + _QUIET_S
