"""Message <-> bytes: a ZeroMQ multipart, or a length-prefixed piece of a stream.

The header of a message is ``msgpack([WIRE_VERSION, number, *fields])``. Its buffers follow untouched, so that
whoever relays a message reads the header alone.

* Multipart: frame 0 is the header, each further frame one buffer.
* Stream: a prefix ``<BBHI`` (version, number of fds, number of buffers, header size in bytes), the buffers'
  sizes as ``<Q`` each, the header, the buffers. The fds come as ``SCM_RIGHTS`` with the prefix's first byte.

Everything here is pure: bytes in, messages out. `channel` does the input and output.
"""

from __future__ import annotations

import mmap
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

import msgpack

from .errors import InvalidRequest
from .items import check_items
from .limits import MAX_BUFFER_BYTES, MAX_BUFFERS, MAX_FDS, MAX_HEADER_BYTES, PACKER_BYTES, WIRE_VERSION
from .mapping import MAP_NORESERVE
from .messages import NUMBERS, Message, parse
from .tensors import Buffer

_PREFIX: Final = struct.Struct("<BBHI")
_SIZE: Final = struct.Struct("<Q")
#: What msgpack raises for broken input: kinds of `ValueError`, and `TypeError` for what cannot be a key; and there
#: may be no memory for lengths that are true. Anything else comes from elsewhere, from a signal handler say.
_BROKEN: Final = (ValueError, TypeError, MemoryError)
#: Headers above this have their items counted before they are unpacked; smaller ones cannot hold many.
_COUNTED_BYTES: Final = 64 * 1024
#: Buffers below this are read together with what surrounds them; above, straight into their own memory.
_OWN_READ_BYTES: Final = 32 * 1024
#: Buffers above this are mapped, not allocated: their pages are taken as bytes come, so that a peer that lies
#: about a size costs nothing. (A bytearray is written with zeros when it is made.)
_MAPPED_BYTES: Final = 16 << 20


class Received(NamedTuple):
    """One message as it arrived; ``fds`` is how many file descriptors belong to it."""

    message: Message
    buffers: list[Any]
    fds: int


def pack_header(message: Message) -> bytes:
    """Return the header frame of a message."""
    packer = msgpack.Packer(buf_size=PACKER_BYTES)
    return cast(bytes, packer.pack([WIRE_VERSION, NUMBERS[type(message)], *message]))


def unpack_header(header: Buffer) -> Message:
    """Return the message of a header frame.

    Raises:
        InvalidRequest: it is too large, not msgpack, of another version, or no known message.
    """
    if len(header) > MAX_HEADER_BYTES:
        raise InvalidRequest(f"a header of {len(header):,} bytes; at most {MAX_HEADER_BYTES:,}")
    if len(header) > _COUNTED_BYTES:
        check_items(header)
    try:
        fields = msgpack.unpackb(header, strict_map_key=False)
    except _BROKEN as error:
        raise InvalidRequest(f"broken header: {type(error).__name__}: {error}") from error
    if type(fields) is not list or len(fields) < 2:
        raise InvalidRequest("broken header: not a list of version, number and fields")
    version, number, *rest = cast("list[Any]", fields)
    if type(version) is not int or type(number) is not int:
        raise InvalidRequest("broken header: version and message number must be integers")
    if version != WIRE_VERSION:
        raise InvalidRequest(f"wire version {version}; this side speaks {WIRE_VERSION}")
    return parse(number, rest)


def check_buffers(sizes_bytes: Sequence[int]) -> None:
    """Raise `InvalidRequest` if the buffers of a message are too many or one is too large."""
    if len(sizes_bytes) > MAX_BUFFERS:
        raise InvalidRequest(f"{len(sizes_bytes)} buffers; at most {MAX_BUFFERS}")
    for size_bytes in sizes_bytes:
        if size_bytes > MAX_BUFFER_BYTES:
            raise InvalidRequest(f"a buffer of {size_bytes:,} bytes; at most {MAX_BUFFER_BYTES:,}")


def multipart(message: Message, buffers: Sequence[Buffer] = ()) -> list[Buffer]:
    """Return the frames of a message.

    Raises:
        InvalidRequest: the other side would refuse it: a limit is exceeded.
    """
    if buffers:
        check_buffers([memoryview(buffer).nbytes for buffer in buffers])
    return [_checked_header(message, 0), *buffers]


def stream_parts(message: Message, buffers: Sequence[Buffer] = (), fds: int = 0) -> list[Buffer]:
    """Return the pieces that stand for a message in a stream, small ones joined.

    Raises:
        InvalidRequest: the other side would refuse it: a limit is exceeded.
    """
    header = _checked_header(message, fds)
    if not buffers:
        return [_PREFIX.pack(WIRE_VERSION, fds, 0, len(header)) + header]
    sizes_bytes = [memoryview(buffer).nbytes for buffer in buffers]
    check_buffers(sizes_bytes)
    prefix = _PREFIX.pack(WIRE_VERSION, fds, len(buffers), len(header))
    sizes = struct.pack(f"<{len(sizes_bytes)}Q", *sizes_bytes)
    return [prefix + sizes + header, *buffers]


def _checked_header(message: Message, fds: int) -> bytes:
    header = pack_header(message)
    if fds > MAX_FDS or len(header) > MAX_HEADER_BYTES:
        what = f"{type(message).__name__} with {fds} fds and {len(header):,} header bytes"
        raise InvalidRequest(f"{what}: at most {MAX_FDS} and {MAX_HEADER_BYTES:,} can travel")
    if len(header) > _COUNTED_BYTES:
        check_items(header)
    return header


