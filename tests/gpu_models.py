"""Models that tell where their memory is."""

from __future__ import annotations

import ctypes
import os
import threading

import numpy as np
import torch
from torch import nn

WIDTH = 256


class Net(nn.Module):
    """All that a module can have: weights, tied ones, buffers, tensors that it has not registered, an array."""

    def __init__(self, seed: int = 0, width: int = WIDTH) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(width, 2 * width)
        self.norm = nn.BatchNorm1d(2 * width)
        self.last = nn.Linear(2 * width, width)
        self.tied = self.first.weight
        self.register_buffer("runs", torch.zeros(1))
        self.loose = torch.full((3,), 0.5)
        self.array = np.arange(100_000.0)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        hidden = torch.relu(self.norm(self.first(x)))
        return self.last(hidden) @ self.tied.T.softmax(0) + self.loose[0] + float(self.array[3])

    def count(self) -> int:
        return int(self.runs)

    def pid(self) -> int:
        return os.getpid()

    def spoil(self) -> None:
        with torch.no_grad():
            self.first.weight.zero_()

    def places(self) -> dict[str, str]:
        """Return what stands behind the address of each tensor, as the kernel tells: rights, and a name."""
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers()), "loose": self.loose}
        places = {name: place_of(tensor.data_ptr()) for name, tensor in tensors.items()}
        return {**places, "array": place_of(self.array.ctypes.data)}


class Same(nn.Module):
    """A large weight that does not depend on the seed, and a small one that does."""

    def __init__(self, seed: int = 0, size_bytes: int = 40 << 20) -> None:
        super().__init__()
        self.large = nn.Parameter(torch.arange(size_bytes // 4, dtype=torch.float32), requires_grad=False)
        self.small = nn.Parameter(torch.tensor([float(seed)]), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.large[-1] + self.small


class Wide(nn.Module):
    """A weight that no other seed has."""

    def __init__(self, seed: int, size_bytes: int = 80 << 20) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(size_bytes // 4, dtype=torch.float32) + seed, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight[7]

    @staticmethod
    def value(seed: int) -> torch.Tensor:
        return torch.tensor([7.0 + seed])


class Layers(nn.Module):
    """Many, each with a weight of its own; what one makes the next one takes."""

    def __init__(self, count: int, size_bytes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Wide(seed, size_bytes) for seed in range(count))
        self.scale = nn.Parameter(torch.tensor([0.5]), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x) * self.scale
        return x


class Urgent(nn.Module):
    """Tells how urgent what it tells the GPU is, as the stand-in for the driver has it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, _: object) -> int:
        return int(ctypes.CDLL("libcuda.so.1").stand_in_priority())


class Stuck(nn.Module):
    """It is never built."""

    def __init__(self) -> None:
        super().__init__()
        threading.Event().wait()


def place_of(address: int) -> str:
    with open("/proc/self/maps") as maps:
        for line in maps:
            bounds, rights, _, _, _, *name = line.split()
            first, end = (int(one, 16) for one in bounds.split("-"))
            if first <= address < end:
                return f"{rights} {name[0] if name else ''}"
    raise ValueError(f"nothing is at {address:#x}")
