"""Local clients over unix streams: one connection to the control socket that began with `Hello`.

No thread of ZeroMQ's stands between a request and whoever waits for it: measured on two cores, a bare relay over
unix streams takes 70 us for a request and its answer, over ZeroMQ 344 us.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from itertools import islice
from typing import Any, Final

from ...protocol.channel import Channel
from ...protocol.errors import PoolError
from ...protocol.messages import Hello, Message, Rejected
from .clients import Clients, Peer, Transport, check_outbox
from .reactor import Reactor

#: Messages of one client that are handled in one turn, so that others get theirs in between.
_READ_AT_ONCE: Final = 64
_DISCARDED_BYTES: Final = 1 << 16


class UnixPeer(Peer):
    """A connection, watched until it or its process ends."""

    transport: Transport = "unix"

    def __init__(self, channel: Channel, pid: int, pidfd: int, server: UnixServer) -> None:
        self.channel = channel
        self.pidfd = pidfd
        self.has_more = False  # of what was read, and is to be handled in the next turn
        self.is_leaving = False  # it is only told why
        self._pid = pid
        self._server = server

    def __repr__(self) -> str:
        return f"<UnixPeer pid={self._pid}, {self.channel.unsent_messages} unsent>"

    def send(self, message: Message, buffers: list[Any]) -> None:
        """See `Peer`; what has no buffers leaves at the end of the turn, together with others of its kind."""
        try:
            if not buffers:
                self.channel.send_soon(message)
                self._server.flush_later(self)
            else:
                self.channel.send(message, buffers)
        except OSError:
            self._server.lost(self)
        else:
            self.check_unsent()

    def check_unsent(self) -> None:
        """Wait for room if that is needed.

        Raises:
            PoolBusy: too much waits.
        """
        if self.channel.has_unsent:
            self._server.waits(self)
            check_outbox(self.channel.unsent_messages, self.channel.unsent_bytes)

    def reject(self, rejected: Rejected) -> None:
        """See `Peer`."""
        with contextlib.suppress(OSError):
            self.channel.flush()
            self.channel.drop_unsent()
            self.channel.send(rejected)
            self.is_leaving = self.channel.has_unsent

    def close(self) -> None:
        """See `Peer`."""
        if self.is_leaving:
            self._server.waits(self)
        else:
            self._server.end(self)


class UnixServer:
    """Reads what local clients send over unix streams.

    Args:
        clients: whom messages are for.
        reactor: whose epoll watches the connections.
    """

    def __init__(self, clients: Clients, reactor: Reactor) -> None:
        self._clients = clients
        self._reactor = reactor
        self._peers: set[UnixPeer] = set()
        self._unflushed: dict[UnixPeer, None] = {}
        reactor.end_with(self.flush)

    def add(self, channel: Channel, pid: int, pidfd: int, hello: Hello) -> None:
        """Take over a connection that has begun with a hello; its socket does not block."""
        channel.takes_fds = False
        peer = UnixPeer(channel, pid, pidfd, self)
        self._peers.add(peer)
        self._reactor.watch(channel.fileno(), lambda: self._readable(peer), lambda: self._writable(peer))
        self._reactor.watch(pidfd, lambda: self.lost(peer))
        self._clients.take(peer, hello, [])
        if peer in self._peers:
            self._handle(peer)  # what has come with the hello

    def flush_later(self, peer: UnixPeer) -> None:
        """Send what it is told soon at the end of this turn."""
        self._unflushed[peer] = None

    def flush(self) -> None:
        """Send what was kept to be sent together; to be called in every turn."""
        while self._unflushed:
            peer, _ = self._unflushed.popitem()
            try:
                peer.channel.flush()
                peer.check_unsent()
            except OSError:
                self.lost(peer)
            except PoolError as error:
                self._clients.reject(peer, error)

    def waits(self, peer: UnixPeer) -> None:
        """Send the rest as soon as there is room."""
        self._reactor.wants_to_write(peer.channel)

    def lost(self, peer: UnixPeer) -> None:
        """A peer is gone, or as good as that."""
        peer.is_leaving = False  # nobody is there any more who could be told
        self._clients.drop(peer)

    def end(self, peer: UnixPeer) -> None:
        """Hang up."""
        if peer not in self._peers:
            return
        with contextlib.suppress(OSError):
            peer.channel.flush()
        self._peers.discard(peer)
        self._unflushed.pop(peer, None)
        self._reactor.forget(peer.channel.fileno())
        self._reactor.forget(peer.pidfd)
        peer.channel.close()
        os.close(peer.pidfd)

    def close(self, linger_ms: int) -> None:
        """Hang up on everyone, after giving what was sent a moment to leave."""
        self.flush()
        self._linger(time.monotonic() + linger_ms / 1000)
        for peer in list(self._peers):
            self.end(peer)

    def _readable(self, peer: UnixPeer) -> None:
        if peer.is_leaving:
            self._discard(peer)
        elif not peer.has_more:  # what was read before it is handled first, in its own time
            self._handle(peer)

    def _go_on(self, peer: UnixPeer) -> None:
        peer.has_more = False
        if peer in self._peers and not peer.is_leaving:
            self._handle(peer)

    def _handle(self, peer: UnixPeer) -> None:
        """Handle what a client has sent, up to a bound."""
        channel = peer.channel
        try:
            for message, buffers, _ in islice(channel.arrived(), _READ_AT_ONCE):
                self._clients.take(peer, message, buffers)
                if peer.is_leaving or peer not in self._peers:
                    return
        except PoolError as error:
            self._clients.reject(peer, error)
            return
        except OSError:
            self.lost(peer)
            return
        if channel.has_arrived:
            peer.has_more = True
            self._reactor.call_soon(lambda: self._go_on(peer))
        elif channel.is_at_end:
            self.lost(peer)

    def _writable(self, peer: UnixPeer) -> None:
        try:
            peer.channel.flush()
        except OSError:
            self.lost(peer)
            return
        if peer.is_leaving and not peer.channel.has_unsent:
            self.end(peer)

    def _discard(self, peer: UnixPeer) -> None:
        try:
            is_at_end = not peer.channel.socket.recv(_DISCARDED_BYTES)
        except BlockingIOError:
            return
        except OSError:
            is_at_end = True
        if is_at_end:
            self.end(peer)

    def _linger(self, deadline: float) -> None:
        """Send what waits for readers who are slow, as long as there is time."""
        poller = select.poll()
        waiting = {peer.channel.fileno(): peer for peer in self._peers if peer.channel.has_unsent}
        for fd in waiting:
            poller.register(fd, select.POLLOUT)
        while waiting and (left_s := deadline - time.monotonic()) > 0:
            for fd, _ in poller.poll(left_s * 1000):
                if _is_flushed(waiting[fd].channel):
                    poller.unregister(fd)
                    del waiting[fd]


def _is_flushed(channel: Channel) -> bool:
    """Write what waits; return whether nothing is left, or nobody is there to read it."""
    with contextlib.suppress(OSError):
        channel.flush()
        return not channel.has_unsent
    return True
