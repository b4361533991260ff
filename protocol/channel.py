"""A unix stream socket that carries messages and file descriptors.

Used wherever two of the pool's processes talk without ZeroMQ: supervisor and zygote, loader, worker; an app's
or the command line's control connection; the supervisor's end of a local client's requests. The socket may be
blocking (children, apps) or not (supervisor).

File descriptors arrive with the first byte of the message they belong to. The kernel never merges what was
sent with descriptors into what came after, so they can be kept in one queue: each message says how many of
them are its own.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from .errors import InvalidRequest
from .frames import StreamDecoder, stream_parts
from .limits import MAX_FDS, MAX_FDS_AHEAD
from .messages import Message, MoreDescriptors
from .tensors import Buffer

#: Plain integers: arithmetic with the socket module's enumerations takes microseconds.
_CLOEXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
_CUT: Final = int(socket.MSG_CTRUNC)
_RIGHTS: Final = (int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS))
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
#: The most pieces that one sendmsg takes (IOV_MAX is 1024 on Linux).
_MAX_PIECES: Final = 512
#: How much is sent together at most, but for the last message of it.
_TOGETHER_BYTES: Final = 256 * 1024


class Delivery(NamedTuple):
    """A received message with its buffers and descriptors; the receiver owns the descriptors."""

    message: Message
    buffers: list[Any]
    fds: list[int]

    def close_fds(self) -> None:
        """Close every descriptor that was not taken out of the list."""
        _close_all(self.fds)
        self.fds.clear()


class Unsent(NamedTuple):
    """Something that waits for room in the socket: pieces and descriptors, and what they were to begin with."""

    parts: list[Buffer]
    fds: list[int]
    messages: int
    size_bytes: int


class Channel:
    """One end of a connection.

    Args:
        sock: a connected ``AF_UNIX`` ``SOCK_STREAM`` socket; the channel owns it from now on.

    Attributes:
        takes_fds: whether descriptors may arrive. Where none may, the kernel drops those that are sent all the
            same, and reading is quicker.
        unsent_messages, unsent_bytes: how much waits for room in the socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.takes_fds = True
        self._decoder = StreamDecoder()
        self._fds: deque[int] = deque()
        self._ahead: list[int] = []  # came before the message that they belong to
        self._unsent: deque[Unsent] = deque()
        self.unsent_messages = self.unsent_bytes = 0
        self._soon: list[Buffer] = []
        self._soon_bytes = 0
        self._ready: deque[Delivery] = deque()
        self._broken: InvalidRequest | None = None  # raised once what came before is delivered
        self.is_at_end = False

    def __repr__(self) -> str:
        state = "at end" if self.is_at_end else "open"
        return f"<Channel fd={self._sock.fileno()} {state}, {len(self._unsent)} unsent>"

    def fileno(self) -> int:
        """Return the socket's descriptor, for polling."""
        return self._sock.fileno()

    @property
    def socket(self) -> socket.socket:
        """The socket underneath, for its options and credentials."""
        return self._sock

    @property
    def has_unsent(self) -> bool:
        """Whether `flush` has work once the socket takes more."""
        return bool(self._unsent)

    @property
    def has_arrived(self) -> bool:
        """Whether `arrived` has something without reading."""
        return bool(self._ready) or self._broken is not None

    def send(self, message: Message, buffers: Sequence[Buffer] = (), fds: Sequence[int] = ()) -> None:
        """Send a message; on a non-blocking socket what does not fit now is kept for `flush`.

        Descriptors are duplicated before this returns; the caller keeps its own.

        Raises:
            OSError: the other end is gone.
        """
        self._send_what_was_to_be_sent_soon()
        ahead = max(0, len(fds) - 1) // MAX_FDS * MAX_FDS
        parts = stream_parts(message, buffers, len(fds) - ahead)  # raises before anything is sent
        for start in range(0, ahead, MAX_FDS):
            self.send(MoreDescriptors(), (), fds[start : start + MAX_FDS])
        fds = fds[ahead:]
        if not self._unsent:
            parts, fds = self._write(parts, list(fds))
        if parts:
            self._keep(parts, _duplicates(fds), 1)

    def send_soon(self, message: Message) -> None:
        """Have a message without buffers sent by the next `flush` or `send`, together with others of its kind.

        Raises:
            InvalidRequest: the other side would refuse it: a limit is exceeded.
            OSError: the other end is gone.
        """
        [part] = stream_parts(message)
        self._soon.append(part)
        self._soon_bytes += len(part)
        if self._soon_bytes >= _TOGETHER_BYTES:
            self._send_what_was_to_be_sent_soon()

    def flush(self) -> None:
        """Write what is kept, as far as the socket takes it."""
        self._send_what_was_to_be_sent_soon()
        while self._unsent:
            kept = self._unsent[0]  # it stays there until it is written, so that `close` finds its fds
            left, fds_left = self._write(kept.parts, kept.fds)
            if not fds_left:
                _close_all(kept.fds)
            if left:
                self._unsent[0] = kept._replace(parts=left, fds=fds_left)
                return
            self._drop(0)

    def drop_unsent(self) -> None:
        """Never send what is kept, but for the first of it, which may have been sent in part."""
        self._soon, self._soon_bytes = [], 0
        while len(self._unsent) > 1:
            _close_all(self._unsent[-1].fds)
            self._drop(-1)

    def receive(self) -> Delivery | None:
        """Block until a message is there; None when the other end is closed.

        Raises:
            InvalidRequest: the stream is broken; close the channel.
            OSError: the connection failed.
        """
        while not self._ready:
            if self.is_at_end:
                return None
            self._read_once()
        return self._ready.popleft()

    def arrived(self, *, until_empty: bool = False) -> Iterator[Delivery]:
        """Yield what can be had without blocking (non-blocking sockets); sets `is_at_end` at the end.

        Args:
            until_empty: go on until the socket says that it has nothing more, which costs a call. Otherwise this
                may return before, to be called again when the socket is polled.

        Raises:
            InvalidRequest: the stream is broken, after what came before was yielded; close the channel.
            OSError: the connection failed.
        """
        has_more = True
        while True:
            while self._ready:
                yield self._ready.popleft()
            if self.is_at_end or not has_more:
                return
            try:
                has_more = self._read_once() or until_empty
            except BlockingIOError:
                return

    def close(self) -> None:
        """Close the socket and every descriptor that nobody took, and give memory back; may be called again."""
        self._sock.close()
        self._decoder.close()
        _close_all([*self._fds, *self._ahead])
        self._fds.clear()
        self._ahead.clear()
        for delivery in self._ready:
            _close_all(delivery.fds)
        self._ready.clear()
        while self._unsent:
            _close_all(self._unsent[0].fds)
            self._drop(0)

    def _send_what_was_to_be_sent_soon(self) -> None:
        if not self._soon:
            return
        parts, self._soon, self._soon_bytes = self._soon, [], 0
        joined: list[Buffer] = parts if len(parts) == 1 else [b"".join(parts)]
        left = joined if self._unsent else self._write(joined, [])[0]
        if left:
            self._keep(left, [], len(parts))

    def _keep(self, parts: list[Buffer], fds: list[int], messages: int) -> None:
        size_bytes = sum(memoryview(part).nbytes for part in parts)
        self._unsent.append(Unsent(parts, fds, messages, size_bytes))
        self.unsent_messages += messages
        self.unsent_bytes += size_bytes

    def _drop(self, index: int) -> None:
        dropped = self._unsent[index]
        del self._unsent[index]
        self.unsent_messages -= dropped.messages
        self.unsent_bytes -= dropped.size_bytes

    def _write(self, parts: list[Buffer], fds: list[int]) -> tuple[list[Buffer], list[int]]:
        """Write until done or the socket is full; return the pieces and descriptors that are left."""
        try:
            if fds:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                parts, fds = _without(parts, self._sock.sendmsg(parts[:1], rights)), []
            while parts:
                is_one = len(parts) == 1
                sent = self._sock.send(parts[0]) if is_one else self._sock.sendmsg(parts[:_MAX_PIECES])
                parts = [] if is_one and sent == len(parts[0]) else _without(parts, sent)
        except BlockingIOError:
            pass
        return parts, fds

    def _read_once(self) -> bool:
        """Read what is there; return whether the memory for it was filled, so that there may be more."""
        if self._broken is not None:
            raise self._broken
        space = self._decoder.space()
        try:
            size_bytes = self._read_with_fds(space) if self.takes_fds else self._sock.recv_into(space)
        except ConnectionResetError:  # it was closed with things unread; all that it had sent was received before
            size_bytes = 0
        if size_bytes == 0 and len(space) > 0:
            self.is_at_end = True
            return False
        self._decoder.wrote(size_bytes)
        try:
            self._take_messages()
        except InvalidRequest as error:
            self._broken = error
            if not self._ready:
                raise
            return True
        return size_bytes == len(space)

    def _read_with_fds(self, space: memoryview) -> int:
        size_bytes, ancillary, flags, _ = self._sock.recvmsg_into([space], _ANCILLARY_BYTES, _CLOEXEC)
        for level, kind, data in ancillary:
            if (level, kind) == _RIGHTS:
                received = array.array("i")
                received.frombytes(data[: len(data) - len(data) % received.itemsize])
                self._fds.extend(received)
        if flags & _CUT:
            raise InvalidRequest("file descriptors were lost on the way: this process has too many open")
        return size_bytes

    def _take_messages(self) -> None:
        arrived = self._decoder.arrived
        try:
            self._decoder.decode()
        finally:
            while arrived:
                self._take(*arrived.popleft())
        # Only a message that has begun can have fds waiting here; others would pile up, and shift the order.
        if len(self._fds) > (0 if self._decoder.is_between_messages else MAX_FDS):
            raise InvalidRequest(f"{len(self._fds)} fds came that no message claims")

    def _take(self, message: Message, buffers: list[Any], count: int) -> None:
        """Give a message its descriptors."""
        if count > len(self._fds):
            raise InvalidRequest(f"{type(message).__name__} came with {len(self._fds)} fds instead of {count}")
        fds = [self._fds.popleft() for _ in range(count)] if count else []
        if type(message) is MoreDescriptors:
            self._ahead += fds
            if len(self._ahead) > MAX_FDS_AHEAD:
                raise InvalidRequest(f"{len(self._ahead)} fds came ahead of their message")
            return
        if self._ahead:
            fds, self._ahead = [*self._ahead, *fds], []
        self._ready.append(Delivery(message, buffers, fds))


def _without(parts: list[Buffer], sent_bytes: int) -> list[Buffer]:
    """Return the pieces that are left after this many bytes of them were written."""
    for index, part in enumerate(parts):
        size_bytes = memoryview(part).nbytes
        if sent_bytes < size_bytes:
            return [memoryview(part).cast("B")[sent_bytes:], *parts[index + 1 :]]
        sent_bytes -= size_bytes
    return []


def _duplicates(fds: Sequence[int]) -> list[int]:
    made: list[int] = []
    try:
        for fd in fds:
            made.append(os.dup(fd))  # noqa: PERF401 - those made are closed if one fails
    except OSError:
        _close_all(made)
        raise
    return made


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
