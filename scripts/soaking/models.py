"""What the pool runs while it is attacked: models whose every answer tells what it was made of."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from .pattern import FACTOR, SIZE, weights


class Stamp(nn.Module):
    """Stamps whatever it is given with its version and a sum of its weights.

    Args:
        seed: of its weights: its version.
        size: how many weights it has, of 8 bytes.
    """

    def __init__(self, seed: int, size: int = SIZE) -> None:
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(weights(seed, 0, size)))
        self.register_buffer("version", torch.tensor(seed))
        self._calls: Counter[str] = Counter()

    def forward(self, tag: str, start: int, count: int) -> list[Any]:
        """Answer a small request."""
        return [tag, int(self.version), int(self.weight[start : start + count].sum())]

    def one(self, asked: list[Any]) -> list[Any]:
        """Answer a small request that is one argument, as those of `map` and of jobs are."""
        return self(*asked)

    def array(self, tag: str, x: Any) -> list[Any]:
        """Answer a request that carries a large array with one."""
        values = torch.from_numpy(np.array(x))
        return [tag, int(self.version), (values * FACTOR + self.weight[: len(values)]).numpy()]

    def rows(self, x: Any) -> Any:
        """Answer rows of (tag, place) with rows of (tag, weight at that place, version)."""
        tags, places = torch.as_tensor(x).T
        return torch.stack([tags, self.weight[places], self.version.expand(len(tags))], dim=1).numpy()

    def items(self, tag: str, count: int) -> Iterator[list[Any]]:
        """Yield so many items."""
        for number in range(count):
            yield [tag, int(self.version), number, int(self.weight[number])]

    def nap(self, tag: str, seconds: float) -> list[Any]:
        """Answer after a while."""
        time.sleep(seconds)
        return self(tag, 0, 64)

    def fill(self, tag: str, size_bytes: int, seconds: float) -> list[Any]:
        """Use so much of a slot for a while, and answer."""
        taken = torch.ones(size_bytes, dtype=torch.uint8)
        time.sleep(seconds)
        return self(tag, 0, int(taken[:64].sum()))

    def count(self, tag: str, session: str) -> list[Any]:
        """Tell who answers, and which call of this session that is here."""
        self._calls[session] += 1
        return [*self(tag, 0, 64), os.getpid(), self._calls[session]]

    def fail(self, tag: str) -> None:
        """Raise."""
        raise ValueError(tag)

    def die(self, _tag: str) -> None:
        """End the process that runs this."""
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def hog(self, tag: str, size_bytes: int) -> list[Any]:
        """Take memory, all of it touched, and answer."""
        taken = np.ones(size_bytes, dtype=np.uint8)
        return self(tag, 0, int(taken[:64].sum()))


def late(seed: int, seconds: float, size: int = SIZE) -> Stamp:
    """Build a model slowly, so that something can happen meanwhile."""
    time.sleep(seconds)
    return Stamp(seed, size)


def failing(seed: int) -> Stamp:
    """Build no model."""
    raise ValueError(f"version {seed} cannot be built")
