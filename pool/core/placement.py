"""Which model goes on which device: so that everything fits, what computes much is apart, and weights are shared.

Better is, in this order: fewer bytes that do not fit; fewer pairs of models on one device that are both bound by
computing; fewer bytes taken (equal weights on one device are there once); more free in one piece, for what comes.

Each of these can only become worse as one model after the other is placed, so a search that gives up whatever is
not better than the best so far finds the optimum: branch and bound (Land and Doig, 1960). It begins with the
largest of those that compute, on the device where that is best. After too many steps it takes the best so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

#: So many placements of one model are tried before the search ends.
MAX_STEPS: Final = 20_000


class Item(NamedTuple):
    """A model.

    Attributes:
        name: what it is called.
        parts_bytes: its weights, by what tells equal ones.
        need_bytes: what a run takes of a slot.
        private_bytes: what all workers of a device together need for it besides.
        is_compute_bound: whether its runs wait for the cores, rather than for memory.
        devices: where it may be; empty: anywhere.
    """

    name: str
    parts_bytes: Mapping[tuple[Any, ...], int]
    need_bytes: int = 0
    private_bytes: int = 0
    is_compute_bound: bool = False
    devices: tuple[str, ...] = ()


class Room(NamedTuple):
    """A device.

    Attributes:
        name: what it is called.
        free_bytes: what models may take there.
        slots: how many runs may be under way there at once.
    """

    name: str
    free_bytes: int
    slots: int = 1


class Placement(NamedTuple):
    """Where models go.

    Attributes:
        device_of: by model.
        used_bytes: by device, what the models there take.
        missing_bytes: by device, how much too large they are; only where they are.
        crowded: how many pairs of models that are bound by computing share a device.
        is_best: whether there is certainly none better.
    """

    device_of: dict[str, str]
    used_bytes: dict[str, int]
    missing_bytes: dict[str, int]
    crowded: int
    is_best: bool


#: What makes one placement better than another; the smaller is.
_Cost = tuple[int, int, int, int]


def place(items: Sequence[Item], rooms: Sequence[Room]) -> Placement:
    """Return the best placement of models on devices.

    Raises:
        ValueError: there are no devices, or a model may be on none of those there are.
    """
    names = {room.name for room in rooms}
    for item in items:
        if not (names.intersection(item.devices) if item.devices else names):
            raise ValueError(f"{item.name} may be on {', '.join(item.devices) or 'any device'}, and there is none")
    search = _Search(
        sorted(items, key=lambda item: (item.is_compute_bound, _size_bytes(item)), reverse=True), rooms
    )
    search.run()
    if not search.is_exhaustive and search.is_too_large:  # large ones first fit more easily
        search = _Search(sorted(items, key=_size_bytes, reverse=True), rooms)
        search.run()
    return search.answer()


def _size_bytes(item: Item) -> int:
    return sum(item.parts_bytes.values()) + item.private_bytes + item.need_bytes


class _Device:
    """A device with what is on it so far."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.used_bytes = 0
        self.items: list[Item] = []

    def with_item(self, item: Item) -> tuple[int, int]:
        """Return what would be taken, and how many more pairs of models would be in each other's way."""
        there = {key for other in self.items for key in other.parts_bytes}
        weights_bytes = sum(size for key, size in item.parts_bytes.items() if key not in there)
        need_bytes = max((other.need_bytes for other in self.items), default=0)
        slots_bytes = self.room.slots * max(0, item.need_bytes - need_bytes)
        pairs = sum(other.is_compute_bound for other in self.items) if item.is_compute_bound else 0
        return self.used_bytes + weights_bytes + slots_bytes + item.private_bytes, pairs


class _Search:
    def __init__(self, items: Sequence[Item], rooms: Sequence[Room]) -> None:
        self._items = items
        self._devices = [_Device(room) for room in rooms]
        self._are_alike = not any(item.devices for item in items)
        self._steps = 0
        self._best_cost: _Cost | None = None
        self._best: list[int] = []

    @property
    def is_exhaustive(self) -> bool:
        """Whether nothing better can have been missed."""
        return self._steps < MAX_STEPS

    @property
    def is_too_large(self) -> bool:
        """Whether something does not fit."""
        return self._best_cost is not None and self._best_cost[0] > 0

    def run(self) -> None:
        self._descend(0, 0, [])

    def answer(self) -> Placement:
        devices = [_Device(one.room) for one in self._devices]
        crowded = 0
        for item, index in zip(self._items, self._best, strict=True):
            devices[index].used_bytes, pairs = devices[index].with_item(item)
            devices[index].items.append(item)
            crowded += pairs
        used_bytes = {one.room.name: one.used_bytes for one in devices}
        missing_bytes = {
            one.room.name: one.used_bytes - one.room.free_bytes
            for one in devices
            if one.used_bytes > one.room.free_bytes
        }
        device_of = {item.name: device.room.name for device in devices for item in device.items}
        return Placement(device_of, used_bytes, missing_bytes, crowded, self.is_exhaustive)

    def _descend(self, depth: int, crowded: int, chosen: list[int]) -> None:
        """Place the models from this one on in every way that may be better than the best so far."""
        if depth == len(self._items):
            self._best_cost, self._best = self._cost(crowded), list(chosen)
            return
        item = self._items[depth]
        for cost, index, used_bytes, pairs in sorted(self._choices(item, crowded)):
            is_hopeless = self._best_cost is not None and cost >= self._best_cost
            if is_hopeless or (self._best and self._steps >= MAX_STEPS):
                return  # those that follow are no better
            self._steps += 1
            device = self._devices[index]
            before_bytes, device.used_bytes = device.used_bytes, used_bytes
            device.items.append(item)
            self._descend(depth + 1, crowded + pairs, [*chosen, index])
            device.items.pop()
            device.used_bytes = before_bytes

    def _choices(self, item: Item, crowded: int) -> list[tuple[_Cost, int, int, int]]:
        """Return where a model may go: what all would cost then, the device, what it has then, new pairs."""
        choices: list[tuple[_Cost, int, int, int]] = []
        empty: set[tuple[int, int]] = set()
        for index, device in enumerate(self._devices):
            if item.devices and device.room.name not in item.devices:
                continue
            alike = (device.room.free_bytes, device.room.slots)
            if self._are_alike and not device.items:
                if alike in empty:
                    continue
                empty.add(alike)
            used_bytes, pairs = device.with_item(item)
            before_bytes, device.used_bytes = device.used_bytes, used_bytes
            choices.append((self._cost(crowded + pairs), index, used_bytes, pairs))
            device.used_bytes = before_bytes
        return choices

    def _cost(self, crowded: int) -> _Cost:
        free_bytes = [one.room.free_bytes - one.used_bytes for one in self._devices]
        missing_bytes = -sum(min(0, free) for free in free_bytes)
        return missing_bytes, crowded, sum(one.used_bytes for one in self._devices), -max(free_bytes)
