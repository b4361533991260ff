"""Models for the tests of mailboxes; importable by workers."""

from __future__ import annotations

import os
import signal
import time

import torch


def _wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.002)


class Arrays:
    """Takes and returns large arrays, in good ways and bad."""

    def __init__(self) -> None:
        self.weight = torch.ones(10)
        self.kept: list[torch.Tensor] = []

    def __call__(self, value):
        return value

    def make(self, count: int, fill: float):
        return torch.full((count,), fill)

    def add(self, x, y):
        return x + y

    def overwrite(self, x):
        total = float(x.sum())
        x.zero_()
        return total

    def keep(self, x):
        self.kept.append(x)
        return len(self.kept)

    def sums_of_kept(self):
        return [float(one.sum()) for one in self.kept]

    def make_late(self, count: int, fill: float, begun: str, until: str):
        """Tell that it runs; return an array once it may."""
        os.close(os.open(begun, os.O_CREAT))
        _wait_for(until)
        return torch.full((count,), fill)

    def sum_or_die(self, x, path: str):
        """Die with the input in hand, but only the first time; the second time return its sum."""
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return float(x.sum())
        os.kill(os.getpid(), signal.SIGKILL)
        return 0.0

    def fork_and_return(self, x):
        """Leave a child behind that outlives the run, as a data loader does."""
        child = os.fork()
        if not child:
            time.sleep(600)
            os._exit(0)
        return x * 2
