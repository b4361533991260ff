"""Messages: each comes out of the wire as it went in, and whoever gets one can rely on its annotations."""

import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onecopy.protocol import messages
from onecopy.protocol.errors import InvalidRequest
from onecopy.protocol.frames import pack_header, unpack_header
from onecopy.protocol.messages import NUMBERS, Message, parse

KINDS = list(NUMBERS)

integers = st.integers(-(1 << 63), (1 << 64) - 1)
plain = st.recursive(
    st.none() | st.booleans() | integers | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = {
    int: integers,
    float: st.floats(allow_nan=False),
    str: st.text(),
    bytes: st.binary(),
    bool: st.booleans(),
    list[Any]: st.lists(plain, max_size=4),
    list[int]: st.lists(integers, max_size=4),
    list[str]: st.lists(st.text(), max_size=4),
    dict[str, Any]: st.dictionaries(st.text(), plain, max_size=4),
    dict[str, str]: st.dictionaries(st.text(), st.text(), max_size=4),
}


def fields_of(kind):
    hints = typing.get_type_hints(kind)
    return [hints[name] for name in kind._fields]


def messages_of(kind):
    return st.tuples(*(FIELDS[hint] for hint in fields_of(kind))).map(kind._make)


#: A value of a type that fits no other annotation: what each field must refuse.
WRONG = {
    int: [True, 1.0, "1", None, b"", []],
    float: [True, "1", None],
    str: [b"a", 1, None, ["a"]],
    bytes: ["a", 1, None],
    bool: [0, 1, None, "true"],
    list[Any]: [{}, "ab", None],
    list[int]: [{}, [1, "2"], [True], [None]],
    list[str]: [{}, ["a", 2], [b"a"], [["a"]]],
    dict[str, Any]: [[], "ab", {1: 2}, {b"a": 1}],
    dict[str, str]: [[], {"a": 1}, {1: "a"}, {"a": None}],
}


def test_every_message_is_in_the_union_and_has_a_number_of_its_own():
    defined = {
        kind
        for kind in vars(messages).values()
        if isinstance(kind, type) and issubclass(kind, tuple) and not kind.__name__.startswith("_")
    }
    assert defined == set(KINDS) == set(typing.get_args(Message))
    assert len(set(NUMBERS.values())) == len(KINDS)


@settings(deadline=None)
@given(st.sampled_from(KINDS).flatmap(messages_of))
def test_every_message_survives_the_wire(message):
    again = unpack_header(pack_header(message))
    assert type(again) is type(message)
    assert again == message


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_refuses_what_its_annotation_excludes(kind):
    right = [{int: 1, float: 1.0, str: "a", bytes: b"a", bool: True}.get(hint) for hint in fields_of(kind)]
    right = [
        hint() if value is None else value
        for value, hint in zip(right, (typing.get_origin(hint) or hint for hint in fields_of(kind)), strict=True)
    ]
    assert parse(NUMBERS[kind], right) == kind(*right)
    for index, hint in enumerate(fields_of(kind)):
        for wrong in WRONG[hint]:
            with pytest.raises(InvalidRequest, match=rf"{kind.__name__}\.{kind._fields[index]}.* must be"):
                parse(NUMBERS[kind], [*right[:index], wrong, *right[index + 1 :]])
    for fields in ([*right, 1], right[:-1] if right else [None]):
        with pytest.raises(InvalidRequest, match=rf"{kind.__name__} has {len(right)} fields, got {len(fields)}"):
            parse(NUMBERS[kind], fields)


def test_a_whole_number_of_seconds_is_a_number_of_seconds():
    message = parse(NUMBERS[messages.Submit], [1, "m", "", 3, 0, 0, "", 0, 0, b"", [], []])
    assert isinstance(message, messages.Submit)
    assert message.timeout_s == 3


@pytest.mark.parametrize("number", [0, -1, 16, 82, 10**9])
def test_an_unknown_number_is_refused(number):
    with pytest.raises(InvalidRequest, match=f"unknown message number {number}"):
        parse(number, [])
