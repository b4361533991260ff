"""Models for the tests of batches, streams and interruption; importable by workers."""

from __future__ import annotations

import dataclasses
import os
import queue
import signal
import threading
import time
from collections import UserDict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from slot_models import is_in_slot
from torch import nn


class Pair(NamedTuple):
    first: object
    second: object


@dataclasses.dataclass
class Record:
    double: torch.Tensor
    length: torch.Tensor


class Batched(nn.Module):
    """Notes what it was called with; most of its methods double their input."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[object] = []

    def seen(self):
        """What it was called with since it was asked last."""
        calls, self.calls = self.calls, []
        return calls

    def _note(self, value):
        self.calls.append(len(value) if isinstance(value, list) or getattr(value, "ndim", 0) else None)

    def forward(self, x):
        self._note(x)
        return x * 2

    def picky(self, x):
        self._note(x)
        if (x < 0).any():
            raise ValueError(f"negative: {float(x.min())}")
        return x * 2

    def spoiling(self, xs):
        """Write into what came, and take no more than one at a time."""
        self._note(xs)
        for x in xs:
            x += 1
        if len(xs) > 1:
            raise RuntimeError("one at a time")
        return [float(x.sum()) for x in xs]

    def nested(self, x, *, scale=1.0, more=None):
        self._note(x)
        y = x * scale + (0 if more is None else more["bias"])
        return {"y": y, "pair": (y + 1, [y + 2]), "none": None, "named": Pair(y, y)}

    def record(self, x):
        self._note(x)
        return UserDict({"inner": Record(x * 2, torch.full((len(x),), len(x)))})

    def encode(self, texts, language="en", *, upper=False):
        """As SentenceTransformer does: a text gives a vector, and a list of them a matrix."""
        self._note([texts] if isinstance(texts, str) else texts)
        assert language == "en"
        several = [texts] if isinstance(texts, str) else texts
        found = np.array([[len(one), ord((one.upper() if upper else one)[0])] for one in several], np.float32)
        return found[0] if isinstance(texts, str) else found

    def words(self, texts):
        self._note([texts] if isinstance(texts, str) else texts)
        several = [texts] if isinstance(texts, str) else texts
        found = [{"words": one.split()} for one in several]
        return found[0] if isinstance(texts, str) else found

    def labels(self, x):
        self._note(x)
        return {"labels": ["even" if row.sum() % 2 == 0 else "odd" for row in x], "x": x}

    def mean(self, x):
        self._note(x)
        return {"mean": x.mean(), "x": x}

    def in_pairs(self, pair):
        x, y = pair
        self._note(x)
        return x + y

    def scalar(self, x):
        self._note(x)
        return x + 1

    def locked(self, x):
        return threading.Lock() if x == 3 else x

    def long(self, count):
        return "x" * count

    def deadly(self, x):
        if (x < 0).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    def dividing(self, x):
        return 12 / x

    def slow(self, x):
        time.sleep(0.2)
        return x

    # --- hooks ----------------------------------------------------------------------------------------------

    def longest(self, x):
        """Take padded rows only, each with its length."""
        self._note(x)
        return x

    def padded(self, calls):
        rows = [args[0] for args, _ in calls]
        return (nn.utils.rnn.pad_sequence(rows, batch_first=True),), {}

    def unpadded(self, result, count):
        return [row[row != 0] for row in result]

    def too_few(self, result, count):
        return list(result[: count - 1])

    def no_list(self, result, count):
        return result

    def no_call(self, calls):
        return [args[0] for args, _ in calls]


class Layers(nn.Module):
    """Calls its one layer again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()
        self.cleaned: list[str] = []

    def forward(self, x):
        return self.layer(x)

    def loop(self, begun: str, count: int = 10**9):
        Path(begun).touch()
        for number in range(count):
            try:
                self.layer(number)
            except Exception:
                self.cleaned.append("an Exception")
        return count

    def pid(self):
        return os.getpid()

    def hooks(self):
        return len(nn.modules.module._global_forward_pre_hooks)

    def touch_and_sleep(self, path: str):
        Path(path).touch()
        time.sleep(0.2)
        return path

    def seen(self):
        cleaned, self.cleaned = self.cleaned, []
        return cleaned

    # --- streams --------------------------------------------------------------------------------------------

    def count(self, stop: int, fail_at: int = -1, path: str = ""):
        try:
            for number in range(stop):
                if number == fail_at:
                    raise KeyError(f"at {number}")
                if path and number == 1:
                    Path(path).touch()
                yield number
        finally:
            self.layer("called while it is closed")
            self.cleaned.append("closed")
            if path:
                raise RuntimeError("of no interest")

    def busy(self, begun: str):
        try:
            yield "first"
            self.loop(begun)
        finally:
            self.cleaned.append("closed")

    def tensors(self, count: int, size: int):
        for number in range(count):
            x = torch.full((size,), float(number))
            yield is_in_slot(x), x

    def from_thread(self, count: int):
        """Tensors that a second thread makes, as tokens of `generate` are."""
        made: queue.Queue[object] = queue.Queue()

        def make() -> None:
            for number in range(count):
                made.put(torch.full((100_000,), float(number)) + 1)
            made.put(None)

        thread = threading.Thread(target=make)
        thread.start()
        while (one := made.get()) is not None:
            yield is_in_slot(one), one
        thread.join()

    def modes(self):
        for _ in range(3):
            yield torch.is_inference_mode_enabled()

    def a_list(self):
        return [1, 2]

    def unsendable(self):
        yield 1
        yield threading.Lock()
