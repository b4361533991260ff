"""A model without weights, for a pool that is started to be measured: it imports what others would."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Sequence
from typing import Any

import torch


class StandIn:
    """Has the modules of other models.

    Args:
        modules: their names; what cannot be imported is left out, as it is by the models' own workers.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self.modules: list[Any] = []
        for name in modules:
            with contextlib.suppress(Exception):
                self.modules.append(importlib.import_module(name))

    def __call__(self) -> int:
        """Have the libraries that compute set themselves up; return this process's private memory, in bytes."""
        with torch.inference_mode():
            for module, inputs in _samples():
                module(inputs)
        return private_bytes()


def _samples() -> list[tuple[torch.nn.Module, torch.Tensor]]:
    """Return small models of the usual kinds, and what to call them with."""
    images = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 16, 3, groups=16), torch.nn.SiLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
    )  # fmt: skip
    words = torch.nn.Sequential(
        torch.nn.Embedding(100, 64), torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True),
        torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Softmax(-1),
    )  # fmt: skip
    return [
        (images.eval(), torch.rand(2, 3, 64, 64)),
        (words.eval(), torch.randint(100, (2, 32))),
        (torch.nn.LSTM(32, 32).eval(), torch.rand(16, 2, 32)),
    ]


def private_bytes() -> int:
    """Return the memory of this process that no other shares and no file backs."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        words = dict(line.split()[:2] for line in file.read().splitlines()[1:])
    return int(words["Private_Dirty:"]) * 1024
