"""Which of a pool's devices a core is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .core import Core


@dataclass(frozen=True)
class Position:
    """Which of a pool's devices a core is for.

    Attributes:
        name: what the device is called.
        index: which one it is, from 0.
        count: how many there are.
        host: the core of the first, in whose memory mailboxes lie; None: this is it.
    """

    name: str = "cpu"
    index: int = 0
    count: int = 1
    host: Core | None = None


ALONE: Final = Position()
