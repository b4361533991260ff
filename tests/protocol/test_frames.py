"""Frames: the same messages however the bytes are cut, large buffers in place, and lies refused cheaply."""

import resource
import struct
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onecopy.protocol import frames
from onecopy.protocol.errors import InvalidRequest
from onecopy.protocol.frames import StreamDecoder, check_buffers, pack_header, stream_parts, unpack_header
from onecopy.protocol.limits import (
    MAX_BODY_BYTES,
    MAX_BUFFER_BYTES,
    MAX_BUFFERS,
    MAX_FDS,
    MAX_HEADER_BYTES,
    WIRE_VERSION,
)
from onecopy.protocol.messages import Admit, Cancel, Done, Item, Ping, Pong, Ran, Reply, Submit

MESSAGES = st.sampled_from(
    [
        Ping(),
        Cancel(12, True),
        Item(12, b"body"),
        Done("x" * 300),
        Submit(1, "m", "", 0.5, 1, -5, "user 7", 3, 0, b"body" * 500, [], []),
        Ran(3, 0.1, [[b"body", [], [], 2], {"code": "model_error", "message": "no", "details": {}}]),
    ]
)
BUFFERS = st.lists(st.sampled_from([b"", b"a", b"small" * 100, b"large" * 10_000, bytes(70_000)]), max_size=3)
SENT = st.lists(st.tuples(MESSAGES, BUFFERS, st.integers(0, MAX_FDS)), max_size=4)


def stream_of(sent):
    return b"".join(bytes(part) for one in sent for part in stream_parts(*one))


def feed(decoder, stream, sizes):
    """Feed a stream in pieces of these sizes (the last one repeated); return what came out."""
    received = []
    sizes = iter(sizes)
    done, size = 0, 1
    while done < len(stream):
        size = next(sizes, size)
        space = decoder.space()
        count = min(size, len(space), len(stream) - done)
        space[:count] = stream[done : done + count]
        decoder.wrote(count)
        done += count
        decoder.decode()
        received.extend(decoder.arrived)
        decoder.arrived.clear()
    return [(one.message, [bytes(buffer) for buffer in one.buffers], one.fds) for one in received]


@settings(deadline=None)
@given(
    SENT,
    st.lists(st.integers(1, 5000), min_size=1, max_size=200),
    st.integers(300, 300_000),
    st.sampled_from([7, 8, 60, 1000, 256 * 1024]),
)
def test_however_a_stream_is_cut_the_messages_are_the_same(sent, sizes, last, read_bytes):
    decoder = StreamDecoder(read_bytes)
    assert feed(decoder, stream_of(sent), [*sizes, last]) == sent
    assert decoder.is_between_messages


@settings(deadline=None)
@given(SENT.filter(bool), st.data())
def test_a_stream_that_ends_early_is_known_to_be_cut(sent, data):
    stream = stream_of(sent)
    cut = data.draw(st.integers(1, len(stream) - 1))
    decoder = StreamDecoder()
    received = feed(decoder, stream[:cut], [100_000])
    assert received == sent[: len(received)]
    assert decoder.is_between_messages == (len(stream_of(sent[: len(received)])) == cut)


def test_one_byte_at_a_time_is_enough():
    sent = [(Cancel(1, False), [b"", b"abc"], 2), (Ping(), [], 0)]
    assert feed(StreamDecoder(read_bytes=1), stream_of(sent), [1]) == sent


def test_a_large_buffer_is_read_straight_into_the_memory_that_is_handed_on():
    payload = bytes(range(256)) * 4096
    stream = stream_of([(Ping(), [payload], 0)])
    decoder = StreamDecoder()
    head = len(stream) - len(payload)
    assert feed(decoder, stream[:head], [head]) == []
    space = decoder.space()
    assert len(space) == len(payload)
    space[:] = payload
    decoder.wrote(len(payload))
    decoder.decode()
    [received] = decoder.arrived
    assert received.buffers == [payload]
    assert type(received.buffers[0]) is bytearray
    assert space.obj is received.buffers[0]


def test_very_large_buffers_arrive_in_mapped_memory(monkeypatch):
    monkeypatch.setattr(frames, "_MAPPED_BYTES", 40_000)
    sent = [(Ping(), [bytes([index]) * (100_000 + index) for index in range(3)], 1), (Pong(), [b"x"], 0)]
    for sizes in ([7919], [1 << 20], [33_000, 3, 50_000]):
        assert feed(StreamDecoder(), stream_of(sent), sizes) == sent


def prefix(version=WIRE_VERSION, fds=0, buffers=0, header_bytes=0, sizes=()):
    return struct.pack("<BBHI", version, fds, buffers, header_bytes) + struct.pack(f"<{len(sizes)}Q", *sizes)


