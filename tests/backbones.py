"""Models that share a backbone, for the tests of sharing; importable by workers."""

from __future__ import annotations

import warnings

import torch
from torch import nn

#: Elements of a weight that is a region of its own: 4 MiB.
SIDE = 1024


class Backboned(nn.Module):
    """A backbone that is the same in all, and a head that is not; a cache and running statistics of zeros."""

    def __init__(self, head: int = 0, layers: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(*(nn.Linear(SIDE, SIDE) for _ in range(layers)))
        torch.manual_seed(1 + head)
        self.head = nn.Linear(SIDE, SIDE)
        self.register_buffer("cache", torch.zeros(1 << 18))
        self.register_buffer("statistics", torch.zeros(1 << 18))
        self.eval()

    def forward(self, x):
        return self.head(self.backbone(x))

    def note(self, value: float):
        """Write into one of the two equal buffers; return what is in both."""
        self.cache[:] = value
        return self.peek()

    def peek(self) -> tuple[float, float]:
        return float(self.cache[0]), float(self.statistics[0])


class Folded(nn.Module):
    """A large weight and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1 << 20))

    def forward(self, x):
        return x + self.weight[-4:]


class Scaled(nn.Module):
    """Two large weights, for two files."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1 << 18))
        self.bias = nn.Parameter(torch.empty(1 << 18))

    def forward(self, x):
        return x * self.weight + self.bias


def make_script():
    """A module that only TorchScript can save."""
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is on its way out
        return torch.jit.script(nn.Sequential(nn.Linear(SIDE, SIDE), nn.ReLU())).eval()
