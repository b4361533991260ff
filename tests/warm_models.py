"""Models that tell where they were thawed, or do there what they should not; importable by workers."""

from __future__ import annotations

import os
import signal
import threading
import time

import torch


class Where:
    """Multiplies; knows in which process it was thawed."""

    def __init__(self, size_bytes: int = 64, factor: float = 1.0) -> None:
        self.weight = torch.full((size_bytes // 4,), factor)
        self.thawed_in = 0

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.thawed_in = os.getpid()
        torch.ones(1 << 20).sum()  # something that torch would do with several threads

    def __call__(self, x):
        return x * self.weight[0]

    def where(self) -> tuple[int, int]:
        """Which process this is, and in which it was thawed; takes long enough for two workers to be asked."""
        time.sleep(0.005)
        return os.getpid(), self.thawed_in

    def draw(self) -> float:
        return float(torch.rand(1, dtype=torch.float64))


class Awkward(Where):
    """Starts a thread, raises, dies or hangs when it is thawed; but for the first only until a file exists."""

    def __init__(self, how: str, path: str) -> None:
        super().__init__()
        self.how = how
        self.path = path

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        if self.how == "thread":
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        elif self.how == "raises" and not os.path.exists(self.path):
            raise RuntimeError("not here")
        elif self.how == "dies" and not os.path.exists(self.path):
            os.kill(os.getpid(), signal.SIGSEGV)
        while self.how == "hangs" and not os.path.exists(self.path):
            time.sleep(0.01)


class Locked(torch.nn.Module):
    """Cannot be pickled, so that it is built anew wherever it is thawed."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.register_buffer("weight", torch.randn(1 << 10))
        self.thawed_in = os.getpid()

    def where(self) -> tuple[int, int]:
        time.sleep(0.005)
        return os.getpid(), self.thawed_in

    def first(self) -> float:
        return float(self.weight[0])


def make_late(path: str, begun: str) -> Where:
    """Wait for a file, after having made another one."""
    os.close(os.open(begun, os.O_CREAT))
    while not os.path.exists(path):
        time.sleep(0.002)
    return Where()
