"""How the architectures of the zoo are called; importable by workers, because `tests` is on the path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

SEED = 20


class Exhibit:
    """Calls a model and gives every tensor of what it returned, caches and all, by its path.

    Args:
        model: of transformers.
        method: which of its methods is called.
    """

    def __init__(self, model: torch.nn.Module, method: str = "__call__") -> None:
        self.model = model
        self.method = method

    def __call__(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        torch.manual_seed(SEED)  # some draw noise, or mask at random, outside of training, too
        return dict(tensors_of(getattr(self.model, self.method)(**inputs)))


def tensors_of(value: Any, path: str = "out") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tensor in a nested value, with its path."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from tensors_of(part, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from tensors_of(part, f"{path}[{index}]")
    elif type(value).__module__.startswith("transformers."):  # a cache and its layers
        for key, part in vars(value).items():
            yield from tensors_of(part, f"{path}.{key}")
