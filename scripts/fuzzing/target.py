"""What a target of fuzzing is: something that takes bytes, and what it may do with them."""

from __future__ import annotations

import random as randomness
from collections.abc import Callable
from typing import NamedTuple

from .mutation import changed_bytes

#: How many inputs out of ten keep the form of a valid one.
_SHAPED_OF_TEN = 8
#: What is repeated again and again would only take longer.
_MOST_BYTES = 1 << 18


class Target(NamedTuple):
    """Something that takes bytes from outside.

    Attributes:
        check: is given any bytes; returns if they got what they ought to get, a value that is whole or the
            project's own error, and raises otherwise.
        seeds: valid inputs.
        change: returns an input that keeps the form of the one it is given, but for one thing.
    """

    check: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    change: Callable[[bytes, randomness.Random], bytes]

    def changed(self, data: bytes, random: randomness.Random) -> bytes:
        """Return another input; most often one that looks valid at first."""
        is_shaped = random.randrange(10) < _SHAPED_OF_TEN
        changed = (self.change if is_shaped else changed_bytes)(data, random)
        return changed if len(changed) <= _MOST_BYTES else data


def require(is_right: bool, what: str) -> None:
    """Raise if something that was accepted is not what it claims to be."""
    if not is_right:
        raise AssertionError(what)
