"""The order of loads, compared with every other."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from onecopy.pool.planning.order import Load, best_order, peak_bytes

LOADS = st.lists(
    st.builds(lambda kept, more: (kept, kept + more), st.integers(0, 20), st.integers(0, 20)), max_size=6
).map(lambda sizes: [Load(f"m{index}", *one) for index, one in enumerate(sizes)])


@given(LOADS)
def test_no_order_takes_less_at_once(loads):
    least = min(peak_bytes(order) for order in itertools.permutations(loads))
    assert peak_bytes(best_order(loads)) == least


def test_small_ones_come_first_where_it_is_all_the_same():
    loads = [Load("large", 10, 10), Load("small", 1, 1), Load("middle", 5, 5)]
    assert [load.model for load in best_order(loads)] == ["small", "middle", "large"]


def test_small_ones_come_first_where_that_lowers_the_peak():
    large, small = Load("large", 10, 11), Load("small", 2, 8)
    assert [load.model for load in best_order([large, small])] == ["small", "large"]
    assert peak_bytes([large, small]) == 18
    assert peak_bytes([small, large]) == 13


def test_nothing_takes_nothing():
    assert peak_bytes([]) == 0
