"""Values: what travels comes back equal, what cannot is refused by its path, and broken bytes are only refused."""

import collections
import dataclasses
import enum
import math
import struct
import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onecopy.protocol import values
from onecopy.protocol.errors import InvalidRequest
from onecopy.protocol.limits import MAX_DEPTH
from onecopy.protocol.values import ARRAY, BIG_INTEGER, COMPLEX, TUPLE, decode, encode


def roundtrip(value):
    return decode(*encode(value))


class Colour(enum.IntEnum):
    RED = 3


class Word(enum.StrEnum):
    YES = "yes"


class Point(NamedTuple):
    x: int
    y: object


@dataclasses.dataclass
class Box:
    label: str
    parts: object = None


class Catalogue(Mapping):
    """A mapping that is no dict."""

    def __init__(self, **items):
        self.items_ = items

    def __getitem__(self, key):
        return self.items_[key]

    def __iter__(self):
        return iter(self.items_)

    def __len__(self):
        return len(self.items_)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 200), 1 << 200)
    | st.floats()
    | st.complex_numbers()
    | st.text()
    | st.binary(max_size=100)
)
keys = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=2).map(tuple),
    max_leaves=3,
)
nested = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=20,
)


def same(left, right):
    """Whether two values are equal in types too; NaN equals itself."""
    if type(left) is not type(right):
        return False
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left), list(right)) and same(list(left.values()), list(right.values()))
    if isinstance(left, (float, complex)):
        return repr(left) == repr(right)  # tells -0.0 from 0.0, and NaN is its own
    return left == right


@settings(deadline=None)
@given(nested)
def test_nested_plain_values_come_back_as_they_were(value):
    assert same(roundtrip(value), value)


@pytest.mark.parametrize(
    ("value", "back"),
    [
        (Colour.RED, 3),
        (Word.YES, "yes"),
        (np.str_("word"), "word"),
        (np.bytes_(b"word"), b"word"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"abcd")[1:3], b"bc"),
        (Point(1, (2,)), (1, (2,))),
        (Box("a", [Box("b")]), {"label": "a", "parts": [{"label": "b", "parts": None}]}),
        (Catalogue(a=1, b=Catalogue(c=())), {"a": 1, "b": {"c": ()}}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
        (collections.UserDict(a=1), {"a": 1}),
        (type("Names", (list,), {})(["a"]), ["a"]),
        (1 << 64, 1 << 64),
        (-(1 << 63) - 1, -(1 << 63) - 1),
        ({(1, "a"): 2, None: 3, 1.5: 4, b"k": 5}, {(1, "a"): 2, None: 3, 1.5: 4, b"k": 5}),
    ],
)
def test_kinds_of_plain_values_travel_as_what_they_are_underneath(value, back):
    assert same(roundtrip(value), back)


def test_what_models_of_transformers_take_and_return_travels():
    from transformers import BatchEncoding
    from transformers.modeling_outputs import BaseModelOutputWithPast

    inputs = roundtrip(BatchEncoding({"input_ids": torch.tensor([[1, 2]])}))
    assert type(inputs) is dict
    assert torch.equal(inputs["input_ids"], torch.tensor([[1, 2]]))
    output = BaseModelOutputWithPast(
        last_hidden_state=torch.ones(1, 2), past_key_values=((torch.zeros(3), torch.ones(3)),)
    )
    back = roundtrip(output)
    assert list(back) == ["last_hidden_state", "past_key_values"]
    assert torch.equal(back["past_key_values"][0][1], torch.ones(3))


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({"past_key_values": [object()]}, "out['past_key_values'][0] cannot travel: a object is neither"),
        ({1, 2}, "out cannot travel: a set has no order; send sorted(...) as a list"),
        ([frozenset()], "out[0] cannot travel: a frozenset has no order"),
        ((1, [lambda: 1]), "out[1][0] cannot travel: a function is code, which never travels"),
        ({"f": len}, "out['f'] cannot travel: a builtin_function_or_method is code"),
        ([torch.nn.Linear], "out[0] cannot travel: a type is code"),
        ([np.ndarray], "out[0] cannot travel: a type is code"),
        ([torch.nn.Linear(1, 1)], "out[0] cannot travel: a torch.nn.modules.linear.Linear is code"),
        ([iter([1])], "out[0] cannot travel: a list_iterator is an iterator; send list(...)"),
        ([range(3)], "out[0] cannot travel: a range is neither a plain value nor an array"),
        (Box("a", {"b": {1}}), "out.parts['b'] cannot travel: a set"),
        (Point(1, [{2}]), "out[1][0] cannot travel: a set"),
        (Catalogue(a=1, b=[{2}]), "out['b'][0] cannot travel: a set"),
        ({"a": {frozenset(): 1}}, "out['a'] key frozenset() cannot travel: a frozenset"),
        ({"a": "\ud800"}, "out['a'] cannot travel: 'utf-8' codec can't encode"),
        ([None, np.array(["a"])], "out[1] cannot travel: an array of dtype <U1 has no fixed binary form"),
        ({"t": torch.ones(2).to_sparse()}, "out['t'] cannot travel: a tensor of layout torch.sparse_coo"),
    ],
)
def test_what_cannot_travel_is_named_by_its_path(value, complaint):
    with pytest.raises(InvalidRequest) as caught:
        encode(value, name="out")
    assert str(caught.value).startswith(complaint)
    assert caught.value.details["path"] == complaint.split(" cannot travel")[0]


