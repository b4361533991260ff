"""Where models go, compared with every way in which they could."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onecopy.pool.core.placement import Item, Placement, Room, place

MB = 1_000_000


def rooms(*free_mb: int, slots: int = 1) -> list[Room]:
    return [Room(f"cpu:{index}", free * MB, slots) for index, free in enumerate(free_mb)]


def item(name: str, size_mb: int, **settings) -> Item:
    return Item(name, {(name,): size_mb * MB}, **settings)


def cost(items, rooms, chosen):
    """The cost of a placement, added up anew: bytes too many, pairs in each other's way, bytes, -most free."""
    missing = crowded = used_in_all = 0
    most_free = None
    for room in rooms:
        here = [one for one, name in zip(items, chosen, strict=True) if name == room.name]
        weights = {key: size for one in here for key, size in one.parts_bytes.items()}
        used = sum(weights.values()) + sum(one.private_bytes for one in here)
        used += room.slots * max((one.need_bytes for one in here), default=0)
        busy = sum(one.is_compute_bound for one in here)
        crowded += busy * (busy - 1) // 2
        missing += max(0, used - room.free_bytes)
        used_in_all += used
        most_free = max(room.free_bytes - used, most_free) if most_free is not None else room.free_bytes - used
    return missing, crowded, used_in_all, -most_free


def best_of_all(items, rooms):
    names = [[one.name for one in rooms if not i.devices or one.name in i.devices] for i in items]
    return min(cost(items, rooms, chosen) for chosen in itertools.product(*names))


def cost_of(placement: Placement, items, rooms):
    return cost(items, rooms, [placement.device_of[one.name] for one in items])


@st.composite
def problems(draw):
    count = draw(st.integers(1, 3))
    devices = [Room(f"cpu:{index}", draw(st.integers(-2, 12)), draw(st.integers(0, 2))) for index in range(count)]
    items = [
        Item(
            f"m{index}",
            draw(st.dictionaries(st.tuples(st.sampled_from("abcde")), st.just(0), max_size=3).map(sizes)),
            draw(st.integers(0, 3)),
            draw(st.integers(0, 2)),
            draw(st.booleans()),
            tuple(draw(st.sets(st.sampled_from([one.name for one in devices]), max_size=2))),
        )
        for index in range(draw(st.integers(0, 5)))
    ]
    return items, devices


def sizes(parts):
    """Equal parts have equal sizes, whichever model they are in."""
    return {key: ord(key[0]) - ord("a") + 1 for key in parts}


@given(problems())
@settings(max_examples=300, deadline=None)
def test_no_placement_is_better_than_the_one_that_is_found(problem):
    items, devices = problem
    placement = place(items, devices)
    assert placement.is_best
    found = cost_of(placement, items, devices)
    assert found == best_of_all(items, devices)
    assert placement.crowded == found[1]
    assert sum(placement.used_bytes.values()) == found[2]
    assert sum(placement.missing_bytes.values()) == found[0]
    assert all(not i.devices or placement.device_of[i.name] in i.devices for i in items)


def test_two_models_that_compute_avoid_each_other_and_the_rest_fills_up():
    items = [
        item("a", 10, is_compute_bound=True),
        item("b", 10, is_compute_bound=True),
        item("c", 5),
        item("d", 5),
    ]
    placement = place(items, rooms(40, 40))
    assert placement.device_of["a"] != placement.device_of["b"]
    assert placement.device_of["c"] == placement.device_of["d"]
    assert placement.crowded == 0


def test_where_they_cannot_they_share_a_device_and_that_is_said():
    items = [item(name, 10, is_compute_bound=True) for name in "abc"]
    assert place(items, rooms(40, 40)).crowded == 1
    assert place(items[:2], rooms(40)).crowded == 1


def test_models_on_one_backbone_go_together():
    backbone = {("backbone",): 20 * MB}
    items = [Item(name, {**backbone, (name,): MB}) for name in "abcd"] + [item("else", 25)]
    placement = place(items, rooms(30, 30))
    assert placement.missing_bytes == {}
    assert len({placement.device_of[name] for name in "abcd"}) == 1
    assert placement.used_bytes[placement.device_of["a"]] == 24 * MB


def test_slots_are_as_large_as_the_largest_need_on_their_device():
    items = [item("a", 10, need_bytes=5 * MB), item("b", 10, need_bytes=3 * MB)]
    assert place(items, rooms(100, slots=4)).used_bytes == {"cpu:0": (20 + 4 * 5) * MB}


def test_what_does_not_fit_is_told_in_bytes():
    placement = place([item("a", 30), item("b", 20)], rooms(25, 25))
    assert sum(placement.missing_bytes.values()) == 5 * MB
    assert placement.device_of["a"] != placement.device_of["b"]


def test_a_model_that_may_be_on_no_device_is_refused():
    with pytest.raises(ValueError, match=r"a may be on cuda:0, and there is none"):
        place([item("a", 1, devices=("cuda:0",))], rooms(10))
    with pytest.raises(ValueError, match=r"a may be on any device, and there is none"):
        place([item("a", 1)], [])


def test_many_models_on_many_devices_are_placed_although_not_every_way_is_tried():
    items = [item(f"m{index}", 3 + index * 7 % 11, is_compute_bound=index % 3 == 0) for index in range(60)]
    placement = place(items, rooms(*[100] * 8, slots=2))
    assert not placement.is_best
    assert placement.missing_bytes == {}
    assert len(placement.device_of) == 60
    assert placement.crowded == 4 * 3 + 4 * 1  # 20 on 8 devices, 3 or 2 each
