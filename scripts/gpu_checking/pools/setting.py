"""How large the experiments are, and what a GPU has free meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..units import MIB

DEVICE = "cuda:0"
#: What NVML and the driver move back and forth without anybody doing anything.
SLACK_BYTES = 32 * MIB


@dataclass(frozen=True)
class Sizes:
    """How large models are, and how often something is done.

    Attributes:
        layers, width, inner, heads: of the large decoder.
        tokens: of a prompt.
        workers: that share it.
        shapes: how many requests come, each with another shape.
        seconds: how long rates are measured.
    """

    layers: int = 32
    width: int = 4096
    inner: int = 11008
    heads: int = 32
    tokens: int = 512
    workers: int = 8
    shapes: int = 10_000
    seconds: float = 4.0


#: To see whether an experiment runs, where there is no GPU to say anything about.
SMALL = Sizes(layers=2, width=128, inner=256, heads=4, tokens=16, workers=2, shapes=50, seconds=0.2)


def sizes() -> Sizes:
    """Return those of this run."""
    return SMALL if os.environ.get("GPU_CHECK_SMALL") else Sizes()


def pool_of(models: dict[str, Any], **options: Any) -> Any:
    """Return a pool on the GPU."""
    from onecopy.pool import Pool

    return Pool(models, devices={DEVICE: {}}, **options)


def available_bytes() -> int:
    """Return what is free on the GPU, whoever has the rest."""
    from onecopy.pool.memory.gpus import NvmlGpu

    return NvmlGpu(0).available_bytes()


def settled_bytes(timeout_s: float = 3.0) -> int:
    """Return what is free once that changes no more: memory of what has ended comes back late."""
    until = time.monotonic() + timeout_s
    last = available_bytes()
    while time.monotonic() < until:
        time.sleep(0.3)
        now = available_bytes()
        if now == last:
            break
        last = now
    return last


def seconds_until(is_so: Callable[[], bool], timeout_s: float) -> float | None:
    """Return after how long something was so; None if it was not in time."""
    began_at = time.monotonic()
    while (passed_s := time.monotonic() - began_at) < timeout_s:
        if is_so():
            return passed_s
        time.sleep(0.01)
    return None