def test_sizes_that_lie_cost_little_memory():
    header = pack_header(Ping())
    lies = [
        prefix(header_bytes=MAX_HEADER_BYTES),
        prefix(buffers=MAX_BUFFERS, header_bytes=MAX_HEADER_BYTES),
        prefix(buffers=3, header_bytes=len(header), sizes=[MAX_BUFFER_BYTES] * 3) + header,
    ]
    decoders = [StreamDecoder() for _ in lies]
    before = resident_bytes()
    for decoder, lie in zip(decoders, lies, strict=True):
        assert feed(decoder, lie + b"x" * 1000, [100]) == []
    assert resident_bytes() - before < 4 << 20
    assert len(decoders[-1].space()) > MAX_BUFFER_BYTES - 10_000  # it waits for all of it, in untouched memory


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (prefix(version=WIRE_VERSION + 1), f"wire version {WIRE_VERSION + 1}; this side speaks {WIRE_VERSION}"),
        (prefix(fds=MAX_FDS + 1), "254 fds, 0 buffers, 0 header bytes: beyond limits"),
        (prefix(buffers=MAX_BUFFERS + 1), "4097 buffers"),
        (prefix(header_bytes=MAX_HEADER_BYTES + 1), "67,108,865 header bytes: beyond limits"),
        (prefix(buffers=1, header_bytes=1, sizes=[MAX_BUFFER_BYTES + 1]) + b"x", "17,179,869,185 bytes"),
        (prefix(header_bytes=0), "broken header"),
        (prefix(header_bytes=1) + b"\xc1", "broken header: FormatError"),
        (prefix(header_bytes=1) + b"\x90", "not a list of version, number and fields"),
    ],
)  # fmt: skip
def test_broken_streams_are_refused_by_what_is_wrong(stream, complaint):
    for size in (1, len(stream)):
        with pytest.raises(InvalidRequest, match=complaint):
            feed(StreamDecoder(), stream, [size])


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (b"", "broken header"),
        (b"\xc1", "broken header: FormatError"),
        (b"\x01\x01", "broken header: ExtraData"),
        (msgpack.packb({"a": 1}), "not a list of version, number and fields"),
        (msgpack.packb([1]), "not a list of version, number and fields"),
        (msgpack.packb([2, 10]), "^wire version 2; this side speaks 1$"),
        (msgpack.packb([0, 10, "of", "another", "form"]), "^wire version 0; this side speaks 1$"),
        (msgpack.packb([True, 10]), "version and message number must be integers"),
        (msgpack.packb([1.0, 10]), "version and message number must be integers"),
        (msgpack.packb(["1", 10]), "version and message number must be integers"),
        (msgpack.packb([1, "Ping"]), "version and message number must be integers"),
        (msgpack.packb([1, 9999]), "unknown message number 9999"),
        (msgpack.packb([1, 10, None]), "Ping has 0 fields, got 1"),
        (bytes(MAX_HEADER_BYTES + 1), "a header of 67,108,865 bytes; at most 67,108,864"),
        (b"\x91" * 100_000, "broken header"),
        (b"\xdd\x7f\xff\xff\xff" * 1000, "broken header"),
    ],
)  # fmt: skip
def test_broken_headers_are_refused_by_what_is_wrong(header, complaint):
    with pytest.raises(InvalidRequest, match=complaint):
        unpack_header(header)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_random_headers_are_refused_or_understood(header):
    try:
        unpack_header(header)
    except InvalidRequest:
        return


@settings(deadline=None)
@given(SENT.filter(bool), st.data())
def test_a_mutated_stream_is_refused_or_understood(sent, data):
    stream = bytearray(stream_of(sent))
    for _ in range(data.draw(st.integers(1, 3))):
        # Near the beginning, where it matters; further on lie the buffers.
        stream[data.draw(st.integers(0, min(len(stream), 200) - 1))] = data.draw(st.integers(0, 255))
    try:
        feed(StreamDecoder(), bytes(stream), [4096])
    except InvalidRequest:
        return


def test_no_sender_makes_what_no_receiver_takes():
    assert len(stream_parts(Admit(), [b""] * MAX_BUFFERS, MAX_FDS)) == 1 + MAX_BUFFERS
    with pytest.raises(InvalidRequest, match=r"Admit with 254 fds .* at most 253"):
        stream_parts(Admit(), fds=MAX_FDS + 1)
    with pytest.raises(InvalidRequest, match="4097 buffers; at most 4096"):
        stream_parts(Admit(), [b""] * (MAX_BUFFERS + 1))
    with pytest.raises(InvalidRequest, match=r"67,10.,... header bytes: at most 253 and 67,108,864"):
        stream_parts(Reply(1, 0.0, bytes(MAX_HEADER_BYTES), [], []))
    with pytest.raises(InvalidRequest, match="17,179,869,185 bytes"):
        check_buffers([1, MAX_BUFFER_BYTES + 1])


def test_the_largest_body_fits_into_a_header_with_the_longest_names():
    largest = (1 << 64) - 1
    session = "\N{PERSON WITH BALL}" * 128
    body = bytes(MAX_BODY_BYTES)
    submit = Submit(largest, "m" * 256, "f" * 256, 1.5, 100, -100, session, largest, largest, body, [], [])
    assert len(pack_header(submit)) <= MAX_HEADER_BYTES
