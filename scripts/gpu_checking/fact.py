"""What a fact is: a sentence, the experiment that tries it, and how long that may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .check import Check


@dataclass(frozen=True)
class Fact:
    """One entry of a catalogue."""

    name: str
    limit_s: float
    experiment: Callable[[Check], None]

    @property
    def statement(self) -> str:
        """The fact in one sentence: the docstring of its experiment."""
        return " ".join((self.experiment.__doc__ or "").split())
