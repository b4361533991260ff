"""Small models and functions that workers load by name."""

from __future__ import annotations

import os
import signal
import time

import torch


class Add(torch.nn.Module):
    """Adds its one parameter."""

    def __init__(self, amount: float = 1.0):
        super().__init__()
        self.amount = torch.nn.Parameter(torch.tensor(float(amount)))

    def forward(self, x):
        return torch.as_tensor(x) + self.amount

    def scaled(self, x, by=1.0):
        return self(x) * by


class Toys:
    """Methods that do one thing each."""

    def echo(self, *args, **kwargs):
        return [list(args), kwargs] if kwargs or len(args) != 1 else args[0]

    def describe(self, *args):
        return [f"{type(x).__module__}.{type(x).__name__} {getattr(x, 'dtype', '')}".strip() for x in args]

    def square(self, x):
        """Fail for what has no square, wait for what is a path."""
        if isinstance(x, str):
            self.wait_for(x)
            return x
        if x < 0:
            raise ValueError(f"{x} is negative")
        return x * x

    def wait_for(self, path):
        open(f"{path}.seen", "w").close()
        while not os.path.exists(path):
            time.sleep(0.005)
        return path

    def say(self, text):
        print(text)
        return text

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def odd(self, kind):
        return {
            "nan": [float("nan"), float("inf"), -float("inf"), 1.5],
            "bytes": b"abc",
            "complex": 1 + 2j,
            "tuple": (1, (2, None)),
            "keys": {1: "one", None: "none"},
            "tuple key": {"a": {(1, 2): 3}},
            "array": torch.tensor([[0.1, float("nan")]]),
            "half": torch.tensor([0.1], dtype=torch.bfloat16),
            "text": "hé\u2028",
        }[kind]


class Endless:
    """A stream that does not end."""

    def count(self):
        number = 0
        while True:
            yield number
            number += 1


def toys():
    return Toys()


def broken():
    raise RuntimeError("no such weights")
