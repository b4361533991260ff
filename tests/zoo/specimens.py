"""What a row of the zoo's tables says: which architecture, how small, and what it is fed with."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

#: Words that the models know; the first few are special to some of them.
VOCABULARY = 99
_FIRST_WORD = 5

Inputs = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Specimen:
    """One architecture.

    Attributes:
        model: name of the class in transformers.
        settings: of its config, those that differ from the defaults.
        inputs: makes the arguments of the call, the same ones each time.
        method: which method is called.
    """

    model: str
    settings: Mapping[str, Any]
    inputs: Inputs
    method: str = "__call__"

    @property
    def name(self) -> str:
        """What it is called in tests and pools."""
        return self.model if self.method == "__call__" else f"{self.model}.{self.method}"

    def build(self) -> torch.nn.Module:
        """Return the model with random weights, the same ones each time."""
        import transformers

        torch.manual_seed(0)
        random.seed(0)
        cls = getattr(transformers, self.model)
        return cls(cls.config_class(**self.settings)).eval()


def tokens(length: int = 7, *names: str) -> Inputs:
    """Make arguments of words, two rows of them."""

    def make() -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1)
        size = (2, length)
        return {
            name: torch.randint(_FIRST_WORD, VOCABULARY, size, generator=generator)
            for name in names or ("input_ids",)
        }

    return make


def noise(**shapes: tuple[int, ...]) -> Inputs:
    """Make arguments of floating-point numbers, of these names and shapes."""

    def make() -> dict[str, Any]:
        generator = torch.Generator().manual_seed(2)
        return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    return make


def pixels(size: int = 32, *, channels: int = 3, batch: int = 1) -> Inputs:
    """Make square images."""
    return noise(pixel_values=(batch, channels, size, size))


def both(*makers: Inputs, **constants: Any) -> Inputs:
    """Make the arguments of several makers, and some constants."""

    def make() -> dict[str, Any]:
        return {name: value for maker in makers for name, value in maker().items()} | constants

    return make
