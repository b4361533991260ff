"""A link over a unix stream, to a supervisor on this machine.

No thread stands between whoever sends, or waits, and the supervisor. What the socket has no room for is kept, and
sent by whoever sleeps here, or sends or reads next.

A signal handler may raise in the midst of anything here, as Ctrl-C does, and the stream must go on where it was.
So what a system call returns is put into a list by the very call of Python that makes it, and each step of what
follows either happens or not; see `StreamDecoder`.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from ..protocol.errors import InvalidRequest
from ..protocol.frames import StreamDecoder, stream_parts
from ..protocol.messages import Message
from ..protocol.tensors import Buffer
from .link import Arrived, Link, Loss
from .spinning import CLIENT_SPIN_S, Spinner

#: What is kept for a socket that is full before senders have to wait.
_KEPT_BYTES: Final = 64 << 20
#: While something is kept, one message in so many tries whether there is room: that costs a system call.
_TRY_EVERY: Final = 32
#: The most pieces that one sendmsg takes (IOV_MAX is 1024 on Linux).
_MAX_PIECES: Final = 512


class UnixLink(Link):
    """A connection that began with `Hello`.

    Args:
        sock: connected to a supervisor's control socket; the link owns it from now on.
        may_spin: whether who waits here may look again and again for a moment before it sleeps.
    """

    def __init__(self, sock: socket.socket, may_spin: Callable[[], bool] = lambda: False) -> None:
        super().__init__()
        sock.setblocking(False)
        self._socket = sock
        self._decoder = StreamDecoder()
        self._broken: InvalidRequest | None = None
        self._is_at_end = False
        self._read_bytes: list[int] = []  # of a read that is not accounted for
        self._has_undecoded = False
        self._unsent: deque[Buffer] = deque()
        self._unsent_bytes = 0
        self._sent_bytes: list[int] = []  # of a write that is not accounted for
        self._poller = select.poll()
        self._poller.register(sock.fileno(), select.POLLIN)
        self._poller.register(self._wake, select.POLLIN)
        self._spinner = Spinner(self._poll, may_spin, spin_s=CLIENT_SPIN_S)
        self._awaits_room = False  # whether the poller may

    @property
    def has_unsent(self) -> bool:
        """See `Link`."""
        return bool(self._unsent)

    def take(self) -> Arrived | None:
        """See `Link`."""
        if self._decoder.arrived:
            message, buffers, _ = self._decoder.arrived[0]
            taken = Arrived(message, buffers)
            del self._decoder.arrived[0]
            return taken
        if self._broken is not None:
            raise self._broken
        return None

    def sleep(self, timeout_ms: float | None) -> Loss:
        """See `Link`."""
        if self._has_undecoded or self._read_bytes or self._decoder.arrived or self._broken is not None:
            return ""
        if self._is_at_end or self._is_closed:
            return "gone"
        awaits_room = bool(self._unsent)
        if awaits_room or self._awaits_room:
            self._awaits_room = True  # it may, until it is known not to
            mask = select.POLLIN | select.POLLOUT if awaits_room else select.POLLIN
            self._poller.modify(self._socket.fileno(), mask)
            self._awaits_room = awaits_room
        for fd, mask in self._spinner.wait(None if timeout_ms is None else timeout_ms / 1000):
            if fd == self._wake:
                self._was_woken()
            elif mask & select.POLLOUT:
                with self._lock:
                    self._flush()
        return ""

    def _poll(self, timeout_s: float | None) -> list[tuple[int, int]]:
        return self._poller.poll(None if timeout_s is None else timeout_s * 1000)

    def _read(self) -> bool:
        is_filled = not self._has_undecoded and self._receive()
        if self._has_undecoded:
            try:
                self._decoder.decode()
            except InvalidRequest as error:
                self._broken = error
            self._has_undecoded = False
        return is_filled

    def _receive(self) -> bool:
        """Read once; return whether the memory for it was filled, so that there may be more."""
        space = self._decoder.space()
        if not self._read_bytes:
            try:
                self._read_bytes.extend(map(self._socket.recv_into, (space,)))
            except BlockingIOError:
                return False
            except OSError:
                self._is_at_end = True
                return False
        size_bytes = self._read_bytes[0]
        if not size_bytes:
            self._is_at_end = True
        self._has_undecoded = True
        self._decoder.wrote(size_bytes)
        self._read_bytes.clear()
        return size_bytes == len(space)

    def _try_send(self, message: Message, buffers: Sequence[Buffer]) -> bool:
        was_full = bool(self._unsent)
        if was_full and not self._has_room():
            return False
        pieces = _pieces(stream_parts(message, buffers))
        if was_full:  # what is kept is copied: the caller may change its arrays as soon as this returns
            self._keep([bytes(piece) for piece in pieces])
            return True
        self._keep(pieces)
        self._flush()
        if self._unsent:
            for index, piece in enumerate(self._unsent):
                self._unsent[index] = bytes(piece)
            self.wake_up()  # whoever sleeps shall wait for room, too
        return True

    def _has_room(self) -> bool:
        if self._unsent_bytes > _KEPT_BYTES or len(self._unsent) % _TRY_EVERY == 0:
            self._flush()
        return self._unsent_bytes <= _KEPT_BYTES

    def _keep(self, pieces: list[Buffer]) -> None:
        size_bytes = sum(map(len, pieces))
        self._unsent_bytes += size_bytes
        self._unsent.extend(pieces)

    def _flush(self) -> None:
        """Write what is kept, as far as the socket takes it."""
        unsent, sent_bytes = self._unsent, self._sent_bytes
        try:
            self._take_out_sent()
            while unsent:
                if len(unsent) == 1:
                    sent_bytes.extend(map(self._socket.send, (unsent[0],)))
                else:
                    sent_bytes.extend(map(self._socket.sendmsg, (list(islice(unsent, _MAX_PIECES)),)))
                self._take_out_sent()
        except BlockingIOError:
            return
        except OSError:  # nobody is there: whoever reads is told so
            unsent.clear()
            self._unsent_bytes = 0

    def _take_out_sent(self) -> None:
        """Take what was written out of what is kept."""
        while self._sent_bytes:
            sent_bytes, piece = self._sent_bytes[0], self._unsent[0]
            size_bytes = len(piece)
            if sent_bytes < size_bytes:
                rest = memoryview(piece)[sent_bytes:]
                self._unsent_bytes -= sent_bytes
                self._unsent[0] = rest
                del self._sent_bytes[0]
            elif sent_bytes == size_bytes:
                self._unsent_bytes -= size_bytes
                del self._unsent[0]
                del self._sent_bytes[0]
            else:
                self._unsent_bytes -= size_bytes
                del self._unsent[0]
                self._sent_bytes[0] = sent_bytes - size_bytes

    def _close(self, farewell: Message) -> None:
        self._try_send(farewell, ())
        self._socket.close()


def _pieces(parts: list[Buffer]) -> list[Buffer]:
    """Return as plain bytes what has any."""
    if len(parts) == 1:
        return parts
    views = [memoryview(part) for part in parts]
    return [view.cast("B") for view in views if view.nbytes]