class Broken:
    @property
    def __array_interface__(self):
        raise RuntimeError("this image is closed")


def test_an_object_whose_own_code_fails_is_named_too():
    with pytest.raises(InvalidRequest, match=r"^x\[0\] cannot travel: this image is closed$"):
        encode([Broken()], name="x")


def containing_itself(kind):
    value = Box("a") if kind is Box else kind()
    if kind is list:
        value.append(value)
    elif kind is dict:
        value["a"] = ({"b": [value]},)
    elif kind is tuple:
        inner = []
        value = (inner,)
        inner += [value, value]
    else:
        value.parts = value
    return value


@pytest.mark.parametrize("kind", [list, dict, tuple, Box])
def test_a_value_that_contains_itself_is_refused(kind):
    with pytest.raises(InvalidRequest, match="it is nested too deeply, or contains itself"):
        encode(containing_itself(kind))


def nest(leaf, depth, wrap):
    for _ in range(depth):
        leaf = wrap(leaf)
    return leaf


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: {"a": x}, lambda x: [{"a": x}]])
def test_lists_and_maps_travel_some_hundred_levels_deep(wrap):
    assert same(roundtrip(nest(1, 150, wrap)), nest(1, 150, wrap))
    decode(encode(nest(1, 400, wrap)).body)
    with pytest.raises(InvalidRequest, match=r"^value cannot travel: it is nested too deeply"):
        encode(nest(1, 5000, wrap))
    with pytest.raises(InvalidRequest, match=r"^value(\S){300,} cannot travel: a set"):
        encode(nest({1}, 300, wrap))


@pytest.mark.parametrize("wrap", [lambda x: (x,), lambda x: ([x],), lambda x: {"a": (x,)}])
def test_tuples_travel_a_hundred_levels_deep(wrap):
    deepest = nest(1, MAX_DEPTH, wrap)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(roundtrip(deepest)))  # a thread has a smaller stack
    thread.start()
    thread.join()
    assert same(seen[0], deepest)
    for depth in (MAX_DEPTH + 1, 5000):
        with pytest.raises(InvalidRequest, match=r"^value cannot travel: it is nested too deeply"):
            encode(nest(1, depth, wrap))


# --- limits --------------------------------------------------------------------------------------------------


def test_a_body_that_no_header_could_hold_is_refused_by_its_sender(monkeypatch):
    monkeypatch.setattr(values, "MAX_BODY_BYTES", 1000)
    assert len(encode("a" * 997).body) == 1000
    with pytest.raises(InvalidRequest, match="out takes 1,001 bytes without its large arrays; at most 1,000"):
        encode("a" * 998, name="out")


def test_too_many_and_too_large_arrays_are_refused_by_their_sender(monkeypatch):
    monkeypatch.setattr(values, "INLINE_ARRAY_BYTES", 8)
    monkeypatch.setattr(values, "MAX_BUFFERS", 2)
    monkeypatch.setattr(values, "MAX_BUFFER_BYTES", 16)
    assert len(encode([np.zeros(2), np.zeros(2), np.zeros(1)]).buffers) == 2
    with pytest.raises(InvalidRequest, match="holds 3 arrays above 8 bytes; at most 2"):
        encode([np.zeros(2)] * 3)
    with pytest.raises(InvalidRequest, match="holds an array of 24 bytes; at most 16"):
        encode(np.zeros(3))


# --- bytes that nobody encoded -------------------------------------------------------------------------------


def decode_or_refuse(body, buffers=()):
    """Decode; the only exception allowed is `InvalidRequest`."""
    try:
        return decode(body, buffers)
    except InvalidRequest as error:
        return error


@settings(deadline=None)
@given(st.binary(max_size=200), st.lists(st.binary(max_size=20), max_size=2))
def test_random_bytes_are_decoded_or_refused(body, buffers):
    decode_or_refuse(body, buffers)


samples = st.sampled_from(
    [
        encode({"a": [1, (2, "b", 3j, 1 << 70)], None: np.arange(3.0), "t": torch.ones(2, 2)}),
        encode([np.zeros(5000), (torch.ones(9000), np.float16(2))]),
        encode((((), [(b"x", "y")]), {(1, 2): 3})),
    ]
)


