"""What loads were seen to take, here and in earlier pools, and what is expected of the next one by it.

A load is known again by its key, which its client gives it. What is expected of it decides where it goes, what its
loader counts with before it is measured, and what its return from the disk is thought to cost. It may be wrong: so
it may delay others or let idle weights go, and it refuses nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...protocol.messages import LoadModel
from .instructions import Instruction, RememberLoad
from .seen import NOTHING, Seen, merged
from .weights import WeightSet

#: The option with a load's key, and how long a key is at most.
LOAD_KEY: Final = "load_key"
MAX_KEY: Final = 64
#: So many loads are known, those learned of last.
MAX_LOADS: Final = 1000
#: A load that takes so many times as long as expected, and at least so long, is not what was expected: it counts
#: with what it is measured to take, and no more.
OVERDUE_FACTOR: Final = 4.0
LEAST_OVERDUE_S: Final = 10.0


class Predictions:
    """Tells what is expected of loads; one for all devices of a pool.

    Args:
        known: what earlier pools have seen, by load key.
        out: where instructions go.
    """

    def __init__(self, known: Mapping[str, Seen], out: list[Instruction]) -> None:
        self._known = dict(known)
        self._out = out

    def of(self, load: LoadModel) -> Seen:
        """Return what is expected of a load."""
        key = key_of(load.options)
        return self._known.get(key, NOTHING) if key else NOTHING

    def size_bytes(self, load: LoadModel) -> int:
        """Return how large its weights should be: as they were, else as files tell; 0 if nobody knows."""
        weights_bytes = self.of(load).weights_bytes
        return int(load.options.get("size_bytes", 0)) if weights_bytes is None else weights_bytes

    def saw(self, version: WeightSet, seen: Seen) -> None:
        """Take in what was seen of a weight set, and have it kept for pools to come if that is news."""
        version.seen = merged(version.seen, seen)
        key, before = key_of(version.load.options), self.of(version.load)
        if key and (after := merged(before, version.seen)) != before:
            self._known.pop(key, None)
            self._known[key] = after
            if len(self._known) > MAX_LOADS:
                del self._known[next(iter(self._known))]
            self._out.append(RememberLoad(key, after))


def key_of(options: Mapping[str, Any]) -> str:
    """Return the key of a load with these options; empty if it has none."""
    key = options.get(LOAD_KEY)
    return key if type(key) is str and len(key) <= MAX_KEY else ""


def is_overdue(version: WeightSet, now: float) -> bool:
    """Whether a load takes far longer than expected."""
    if version.forked_at is None:
        return False
    return now - version.forked_at > max(LEAST_OVERDUE_S, OVERDUE_FACTOR * (version.expected.load_s or 0.0))
