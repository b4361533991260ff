"""Unix streams: bytes however they are cut, and descriptors that come along or do not."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from random import Random
from typing import Any, Final, NamedTuple

import msgpack
from onecopy.pool.memory.files import FileRegion
from onecopy.protocol.channel import Channel
from onecopy.protocol.errors import InvalidRequest
from onecopy.protocol.frames import Received, StreamDecoder, pack_header, stream_parts
from onecopy.protocol.limits import MAX_FDS
from onecopy.protocol.messages import Admit, Cancel, LoadModel, MoreDescriptors, OfferFile, Ping, Reply

from .mutation import changed_msgpack
from .target import Target, require

_PREFIX: Final = struct.Struct("<BBHI")
_LIES: Final = (0, 1, 7, 253, 254, 255, 4096, 4097, 65_535, 64 << 20, (64 << 20) + 1, (1 << 32) - 1)
_SIZE_LIES: Final = (0, 1, 32 * 1024, (16 << 20) + 1, 16 << 30, (16 << 30) + 1, (1 << 64) - 1)
#: Of how few bytes the first pieces of a stream are, by its first byte.
_CUTS: Final = (1, 2, 7, 8, 9, 60, 1000, 40_000)
#: ... and how many they are at most.
_MOST_PIECES: Final = 500


class _Fed(NamedTuple):
    """What came out of a stream, and whether it broke off."""

    received: list[tuple[Any, list[bytes], int]]
    is_broken: bool


# --- a stream without descriptors ----------------------------------------------------------------------------


def check_stream(data: bytes) -> None:
    """The same messages come out, and the same end, however a stream is cut; the first byte says how."""
    if not data:
        return
    stream = data[1:]
    cut = max(_CUTS[data[0] % len(_CUTS)], len(stream) // _MOST_PIECES)
    whole, cut_up = _fed(StreamDecoder(), stream, len(stream)), _fed(StreamDecoder(8 + data[0]), stream, cut)
    require(whole == cut_up, f"cut into {cut} bytes: {cut_up} instead of {whole}")


def _fed(decoder: StreamDecoder, stream: bytes, size_bytes: int) -> _Fed:
    done, is_broken = 0, False
    with contextlib.suppress(InvalidRequest):
        is_broken = True
        while done < len(stream):
            space = decoder.space()
            count = min(size_bytes, len(space), len(stream) - done)
            space[:count] = stream[done : done + count]
            decoder.wrote(count)
            done += count
            decoder.decode()
        is_broken = False
    return _Fed([*map(_plain, decoder.arrived)], is_broken)


def _plain(one: Received) -> tuple[Any, list[bytes], int]:
    return pack_header(one.message), [bytes(buffer) for buffer in one.buffers], one.fds


def changed_stream(data: bytes, random: Random) -> bytes:
    """Return a stream of which one message is another, or lies about its sizes."""
    messages = list(_split(data[1:]))
    if not messages:
        return data
    index = random.randrange(len(messages))
    version, fds, sizes, header, rest = messages[index]
    lie, field = random.choice(_LIES), random.randrange(8)
    if field == 0:
        version = lie & 255
    elif field == 1:
        fds = lie & 255
    elif field == 2 and sizes:
        sizes[random.randrange(len(sizes))] = random.choice(_SIZE_LIES)
    elif field == 3:
        sizes = sizes * random.randint(2, 40)
    elif field == 4:
        messages = messages[:index] + messages[index + 1 :]
    elif field != 5:
        header = changed_msgpack(header, random)
    prefix = _PREFIX.pack(version, fds, len(sizes) & 65_535, lie if field == 5 else len(header))
    changed = prefix + struct.pack(f"<{len(sizes)}Q", *sizes) + header + rest
    parts = [_joined(*one) for one in messages]
    return data[:1] + b"".join([*parts[:index], changed, *parts[index + 1 :]])


def _split(stream: bytes) -> Iterator[tuple[int, int, list[int], bytes, bytes]]:
    """Yield version, descriptors, sizes, header and buffers of each message that is whole."""
    while len(stream) >= _PREFIX.size:
        version, fds, buffers, header_bytes = _PREFIX.unpack_from(stream)
        start = _PREFIX.size + buffers * 8
        if len(stream) < start + header_bytes:
            return
        sizes = [*struct.unpack_from(f"<{buffers}Q", stream, _PREFIX.size)]
        end = start + header_bytes + sum(sizes)
        yield version, fds, sizes, stream[start : start + header_bytes], stream[start + header_bytes : end]
        stream = stream[end:]


def _joined(version: int, fds: int, sizes: list[int], header: bytes, rest: bytes) -> bytes:
    return (
        _PREFIX.pack(version, fds, len(sizes), len(header))
        + struct.pack(f"<{len(sizes)}Q", *sizes)
        + header
        + rest
    )


def _streams() -> list[bytes]:
    sent: list[list[tuple[Any, list[bytes], int]]] = [
        [(Ping(), [], 0), (Cancel(12, kill=True), [], 0), (Admit(), [], 0)],
        [(Reply(1, 0.5, b"\x01", [[0, 64], []], []), [b"", b"abc", bytes(40_000)], 2), (Ping(), [], 0)],
        [(LoadModel("m", "import", {}, ["a:b", b"\x92\x90\x80"], b"", [], [], [], True, []), [], 0)],
    ]
    return [
        bytes([index]) + b"".join(bytes(part) for one in few for part in stream_parts(*one))
        for index, few in enumerate(sent)
    ]


# --- a control connection, where descriptors come along ------------------------------------------------------


def _open(kind: int) -> int:
    """Open something of a kind that somebody might send."""
    if kind == 0:
        read_fd, write_fd = os.pipe()
        os.close(write_fd)
        return read_fd
    if kind == 1:
        return os.eventfd(0)
    if kind == 2:
        return os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    if kind == 3:
        return os.open(os.devnull, os.O_RDWR)
    if kind == 4:
        return os.open(__file__, os.O_RDONLY)
    if kind == 5:
        return os.open(__file__, os.O_PATH)
    return os.memfd_create("fuzzing")


def check_control(data: bytes) -> None:
    """Every descriptor that comes belongs to one message or is closed; what is no file is refused as a region.

    The input is ``[[bytes, number of descriptors, their kind], …]`` in msgpack: what is sent at once.
    """
    try:
        pieces = msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, TypeError):
        return
    if type(pieces) is not list:
        return
    before = len(os.listdir("/proc/self/fd"))
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for sock in ends:
        sock.setblocking(False)
    channel = Channel(ends[1])
    with ends[0] as sender:
        with contextlib.suppress(OSError, InvalidRequest):
            for piece in pieces[:20]:
                _send(sender, piece)
                _receive(channel)
        sender.shutdown(socket.SHUT_WR)
        with contextlib.suppress(InvalidRequest):
            _receive(channel)
    channel.close()
    require(len(os.listdir("/proc/self/fd")) == before, "no descriptor is left open")


def _send(sender: socket.socket, piece: Any) -> None:
    if type(piece) is not list or [type(part) for part in piece] != [bytes, int, int] or not piece[0]:
        return
    stream, count, kind = piece
    fds = [_open(kind % 7) for _ in range(min(max(count, 0), MAX_FDS))]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        sender.sendmsg([stream], rights)
    finally:
        for fd in fds:
            os.close(fd)


def _receive(channel: Channel) -> None:
    for delivery in channel.arrived(until_empty=True):
        try:
            require(
                not any(map(os.get_inheritable, delivery.fds)), "a descriptor is closed where a program begins"
            )
            if isinstance(delivery.message, OfferFile) and len(delivery.fds) == 1:
                _offer(delivery.fds, delivery.message.path)
        finally:
            delivery.close_fds()


def _offer(fds: list[int], path: str) -> None:
    """Take a file as the supervisor does; it owns the descriptor if it is one."""
    try:
        offered = FileRegion.of(fds[0], path)
    except ValueError as error:
        require(bool(str(error)), "an error says what is wrong")
        return
    fds.clear()
    offered.close()


def _controls() -> list[bytes]:
    def stream(message: Any, fds: int) -> bytes:
        return b"".join(bytes(part) for part in stream_parts(message, (), fds))

    return [
        msgpack.packb([[stream(OfferFile("/weights"), 1), 1, kind] for kind in range(7)]),
        msgpack.packb([[stream(MoreDescriptors(), 253), 253, 0], [stream(OfferFile("/weights"), 1), 1, 4]]),
        msgpack.packb([[stream(OfferFile("/weights"), 2), 3, 1]]),
        msgpack.packb([[stream(Admit(), 0)[:4], 5, 6], [stream(Admit(), 0)[4:], 0, 0]]),
    ]


STREAM: Final = Target(check_stream, _streams, changed_stream)
CONTROL: Final = Target(check_control, _controls, changed_msgpack)
