"""A model that fits on no device is divided by layers: which of its regions go where.

Layers in a row stay together, so that a run passes from one device to the next as seldom as can be. Where that
cannot be, layers go wherever all fit: the largest first, each where it leaves the least room (best fit decreasing:
Johnson, 1974), and otherwise if that leads nowhere. Where not even that can be, layers are divided too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..protocol.errors import OutOfBudget

if TYPE_CHECKING:
    from ..protocol.frozen import Frozen

#: Of so many devices every order is tried.
_MOST_PERMUTED: Final = 5
#: So many layers are placed, counting those that are taken back, before the search is ended.
_MOST_STEPS: Final = 20_000


class Layer(NamedTuple):
    """What is to stay together.

    Attributes:
        name: what it is called in the model; empty for what is in no layer.
        regions: which these are.
        size_bytes: all of them.
    """

    name: str
    regions: tuple[int, ...]
    size_bytes: int


class Division(NamedTuple):
    """Where regions go.

    Attributes:
        devices: by region.
        note: what lies where, in a sentence.
    """

    devices: list[str]
    note: str


def divide(name: str, layers: Sequence[Layer], sizes_bytes: Sequence[int], room: Mapping[str, int]) -> Division:
    """Return which regions go where.

    Args:
        name: of the model.
        layers: all of its regions, each in one, in the order in which a run passes them.
        sizes_bytes: of each region.
        room: how many bytes there are for it, by device.

    Raises:
        OutOfBudget: there is not enough room, however it is divided; the message says by how much.
    """
    found = _in_a_row(layers, room) or _search(layers, room)
    if found is None:
        single = [Layer(layer.name, (one,), sizes_bytes[one]) for layer in layers for one in layer.regions]
        found = _search(single, room)
        layers = single
    if found is None:
        raise _too_large(name, sizes_bytes, room)
    devices = [""] * len(sizes_bytes)
    for layer, device in zip(layers, found, strict=True):
        for region in layer.regions:
            devices[region] = device
    return Division(devices, _note(layers, found))


def layers_of(model: Any, frozen: Frozen) -> list[Layer]:
    """Return the layers of a model: what has the same name up to its first number, or else the same module."""
    regions = frozen.regions_by_address()
    named: dict[str, dict[int, None]] = {}
    taken: set[int] = set()
    for name, tensor in _named_tensors(model):
        region = regions.get(tensor.untyped_storage().data_ptr())
        if region is not None and region not in taken:
            taken.add(region)
            named.setdefault(_layer_name(name), {})[region] = None
    sizes_bytes = frozen.manifest.region_sizes_bytes
    rest = [region for region in range(len(sizes_bytes)) if region not in taken]
    groups = [(name, tuple(group)) for name, group in named.items()] + [("", (region,)) for region in rest]
    return [Layer(name, group, sum(sizes_bytes[one] for one in group)) for name, group in groups]


def _named_tensors(model: Any) -> Iterable[tuple[str, Any]]:
    from torch import nn

    if isinstance(model, nn.Module):
        yield from model.named_parameters(remove_duplicate=False)
        yield from model.named_buffers(remove_duplicate=False)


def _layer_name(name: str) -> str:
    words = name.split(".")
    number = next((place for place, word in enumerate(words) if word.isdigit()), None)
    return ".".join(words[:-1] if number is None else words[: number + 1])


def _in_a_row(layers: Sequence[Layer], room: Mapping[str, int]) -> list[str] | None:
    """Return the devices of layers, those of one device in a row, on as few as can be; None: it cannot be."""
    largest_first = sorted(room, key=lambda device: -room[device])
    orders = itertools.permutations(largest_first) if len(room) <= _MOST_PERMUTED else [tuple(largest_first)]
    found = [placed for order in orders if (placed := _filled(layers, room, order)) is not None]
    return min(found, key=lambda placed: len(set(placed)), default=None)


def _filled(layers: Sequence[Layer], room: Mapping[str, int], order: Sequence[str]) -> list[str] | None:
    placed: list[str] = []
    devices = iter(order)
    device, left_bytes = "", -1
    for layer in layers:
        while layer.size_bytes > left_bytes:
            following = next(devices, None)
            if following is None:
                return None
            device, left_bytes = following, room[following]
        placed.append(device)
        left_bytes -= layer.size_bytes
    return placed


def _search(layers: Sequence[Layer], room: Mapping[str, int]) -> list[str] | None:
    """Return the devices of layers: the largest first, each where it leaves the least; back where that fails."""
    order = sorted(range(len(layers)), key=lambda index: -layers[index].size_bytes)
    left_bytes = dict(room)
    placed: list[str] = []
    choices = [_fitting(left_bytes, layers[order[0]].size_bytes)] if order else []
    for _ in range(_MOST_STEPS):
        if len(placed) == len(order):
            by_layer = dict(zip(order, placed, strict=True))
            return [by_layer[index] for index in range(len(layers))]
        device = next(choices[-1], None)
        if device is not None:
            left_bytes[device] -= layers[order[len(placed)]].size_bytes
            placed.append(device)
            if len(placed) < len(order):
                choices.append(_fitting(left_bytes, layers[order[len(placed)]].size_bytes))
            continue
        choices.pop()
        if not placed:
            return None
        left_bytes[placed.pop()] += layers[order[len(placed)]].size_bytes
    return None


def _fitting(left_bytes: Mapping[str, int], size_bytes: int) -> Iterator[str]:
    """Return the devices with room for so much, the fullest first; of those with equal room one."""
    by_room = {left: device for device, left in left_bytes.items() if left >= size_bytes}
    return iter([by_room[left] for left in sorted(by_room)])


def _too_large(name: str, sizes_bytes: Sequence[int], room: Mapping[str, int]) -> OutOfBudget:
    needed_bytes, free_bytes = sum(sizes_bytes), sum(room.values())
    there = ", ".join(f"{left:,} on {device}" for device, left in room.items())
    text = f"{name} needs {needed_bytes:,} bytes, and there are {there}, if all leave that may"
    missing_bytes = needed_bytes - free_bytes
    if missing_bytes > 0:
        text += f": {missing_bytes:,} too few, however it is divided"
    else:
        missing_bytes = max(max(sizes_bytes) - max(room.values()), 1)
        text += f": its largest tensor has {max(sizes_bytes):,}, and no way was found to divide the others"
    return OutOfBudget(text, needed=needed_bytes, free=free_bytes, missing=missing_bytes)


def _note(layers: Sequence[Layer], placed: Sequence[str]) -> str:
    sizes_bytes: dict[str, int] = {}
    for layer, device in zip(layers, placed, strict=True):
        sizes_bytes[device] = sizes_bytes.get(device, 0) + layer.size_bytes
    parts = ", ".join(f"{size_bytes:,} bytes on {device}" for device, size_bytes in sizes_bytes.items())
    return f"it fits on no device alone, and is divided: {parts}"
