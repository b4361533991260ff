"""In which order loads take the least memory at once.

A load takes more while it is under way than what it leaves: what a factory builds is in the loader's memory before
it is in regions. One after the other, the peak is the largest of what is there already and the step of the next.
It is lowest if those come first that give back most when they are done: two neighbours in another order can only
gain by changing places. Of those that give back equally much, small ones come first: they serve the sooner.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Load(NamedTuple):
    """A load.

    Attributes:
        model: its name.
        kept_bytes: what is taken when it is done.
        step_bytes: the most that is taken until then, at least as much.
    """

    model: str
    kept_bytes: int
    step_bytes: int


def best_order(loads: Iterable[Load]) -> list[Load]:
    """Return the loads in the order in which the least memory is taken at once."""
    return sorted(loads, key=lambda load: (load.kept_bytes - load.step_bytes, load.kept_bytes, load.model))


def peak_bytes(loads: Sequence[Load]) -> int:
    """Return the most that is taken at once if loads come one after the other."""
    kept_bytes = highest_bytes = 0
    for load in loads:
        highest_bytes = max(highest_bytes, kept_bytes + load.step_bytes)
        kept_bytes += load.kept_bytes
    return highest_bytes
