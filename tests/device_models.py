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
