"""Which devices a model can be divided among: that where it runs, and those whose memory can be used from there.

Parts of the processor's memory are within reach of all its processes. Of GPUs some can use the memory of others,
over a link between them; two that can use a third need not reach each other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping


def within_reach(room_bytes: Mapping[str, int], peers: Mapping[str, Collection[str]]) -> dict[str, int]:
    """Return the room of the devices to divide a model among: first where it is to run, then the largest.

    It runs where most room is within reach; of several such, on the one that has most itself.

    Args:
        room_bytes: by device, how much there is for it.
        peers: by device, the others whose memory can be used from there.
    """
    reached = {home: [home, *(one for one in peers[home] if one in room_bytes)] for home in room_bytes}
    home = max(reached, key=lambda one: (sum(room_bytes[name] for name in reached[one]), room_bytes[one]))
    others = sorted(reached[home][1:], key=lambda one: -room_bytes[one])
    return {one: room_bytes[one] for one in (home, *others)}
