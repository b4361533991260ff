"""Which of a pool's devices a core is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Position:
    """Which of a pool's devices a core is for.

    Attributes:
        name: what the device is called.
        index: which one it is, from 0.
        count: how many there are.
    """

    name: str = "cpu"
    index: int = 0
    count: int = 1


ALONE: Final = Position()