@settings(deadline=None)
@given(samples, st.data())
def test_mutated_values_are_decoded_or_refused(encoded, data):
    body = bytearray(encoded.body)
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(body) - 1))
        what = data.draw(st.sampled_from(["set", "cut", "insert", "delete"]))
        if what == "set":
            body[index] = data.draw(st.integers(0, 255))
        elif what == "cut":
            del body[max(1, index) :]
        elif what == "insert":
            body[index:index] = data.draw(st.binary(max_size=6))
        elif len(body) > 1:
            del body[index]
    kept = data.draw(st.integers(0, len(encoded.buffers)))
    decode_or_refuse(bytes(body), encoded.buffers[:kept])


def extension(code, payload):
    return msgpack.packb(msgpack.ExtType(code, payload))


def array(*fields):
    return extension(ARRAY, msgpack.packb(list(fields)))


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "broken value"),
        (b"\x01\x02", "broken value: ExtraData"),
        (b"\xc1", "broken value: FormatError"),
        (b"\xa1\xff", "broken value: UnicodeDecodeError"),
        (b"\x81\x90\x01", "broken value: TypeError: unhashable"),
        (extension(5, b""), "unknown extension type 5"),
        (extension(127, b"abc"), "unknown extension type 127"),
        (extension(COMPLEX, b"abc"), "broken value"),
        (extension(TUPLE, b""), "broken value"),
        (extension(TUPLE, msgpack.packb("abc")), "a tuple holds a list, not str"),
        (extension(TUPLE, msgpack.packb({"a": 1})), "a tuple holds a list, not dict"),
        (extension(ARRAY, b""), "broken value"),
        (extension(ARRAY, msgpack.packb(["n", "F32", [1]])), "broken value"),
        (extension(ARRAY, extension(ARRAY, b"")), "broken value"),
        (array("n", "F32", [1], 0), "buffer 0 of 0"),
        (array("n", "F32", [1], -1), "buffer -1 of 0"),
        (array("n", "F32", [1], True), "broken value"),
        (array("n", "F32", [1], "1234"), "broken value"),
        (array("n", "F32", [1], None), "broken value"),
        (array("n", "F32", [1], b"123"), r"F32 \[1\] takes 4 bytes, got 3"),
        (array("n", "F32", [1 << 62, 1 << 62], b""), "takes 85070591730234615865843651857942052864 bytes, got 0"),
        (array("n", "F32", [0] + [1 << 62] * 3, b""), "broken value"),
        (array("t", "F32", [0] + [1 << 62] * 3, b""), "broken value"),
        (array("n", "F32", [-1], b""), "an entry that is not a non-negative integer"),
        (array("n", "F32", [1.0], b"1234"), "an entry that is not a non-negative integer"),
        (array("n", "F32", 1, b"1234"), "broken value"),
        (array("n", "F32", [1] * 65, b"1234"), "65 dimensions; at most 64"),
        (array("n", "object", [1], b"1234"), "unknown dtype 'object'"),
        (array("n", ["F32"], [1], b"1234"), "broken value"),
        (array("x", "F32", [1], b"1234"), "family 'x'; known are n, s and t"),
        (array(["n"], "F32", [1], b"1234"), "known are n, s and t"),
        (array("s", "F32", [1], b"1234"), r"a scalar of shape \[1\]"),
        (array("n", "F8_E5M2", [1], b"1"), "NumPy has no dtype for F8_E5M2"),
    ],
)
def test_broken_values_are_refused_by_what_is_wrong(body, complaint):
    with pytest.raises(InvalidRequest, match=complaint):
        decode(body)


@pytest.mark.parametrize("length_prefix", [b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"])
@pytest.mark.parametrize("repeats", [1, 50, 5000])
def test_lengths_that_lie_are_refused_without_the_memory_that_they_claim(length_prefix, repeats):
    lie = (length_prefix + b"\x7f\xff\xff\xff") * repeats
    with pytest.raises(InvalidRequest, match="broken value"):
        decode(lie)
    # As large as the true length allows: nested, they claim the memory for it many times over.
    largest = (length_prefix + struct.pack(">I", 100_000)) * repeats + b"\xc1" * 100_001
    with pytest.raises(InvalidRequest, match="broken value"):
        decode(largest)


def test_tuples_nested_deeper_than_any_sender_would_are_refused():
    body = msgpack.packb([])
    for _ in range(MAX_DEPTH + 5):
        body = msgpack.packb([msgpack.ExtType(TUPLE, body)])
    with pytest.raises(InvalidRequest, match=f"nested deeper than {MAX_DEPTH} tuples"):
        decode(body)


def test_big_integers_and_complex_numbers_are_exact():
    assert decode(extension(BIG_INTEGER, b"\x00" * 20 + b"\x80")) == -(1 << 167)
    assert decode(extension(BIG_INTEGER, b"")) == 0
    back = decode(extension(COMPLEX, struct.pack("<dd", -0.0, math.inf)))
    assert (math.copysign(1, back.real), back.imag) == (-1.0, math.inf)
