"""Models that tell where they run."""

from __future__ import annotations

import os

import torch
from torch import nn


class Where(nn.Module):
    """So many bytes that nothing else has, and what its worker may use."""

    def __init__(self, seed: int = 0, size_bytes: int = 1 << 20) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.rand(size_bytes // 4, generator=generator), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight[:3].sum() + self.weight[-1]

    def pid(self) -> int:
        return os.getpid()

    def cores(self) -> list[int]:
        return sorted(os.sched_getaffinity(0))


class Deep(nn.Module):
    """So many layers of a megabyte each; a run passes all of them."""

    def __init__(self, layers: int = 8, width: int = 512) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x
