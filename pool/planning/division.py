"""Models that fit on no device alone: their parts fill one device after the other, as a loader divides them. Pure.

That where it runs is filled first, part by part in the order of the manifest. What is left when all are full
counts there, so that it is seen how much too small the devices are.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..core.homes import KEPT_BYTES
from .found import Found, Part


def may_be_divided(one: Found) -> bool:
    """Return whether a pool would divide a model, if it can."""
    return bool(one.options.get("divide", True)) and one.options.get("replicas", 1) == 1


def divided(one: Found, rooms_bytes: Mapping[str, int]) -> dict[str, Found]:
    """Return what of a model would be on each device.

    What it takes besides its weights, by its runs and in its workers, it takes on the first of them.

    Args:
        one: the model.
        rooms_bytes: by device, what there is for weights; see `within_reach`.
    """
    order = list(rooms_bytes)
    left_bytes = {device: _usable_bytes(rooms_bytes[device]) for device in order}
    parts: dict[str, list[Part]] = {device: [] for device in order}
    for part in one.parts:
        size_bytes = 0 if part.is_file else part.size_bytes
        device = next((device for device in order if left_bytes[device] >= size_bytes), order[0])
        left_bytes[device] -= size_bytes
        parts[device].append(part)
    pieces = {device: Found(f"{one.name} on {device}", tuple(own)) for device, own in parts.items() if own}
    home = next(iter(pieces), order[0])
    return {**pieces, home: one._replace(parts=tuple(parts[home]))}


def _usable_bytes(room_bytes: int) -> int:
    """Return what a loader would take: it leaves a part for what else comes."""
    return room_bytes - min(KEPT_BYTES, room_bytes // 4)
