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
        gpu: which GPU it is, among those that this process can see; -1: it is none.
        peers: the names of the others whose memory its workers can use as if it were its own.
        spare_cores: how many of its workers can run without taking a core from who feeds them; at least 1.
    """

    name: str = "cpu"
    index: int = 0
    count: int = 1
    gpu: int = -1
    peers: tuple[str, ...] = ()
    spare_cores: int = 1 << 20

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU: what is in its memory keeps its size, and no process may fork that uses it."""
        return self.gpu >= 0


ALONE: Final = Position()
