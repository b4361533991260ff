"""What is asked of every peer: the same requests, and the names of the models that answer them.

Without torch: the process that sends requests does not load it, since pages of torch's files that it shared with
workers would make theirs look smaller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

#: How large the model that memory is measured with is, and how large in a quick run.
BIG_BYTES, QUICK_BIG_BYTES = 1 << 30, 1 << 28
BIG_WIDTH = 2048
#: The environment variable that tells a peer's processes which of the two it is.
BIG_BYTES_VARIABLE = "PEERS_BIG_BYTES"

#: How many requests are under way where there are few: what a service has that is not busy.
FEW = 4

#: How weights come in. ``copied``: into memory of the process, as `load_state_dict` does. ``mapped``: the module's
#: tensors are those of the mapped file, whose pages all processes share.
Loading = Literal["copied", "mapped"]


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of request.

    Attributes:
        name: what its model is called in `models`.
        about: what it stands for.
        shape: of its array of float32; empty: it is a text.
        in_flight: how many requests are under way at once when the most that can be answered is measured.
    """

    name: str
    about: str
    shape: tuple[int, ...] = ()
    in_flight: int = 32

    @property
    def size_bytes(self) -> int:
        """How much a request carries."""
        return 4 * math.prod(self.shape) if self.shape else len(_TEXT)

    def payload(self) -> Any:
        """Return what a request carries: an array, or a text."""
        if not self.shape:
            return _TEXT
        return np.random.default_rng(0).standard_normal(self.shape, dtype=np.float32)

    def decode(self, body: bytes | memoryview) -> Any:
        """Return what the body of a request carries, as servers get it."""
        return np.frombuffer(body, np.float32).reshape(self.shape) if self.shape else str(body, "utf-8")


def encode(value: Any) -> bytes | memoryview:
    """Return the body of a request or answer: an array's bytes, or a text's."""
    return value.encode() if isinstance(value, str) else memoryview(np.ascontiguousarray(value)).cast("B")


def weights_path(name: str, folder: str) -> str:
    """Return where the weights of a workload lie, in the folder of all weights."""
    return str(Path(folder) / f"{name}.safetensors")


def who(answer: Any) -> int:
    """Return the process that gave an answer: the last number of each is its pid."""
    return int(np.asarray(answer).ravel()[-1])


_TEXT = "a short sentence about one copy of the weights"

WORKLOADS = {
    one.name: one
    for one in (
        Workload("small", "64 numbers through an MLP", (1, 64)),
        Workload("image", "1 x 3 x 224 x 224 through one light convolution", (1, 3, 224, 224)),
        Workload("large", "16 MiB, of which means are taken", (4096, 1024), in_flight=8),
        Workload("minilm", "one short text through all-MiniLM-L6-v2"),
        Workload("big", "random linear layers, for memory", (1, BIG_WIDTH), in_flight=8),
    )
}
