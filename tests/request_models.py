"""Models for the tests of how requests travel: quick ones, ones that yield, ones that fail for one argument."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time

import torch


class Quick:
    """Costs nothing."""

    def __call__(self, x):
        return x

    def checked(self, x):
        if x < 0:
            raise ValueError(f"{x} is negative")
        return x

    def deadly(self, x):
        if x < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    def large(self, x):
        return torch.full((100_000,), float(x))

    def odd(self, x):
        return threading.Lock() if x < 0 else x

    def pid(self, _=None):
        return os.getpid()

    def write(self, path, word):
        with open(path, "a") as file:
            file.write(f"{word}\n")

    def wait_for(self, path, begun=""):
        """Return once a file exists; make another one first, to tell that it runs."""
        if begun:
            os.close(os.open(begun, os.O_CREAT))
        while not os.path.exists(path):
            time.sleep(0.002)
        return path

    def wait_if_path(self, x):
        """Return a number at once, and a path once there is a file."""
        return x if isinstance(x, int) else self.wait_for(x)

    def meet(self, folder, count):
        """Return once as many runs as that are under way at once, each on a worker of its own."""
        os.close(os.open(os.path.join(folder, str(os.getpid())), os.O_CREAT))
        while len(os.listdir(folder)) < count:
            time.sleep(0.002)
        return os.getpid()


class Yielding:
    """Its methods yield."""

    def __call__(self, count):
        yield from range(count)

    def fail_after(self, count):
        yield from range(count)
        raise ValueError(f"only {count}")

    def endless(self, path):
        """Tell by a file when it ends."""
        try:
            yield from itertools.count()
        finally:
            os.close(os.open(path, os.O_CREAT))

    def wait_between(self, path):
        yield 0
        while not os.path.exists(path):
            time.sleep(0.002)
        yield 1

    def arrays(self, count):
        for number in range(count):
            yield torch.full((10_000,), float(number))

    def die_after(self, count):
        yield from range(count)
        os.kill(os.getpid(), signal.SIGKILL)

    def ahead(self, path):
        """Tell by the size of a file how many items were asked for."""
        for number in itertools.count():
            with open(path, "ab") as file:
                file.write(b".")
            yield number

    def listed(self, count):
        return list(range(count))

    def pid(self):
        return os.getpid()
