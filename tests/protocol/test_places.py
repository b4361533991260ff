"""Places in mailboxes: what is one, and what is refused where it enters."""

import hypothesis.strategies as st
import pytest
from hypothesis import given
from onecopy.protocol.errors import InvalidRequest
from onecopy.protocol.tensors import Place, aligned, read_parts, read_place, read_places


@pytest.mark.parametrize(("size_bytes", "expected"), [(0, 0), (1, 64), (64, 64), (65, 128), (1 << 40, 1 << 40)])
def test_sizes_are_rounded_up_to_where_the_next_may_begin(size_bytes, expected):
    assert aligned(size_bytes) == expected


def test_places_tell_of_each_buffer_where_it_lies():
    assert read_places([[7, 0, 20000], [], [8, 64, 1]], 1) == [Place(7, 0, 20000), None, Place(8, 64, 1)]
    assert read_places([], 2) == [None, None]


@pytest.mark.parametrize(
    "wire",
    [None, 7, "abc", [], [7, 0], [7, 0, 1, 2], [7, 0.0, 1], [True, 0, 1], ["7", 0, 1], [7, None, 1], {7: 0}],
)
def test_what_is_no_place_is_refused(wire):
    with pytest.raises(InvalidRequest, match=r"must be \[mailbox, offset, size\] in whole numbers"):
        read_place(wire)


def test_what_is_no_place_is_refused_however_deep_it_is_nested():
    deep = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InvalidRequest, match=r"in whole numbers, not \[\[\[.*\.\.\."):
        read_place(deep)


@pytest.mark.parametrize("wire", [[7, -64, 1], [7, 0, -1], [7, 1, 64], [7, 63, 1]])
def test_what_begins_nowhere_is_refused(wire):
    with pytest.raises(
        InvalidRequest, match="must be a multiple of 64, and neither offset nor size may be negative"
    ):
        read_place(wire)


@pytest.mark.parametrize(("wire", "following"), [([[]], 0), ([[7, 0, 1]], 1), ([[], []], 1), ([[]], 2)])
def test_the_number_of_buffers_that_follow_must_be_as_told(wire, following):
    with pytest.raises(InvalidRequest, match=f"buffers follow the message; {following} do"):
        read_places(wire, following)


def test_parts_of_a_result_lie_one_behind_the_other():
    assert read_parts([[0, 100], [], [128, 64]], 192, 1) == [(0, 100), None, (128, 64)]


@pytest.mark.parametrize(
    "wire", [[[0, 193]], [[128, 65]], [[192, 1]], [[64, 64], [0, 64]], [[0, 65], [64, 1]], [[1 << 62, 1 << 62]]]
)
def test_parts_that_lie_outside_or_overlap_are_refused(wire):
    with pytest.raises(InvalidRequest, match="of a result of 192 bytes"):
        read_parts(wire, 192, 0)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


@given(st.lists(ANYTHING, max_size=3), st.integers(0, 3))
def test_whatever_comes_is_read_or_refused_by_name(wire, following):
    for read in (lambda: read_places(wire, following), lambda: read_parts(wire, 1000, following)):
        try:
            found = read()
        except InvalidRequest:
            continue
        assert found.count(None) == following
