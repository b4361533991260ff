"""What the search has found and the corpus cannot hold: memory, time, and exceptions that come from elsewhere."""

import gc
import itertools
import signal
import struct
import time
import tracemalloc

import msgpack
import pytest
from fuzzing.wire import messages
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onecopy.protocol import items
from onecopy.protocol.errors import InvalidRequest
from onecopy.protocol.frames import multipart, pack_header, unpack_header
from onecopy.protocol.items import check_items
from onecopy.protocol.limits import MAX_HEADER_ITEMS
from onecopy.protocol.messages import Attached, Item
from onecopy.protocol.values import decode, encode

MIB = 1 << 20


def a_list(count, item):
    return b"\xdd" + struct.pack(">I", count) + item * count


EMPTY = [
    a_list(MIB, b"\x90"),
    a_list(MIB, b"\xc0"),
    b"\xdf" + struct.pack(">I", MIB // 2) + b"\xa0\x80" * (MIB // 2),
    a_list(16, a_list(65_536, b"\x90")),
    a_list(16, b"\xdc\xff\xff" + b"\x80" * 65_535),
    b"\x91" * MIB,
    a_list(MIB, b"\xc7\x01\x05x"),
    a_list(MIB, b"\xa3\xc3\xa9a"),
]


@pytest.mark.parametrize("field", EMPTY, ids=range(len(EMPTY)))
def test_a_header_of_many_small_items_is_refused_before_they_are_made(field, monkeypatch):
    monkeypatch.setattr(items, "MAX_HEADER_ITEMS", 100_000)
    header = b"\x9e\x01\x04" + field
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match=r"a header of more than 100,000 items|broken header"):
            unpack_header(header)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < len(header) // 4


def test_what_messages_are_made_of_is_never_too_much(monkeypatch):
    monkeypatch.setattr("onecopy.protocol.frames._COUNTED_BYTES", 0)
    for message in messages():
        assert unpack_header(pack_header(message)) == message
    assert unpack_header(pack_header(Item(1, bytes(10 * MIB)))) == Item(1, bytes(10 * MIB))


def test_no_sender_makes_what_no_receiver_takes():
    several = [[0, 64, 64, "parameter"]] * (MAX_HEADER_ITEMS // 5)
    told = Attached({}, [[4096], several[:-10], []], b"", [], -1)
    assert unpack_header(multipart(told)[0]) == told
    with pytest.raises(InvalidRequest, match="a header of more than 1,048,576 items"):
        multipart(told._replace(manifest=[[4096], several, []]))


#: Of each form that a length has.
LARGE = [
    kind(size)
    for size in (1, 2, 4, 8, 16, 40, 300, 70_000)
    for kind in (lambda size: "x" * size, bytes, lambda size: msgpack.ExtType(5, bytes(size)))
]
LARGE += [[None] * 16, [None] * 300, {str(key): key for key in range(16)}, {str(key): key for key in range(300)}]
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary()
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=40))
    | st.sampled_from(LARGE),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=3), inner, max_size=8),
    max_leaves=30,
)  # fmt: skip


def count(tree):
    if isinstance(tree, dict):
        return 1 + sum(count(part) for part in itertools.chain(tree.keys(), tree.values()))
    return 1 + sum(map(count, tree)) if isinstance(tree, list) else 1


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(PLAIN, min_size=1, max_size=40))
@example([[None] * 70_000, {str(key): key for key in range(70_000)}])
def test_items_are_counted_as_they_are(tree):
    packed = msgpack.packb(tree)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(items, "MAX_HEADER_ITEMS", count(tree))
        check_items(packed)
        patched.setattr(items, "MAX_HEADER_ITEMS", count(tree) - 1)
        with pytest.raises(InvalidRequest, match=f"a header of more than {count(tree) - 1:,} items"):
            check_items(packed)


class Elsewhere(Exception):
    """What a signal handler raises."""


@pytest.mark.parametrize(
    "read",
    [lambda: unpack_header(HEADER), lambda: decode(BODY)],
    ids=["header", "value"],
)
def test_what_a_signal_handler_raises_is_no_broken_message(read):
    def interrupt(*_):
        raise Elsewhere

    interrupts = 0
    before = signal.signal(signal.SIGALRM, interrupt)
    gc.disable()  # what others have called when garbage is collected cannot raise
    try:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, 20e-6 + interrupts % 50 * 5e-6)
                read()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Elsewhere:
                interrupts += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    assert interrupts > 10


HEADER = pack_header(Attached({}, [list(range(3000))], b"", [], -1))
BODY = encode([(index, str(index)) for index in range(200)]).body