class StreamDecoder:
    """Turns the bytes of a stream into messages, however they are cut.

    Read into `space`, tell `wrote` how much came, and `decode`; the messages are in `arrived`. A large buffer is
    read straight into the memory in which it is handed on.

    A signal handler may raise in the midst of this, as Ctrl-C does, and whoever goes on afterwards loses nothing.
    Python looks for signals where a function begins, where a loop goes on, and after a call of something in C. So
    each step ends with a few assignments and at most one such call, and either all of them happen or none.

    Attributes:
        arrived: complete messages, for the reader to take.
    """

    def __init__(self, read_bytes: int = 256 * 1024) -> None:
        self.arrived: deque[Received] = deque()
        # Mapped, because its pages are taken only as far as bytes ever come.
        self._scratch = memoryview(mmap.mmap(-1, read_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self._start = self._end = 0  # what of the scratch memory was read and is not taken out yet
        self._pending = bytearray()  # what came before that
        self._large: memoryview | None = None  # the buffer that is being filled in place
        self._filled = 0
        self._prefix: tuple[int, int, int] | None = None  # fds, buffers, header size
        self._sizes: tuple[int, ...] = ()
        self._header: Message | None = None
        self._buffers: list[Any] = []

    def close(self) -> None:
        """Give the memory back that was read into: nothing more will be. May be called again."""
        self._scratch = memoryview(bytearray())
        self._start = self._end = 0

    def space(self) -> memoryview:
        """Return the memory that the next bytes of the stream belong into."""
        if self._large is not None:
            return self._large[self._filled :]
        left = self._end - self._start
        self._scratch[:left] = self._scratch[self._start : self._end]
        self._start, self._end = 0, left
        return self._scratch[left:]

    def wrote(self, size_bytes: int) -> None:
        """Take over this many bytes from the start of what `space` returned."""
        if self._large is not None:
            self._filled += size_bytes
        else:
            self._end += size_bytes

    @property
    def is_between_messages(self) -> bool:
        """Whether the stream could end here without cutting a message."""
        return self._prefix is None and not self._pending and self._start == self._end

    def decode(self) -> None:
        """Add every message that is complete to `arrived`.

        Raises:
            InvalidRequest: what came is not a message, or beyond a limit; the stream is unusable from here.
        """
        if self._prefix is None and not self._pending and self._take_whole():
            return
        self._pending += self._scratch[self._start : self._end]
        self._start = self._end = 0
        while self._step():
            continue

    def _take_whole(self) -> bool:
        """Take the messages without buffers that lie in the scratch memory: this is the short way of most.

        Returns:
            Whether that is all there is, but for the beginning of another such message that has room there.
        """
        scratch, arrived, end_of_read = self._scratch, self.arrived, self._end
        while (start := self._start + _PREFIX.size) <= end_of_read:
            version, fds, buffers, header_bytes = _PREFIX.unpack_from(scratch, self._start)
            end = start + header_bytes
            if version != WIRE_VERSION or buffers or fds > MAX_FDS:
                return False
            if end > end_of_read:
                return end - self._start <= len(scratch)
            received = Received(unpack_header(scratch[start:end]), [], fds)
            self._start = end
            arrived.append(received)
        return len(scratch) >= _PREFIX.size

    def _step(self) -> bool:
        """Advance by one part of a message; false if more bytes are needed first."""
        if self._prefix is None:
            return self._read_prefix()
        if self._header is None:
            return self._read_header()
        if self._large is not None:
            return self._end_large()
        if len(self._buffers) < len(self._sizes):
            return self._read_buffer()
        received = Received(self._header, self._buffers, self._prefix[0])
        self._prefix, self._header, self._sizes, self._buffers = None, None, (), []
        self.arrived.append(received)
        return True

    def _read_prefix(self) -> bool:
        if len(self._pending) < _PREFIX.size:
            return False
        version, fds, buffers, header_bytes = _PREFIX.unpack_from(self._pending)
        if version != WIRE_VERSION:
            raise InvalidRequest(f"wire version {version}; this side speaks {WIRE_VERSION}")
        if fds > MAX_FDS or buffers > MAX_BUFFERS or header_bytes > MAX_HEADER_BYTES:
            raise InvalidRequest(f"{fds} fds, {buffers} buffers, {header_bytes:,} header bytes: beyond limits")
        self._prefix = (fds, buffers, header_bytes)
        del self._pending[: _PREFIX.size]
        return True

    def _read_header(self) -> bool:
        assert self._prefix is not None
        _, buffers, header_bytes = self._prefix
        start = buffers * _SIZE.size
        end = start + header_bytes
        if len(self._pending) < end:
            return False
        sizes_bytes = struct.unpack_from(f"<{buffers}Q", self._pending)
        check_buffers(sizes_bytes)
        header = unpack_header(self._pending[start:end])
        self._header, self._sizes = header, sizes_bytes
        del self._pending[:end]
        return True

    def _read_buffer(self) -> bool:
        wanted, there = self._sizes[len(self._buffers)], len(self._pending)
        if there >= wanted:
            taken = self._pending[:wanted]
            del self._pending[:wanted]
            self._buffers.append(taken)
            return True
        if wanted < _OWN_READ_BYTES:
            return False
        large = memoryview(_memory(wanted))
        large[:there] = self._pending
        self._large, self._filled = large, there
        self._pending.clear()
        return True

    def _end_large(self) -> bool:
        assert self._large is not None
        if self._filled < len(self._large):
            return False
        whole, self._large = self._large.obj, None
        self._buffers.append(whole)
        return True


def _memory(size_bytes: int) -> bytearray | mmap.mmap:
    if size_bytes <= _MAPPED_BYTES:
        return bytearray(size_bytes)
    try:
        return mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except OSError as error:
        raise InvalidRequest(f"a buffer of {size_bytes:,} bytes: {error.strerror}") from error
