"""Small models for the tests of the whole pool; importable by workers, because `tests` is on the path."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import psutil
import torch
from torch import nn


class Scale(nn.Module):
    """Multiplies by its one weight; tells about itself."""

    def __init__(self, factor: float = 2.0, size: int = 1000) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), factor))
        self.register_buffer("hidden", torch.arange(5.0), persistent=False)

    def forward(self, x):
        return x * self.weight[0]

    def pid(self) -> int:
        return os.getpid()

    def threads(self) -> int:
        return torch.get_num_threads()

    def address(self) -> int:
        return self.weight.data_ptr()

    def set_weight(self, value: float) -> tuple[int, float]:
        with torch.no_grad():
            self.weight.fill_(value)
        return self.peek()

    def peek(self) -> tuple[int, float]:
        """Who this is, and what weight it sees."""
        return os.getpid(), float(self.weight[0].detach())

    def grads(self) -> bool:
        return torch.is_grad_enabled()


class Trouble:
    """Does what models must not do."""

    def __init__(self) -> None:
        self.weight = torch.ones(10)

    def __call__(self, x):
        return x

    def fail(self, text: str):
        raise KeyError(text)

    def leave(self):
        sys.exit(3)

    def die(self, signum: int = signal.SIGKILL):
        os.kill(os.getpid(), signum)
        time.sleep(60)

    def die_once(self, path: str):
        """Die, but only the first time for this path; the second time return who runs it."""
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return os.getpid()
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    def wait_for(self, path: str, begun: str = ""):
        """Return once a file exists; make another one first, to tell that it runs."""
        if begun:
            os.close(os.open(begun, os.O_CREAT))
        while not os.path.exists(path):
            time.sleep(0.002)
        return os.getpid()

    def say(self, text: str):
        print(text)
        print(text, file=sys.stderr)

    def secret(self):
        return threading.Lock()

    def start_child(self) -> int:
        import subprocess

        return subprocess.Popen(["sleep", "600"]).pid


def make_scale(factor: float = 2.0):
    return Scale(factor)


def make_failing():
    raise ValueError("no such weights")


def make_dying():
    os.kill(os.getpid(), signal.SIGKILL)


def make_late(path: str, begun: str):
    Trouble().wait_for(path, begun)
    return Scale(5.0)


def make_too_large():
    return torch.empty(1 << 46, dtype=torch.uint8)


def make_larger_than_free():
    """Memory that nobody touches, so that it can be had; the region for it cannot."""
    memory = psutil.virtual_memory()
    return torch.empty((memory.total + memory.available) // 2, dtype=torch.uint8)


def make_unpicklable():
    return {"scale": Scale(), "lock": threading.Lock()}


class Locked(Scale):
    """Cannot be pickled, and is nowhere the same twice."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.register_buffer("noise", torch.randn(1 << 18))

    def noise_at(self, index: int) -> float:
        return float(self.noise[index])


def double(model):
    with torch.no_grad():
        model.weight *= 2


class DiesInThaw:
    """Thaws nowhere."""

    def __init__(self) -> None:
        self.weight = torch.ones(3)

    def __setstate__(self, state):
        raise RuntimeError("not here")


def make_dies_in_thaw():
    return DiesInThaw()
