"""The unix socket: where local processes of the same user are admitted, and where code may enter.

The kernel tells who is at the other end. A connection stands for its process: when that ends, whatever it
held ends too. Its pidfd tells, because the end of the stream alone can be held off by a forked child that
inherited the socket.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final

from ...protocol.channel import Channel, Delivery
from ...protocol.errors import InvalidRequest, PoolError
from ...protocol.limits import MAX_OUTBOX_BYTES, MAX_OUTBOX_MESSAGES
from ...protocol.messages import Message, Refused
from ..peers import peer_of, peer_pidfd
from .reactor import Reactor

_BACKLOG: Final = 256
#: Messages of one connection that are handled in one turn, so that others get theirs in between.
_READ_AT_ONCE: Final = 64
_UNSEEN: Final = (
    "you are in a namespace of processes that is not seen from this pool's, and this kernel cannot tell when you "
    "end, as Linux 6.5 can; share the namespace (docker: --pid), or connect over tcp"
)


class Connection:
    """A local process that talks to the supervisor.

    Attributes:
        pid: whose it is.
        is_owner: whether the pool ends with it.
        follows_logs: whether it wants new lines.
    """

    def __init__(self, channel: Channel, pid: int, pidfd: int, *, is_owner: bool) -> None:
        self.channel = channel
        self.pid = pid
        self.pidfd = pidfd
        self.is_owner = is_owner
        self.follows_logs = False

    def __repr__(self) -> str:
        return f"<Connection pid={self.pid}{' owner' if self.is_owner else ''}>"


class ControlServer:
    """Accepts local processes and reads what they send.

    Args:
        reactor: whose epoll watches the sockets.
        received: called with each message; it answers with `send`.
        ended: called with a connection whose process is gone or has hung up.
    """

    def __init__(
        self,
        reactor: Reactor,
        *,
        received: Callable[[Connection, Delivery], None],
        ended: Callable[[Connection], None],
    ) -> None:
        self._reactor = reactor
        self._received = received
        self._ended = ended
        self._listener: socket.socket | None = None
        self.connections: set[Connection] = set()

    def listen(self, path: str) -> None:
        """Accept connections at a path; only processes of this user can be in its folder."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(_BACKLOG)
        self._listener.setblocking(False)
        self._reactor.watch(self._listener.fileno(), self._accept)

    def add(self, channel: Channel, pid: int, pidfd: int, *, is_owner: bool) -> Connection:
        """Take in a connected process."""
        channel.socket.setblocking(False)
        connection = Connection(channel, pid, pidfd, is_owner=is_owner)
        self.connections.add(connection)
        self._reactor.watch(channel.fileno(), lambda: self._readable(connection), channel.flush)
        self._reactor.watch(pidfd, lambda: self.end(connection))
        return connection

    def send(self, connection: Connection, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message; if the process is just ending, that will be noticed.

        One that does not read what it is sent is hung up on.
        """
        if connection not in self.connections:
            return
        channel = connection.channel
        with contextlib.suppress(OSError):
            channel.send(message, fds=fds)
            self._reactor.wants_to_write(channel)
        if channel.unsent_messages > MAX_OUTBOX_MESSAGES or channel.unsent_bytes > MAX_OUTBOX_BYTES:
            self.end(connection)

    def end(self, connection: Connection) -> None:
        """Hang up."""
        if connection in self.connections:
            self.release(connection)
            connection.channel.close()
            os.close(connection.pidfd)
            del connection.channel  # whoever remembers who that was, as the flight recorder does, keeps little

    def release(self, connection: Connection) -> None:
        """Have nothing more to do with a connection; its channel and pidfd are the caller's from now on."""
        self.connections.discard(connection)
        self._reactor.forget(connection.channel.fileno())
        self._reactor.forget(connection.pidfd)
        self._ended(connection)

    def close(self) -> None:
        """Hang up on everyone, quietly."""
        if self._listener is not None:
            self._reactor.forget(self._listener.fileno())
            self._listener.close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.channel.flush()
            self._reactor.forget(connection.channel.fileno())
            self._reactor.forget(connection.pidfd)
            connection.channel.close()
            os.close(connection.pidfd)
        self.connections.clear()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:  # the peer has given up already, or no descriptor is left: later ones may do better
            return
        pid, uid = peer_of(sock)
        if uid != os.getuid():
            _refuse(sock, f"this pool belongs to uid {os.getuid()}; you are uid {uid}")
            return
        try:
            pidfd = peer_pidfd(sock)
        except OSError:  # it is gone, unless it could not be seen from the beginning
            _refuse(sock, "" if pid else _UNSEEN)
            return
        self.add(Channel(sock), pid, pidfd, is_owner=False)

    def _readable(self, connection: Connection) -> None:
        if connection not in self.connections:
            return
        try:
            for count, delivery in enumerate(connection.channel.arrived(), 1):
                self._received(connection, delivery)
                if connection not in self.connections:
                    return
                if count == _READ_AT_ONCE and connection.channel.has_arrived:
                    self._reactor.call_soon(lambda: self._readable(connection))
                    return
        except PoolError as error:
            self.send(connection, Refused(error.to_record()))
            self.end(connection)
            return
        except OSError:
            self.end(connection)
            return
        if connection.channel.is_at_end:
            self.end(connection)


def _refuse(sock: socket.socket, reason: str) -> None:
    """Hang up on somebody who was not let in, and say why if that is known."""
    if reason:
        with contextlib.suppress(OSError):
            Channel(sock).send(Refused(InvalidRequest(reason).to_record()))
    sock.close()
