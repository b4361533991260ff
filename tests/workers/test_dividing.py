"""Dividing a model: by layers in a row where that can be, in whatever way where it cannot, and by how much not."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from onecopy.protocol.errors import OutOfBudget
from onecopy.protocol.frozen import freeze
from onecopy.workers.dividing import Layer, divide, layers_of
from torch import nn

MIB = 1 << 20


def layered(*groups):
    """Layers of regions of these sizes."""
    sizes = [size for group in groups for size in group]
    layers, place = [], 0
    for number, group in enumerate(groups):
        layers.append(Layer(f"layer.{number}", tuple(range(place, place + len(group))), sum(group)))
        place += len(group)
    return layers, sizes


def test_layers_in_a_row_stay_together_on_as_few_devices_as_can_be():
    layers, sizes = layered([3, 1], [4], [4], [2, 2])
    made = divide("m", layers, sizes, {"a": 8, "b": 8, "c": 8})
    assert made.devices == ["a", "a", "a", "b", "b", "b"]
    assert made.note == "it fits on no device alone, and is divided: 8 bytes on a, 8 bytes on b"


def test_the_order_of_devices_may_be_any():
    layers, sizes = layered([2], [9])
    assert divide("m", layers, sizes, {"a": 9, "b": 2}).devices == ["b", "a"]


def test_layers_that_cannot_be_in_a_row_go_where_they_fit():
    layers, sizes = layered([5], [3], [5], [3])
    assert divide("m", layers, sizes, {"a": 10, "b": 6}).devices == ["a", "b", "a", "b"]


def test_a_layer_that_fits_nowhere_is_divided_too():
    layers, sizes = layered([4, 4], [1])
    assert sorted(divide("m", layers, sizes, {"a": 5, "b": 4}).devices) == ["a", "a", "b"]


def test_what_cannot_be_divided_is_refused_with_what_is_missing():
    layers, sizes = layered([6], [6], [6])
    with pytest.raises(OutOfBudget, match=r"m needs 18 bytes, and there are 8 on a, 6 on b.*: 4 too few, however"):
        divide("m", layers, sizes, {"a": 8, "b": 6})
    with pytest.raises(OutOfBudget, match="its largest tensor has 12"):
        divide("m", *layered([12]), {"a": 8, "b": 8})


SIZES = st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=4), min_size=1, max_size=6)
ROOM = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 60), min_size=1)


@given(SIZES, ROOM)
def test_no_device_ever_gets_more_than_it_has_room_for(groups, room):
    layers, sizes = layered(*groups)
    try:
        made = divide("m", layers, sizes, room)
    except OutOfBudget:
        assert sum(sizes) > min(room.values()), "all of it would have fitted on each alone"
        assert sum(sizes) > max(room.values()), "all of it would have fitted on one alone"
        return
    for device, free in room.items():
        assert sum(size for size, on in zip(sizes, made.devices, strict=True) if on == device) <= free
    assert set(made.devices) <= set(room)


class Layered(nn.Module):
    def __init__(self):
        super().__init__()
        self.into = nn.Linear(600, 600)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(600, 600), nn.Linear(600, 600)) for _ in range(2))
        self.out = nn.Linear(600, 600)
        self.out.weight = self.into.weight  # tied


def test_layers_are_found_by_their_names():
    model = Layered()
    frozen = freeze(model)
    layers = layers_of(model, frozen)
    assert [layer.name for layer in layers] == ["into", "blocks.0", "blocks.1"]
    assert sorted(region for layer in layers for region in layer.regions) == list(
        range(len(frozen.manifest.region_sizes_bytes))
    )
    assert layers[1].size_bytes >= 2 * 600 * 600 * 4


def test_what_is_no_module_has_layers_of_one_region_each():
    frozen = freeze({"a": torch.rand(MIB), "b": torch.rand(MIB)})
    assert [layer.name for layer in layers_of({}, frozen)] == ["", ""]
