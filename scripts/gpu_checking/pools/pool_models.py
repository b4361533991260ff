"""Models of the experiments. It imports torch: only workers and children may import it."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..models import DecoderLayer, EncoderLayer


class Decoder(nn.Module):
    """So many layers of a language model, which answer with the sum over the last of so many vectors."""

    def __init__(self, layers: int, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(DecoderLayer(width, inner, heads) for _ in range(layers)))

    def forward(self, given: Tensor) -> Tensor:
        """Return the last vector of each row."""
        return self.layers(given)[:, -1]

    def decode(self, given: Tensor, tokens: int) -> Tensor:
        """Run so often, each time on what came of the run before, as a language model does for one user."""
        for _ in range(tokens):
            given = self.layers(given)
        return given

    def forward_ms(self, given: Tensor, rounds: int) -> float:
        """Return the median time of a run, in this process."""
        return median_ms(lambda: self(given), rounds)

    def pid(self) -> int:
        """Return which process this is, a moment later, so that others get a turn."""
        time.sleep(0.05)
        return os.getpid()

    def spin(self, seconds: float) -> int:
        """Keep the GPU busy for about so long."""
        if torch.cuda.is_available():
            from .. import torch_side

            torch_side.sleep_on_gpu(seconds)
            torch.cuda.synchronize()
        else:
            time.sleep(seconds)
        return os.getpid()


def decoder_there(**shape: int) -> Decoder:
    """Return a decoder with weights of bfloat16, built on the GPU."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device()):
            return Decoder(**shape).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(usual)


class Encoder(nn.Module):
    """An encoder in the shape of all-MiniLM-L6-v2: its launches take longer than its kernels."""

    def __init__(self, layers: int = 6, width: int = 384, heads: int = 12) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads) for _ in range(layers)))
        self.eval()

    def forward(self, given: Tensor) -> Tensor:
        """Return as many vectors as are given."""
        return self.layers(given)


def device() -> torch.device:
    """Return where tensors go in a process without a pool."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def median_ms(run: Callable[[], object], rounds: int) -> float:
    """Return the median time of something, by the clock of who waits for it."""
    times = []
    for round_ in range(rounds + 3):
        started_at = time.perf_counter()
        run()
        synchronize()
        if round_ >= 3:
            times.append((time.perf_counter() - started_at) * 1e3)
    return statistics.median(times)


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
