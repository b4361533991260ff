"""Forward passes inside a slot against plain torch: time, page faults, and how much of the slot they need.

Two processes per model, one with the slot's allocator preloaded and one without, which take turns; one thread
each. Plain torch gets fresh memory from the kernel for every large activation, page by page; a slot's pages stay.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
from onecopy.workers.arena import Arena, Slot, Usage, built
from torch import nn

TURNS = 15
FORWARDS = 2  # a turn
SLOT_BYTES = 1 << 30


def conv_net() -> tuple[nn.Module, torch.Tensor]:
    """Return a small residual net and a batch of photographs."""

    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.BatchNorm2d(channels),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x + self.layers(x))

    parts: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1)]
    for channels in (32, 64, 128):
        parts += [Block(channels), nn.Conv2d(channels, 2 * channels, 2, stride=2)]
    return nn.Sequential(*parts), torch.rand(8, 3, 112, 112)


def mlp() -> tuple[nn.Module, torch.Tensor]:
    """Return a perceptron with GELU and a large batch."""
    layers = [part for _ in range(3) for part in (nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256))]
    return nn.Sequential(*layers), torch.rand(10_000, 256)


def transformer() -> tuple[nn.Module, torch.Tensor]:
    """Return an encoder and a batch of sequences."""
    layer = nn.TransformerEncoderLayer(384, 6, 1536, activation="gelu", batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.rand(32, 192, 384)


MODELS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "conv net": conv_net,
    "MLP": mlp,
    "transformer": transformer,
}


def measure() -> dict[str, Any]:
    """Return for each model the time in and out of a slot, in ms, and page faults per forward."""
    path, reason = built()
    if path is None:
        return {"not measured": reason}
    return {name: _forwards(name, path) for name in MODELS} | {"Python code that frees a lot": _frees(path)}


def _forwards(name: str, library: str) -> dict[str, float]:
    times: dict[str, list[float]] = {"plain": [], "slot": []}
    faults: dict[str, list[float]] = {"plain": [], "slot": []}
    usage = None
    for kind, told in _in_turns(_serve, name, library):
        times[kind].append(told[0])
        faults[kind].append(told[1])
        usage = told[2] or usage
    assert usage is not None
    return {
        **_medians(times, "slot"),
        **{f"{kind}, page faults": statistics.median(one) for kind, one in faults.items()},
        "slot: most that lived, MB": usage.peak_bytes / 1e6,
        "slot: pages used / most that lived": usage.footprint_bytes / usage.peak_bytes,
    }


def _frees(library: str) -> dict[str, float]:
    times: dict[str, list[float]] = {"plain": [], "preloaded": []}
    for kind, spent_ms in _in_turns(_free_a_lot, "", library):
        times["preloaded" if kind == "slot" else kind].append(spent_ms)
    return _medians(times, "preloaded")


def _medians(times: dict[str, list[float]], kind: str) -> dict[str, float]:
    medians = {name: statistics.median(one) for name, one in times.items()}
    return {f"{name}, ms": one for name, one in medians.items()} | {
        f"{kind} / plain": medians[kind] / medians["plain"]
    }


def _in_turns(function: Callable[..., None], name: str, library: str) -> Iterator[tuple[str, Any]]:
    """Run a function in two processes, with and without the library; yield in turns what one call took."""
    with ExitStack() as stack:
        pipes = {
            "plain": stack.enter_context(_process(function, name, "")),
            "slot": stack.enter_context(_process(function, name, library)),
        }
        for turn in range(TURNS + 1):
            for kind, pipe in pipes.items():
                for _ in range(FORWARDS):
                    pipe.send(None)
                    told = pipe.recv()
                    if turn:  # the first is to warm up
                        yield kind, told


@contextmanager
def _process(function: Callable[..., None], name: str, library: str) -> Iterator[Connection]:
    """Run a function in a process in which a library is preloaded; yield a pipe to it."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=function, args=(theirs, name, library))
    os.environ["LD_PRELOAD"] = library
    process.start()
    del os.environ["LD_PRELOAD"]
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join()


def _asked(pipe: Connection) -> Iterator[None]:
    """Yield whenever something is asked for, until nobody is left who could ask."""
    while True:
        try:
            yield pipe.recv()
        except EOFError:
            return


def _free_a_lot(pipe: Connection, _name: str, _library: str) -> None:
    for _ in _asked(pipe):
        started_at = time.perf_counter()
        for _ in range(200):
            for size in range(600, 1100):  # larger than what Python's own allocator handles
                bytes(size)
        pipe.send((time.perf_counter() - started_at) * 1e3)


def _serve(pipe: Connection, name: str, library: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, x = MODELS[name]()
    model.eval()
    slot = _slot() if library else None
    for _ in _asked(pipe):
        pipe.send(_forward(model, x, slot))


def _slot() -> Slot:
    arena = Arena.preloaded()
    assert arena is not None
    assert (reason := arena.probe()) is None, reason
    fd = os.memfd_create("slot", os.MFD_CLOEXEC)
    os.ftruncate(fd, SLOT_BYTES)
    slot = arena.attach(fd, SLOT_BYTES)
    os.close(fd)
    return slot


def _forward(model: nn.Module, x: torch.Tensor, slot: Slot | None) -> tuple[float, int, Usage | None]:
    """Return milliseconds, page faults and what of the slot was used."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    started_at = time.perf_counter()
    with torch.inference_mode():
        if slot is None:
            model(x)
            usage = None
        else:
            slot.enter(SLOT_BYTES)
            model(x)
            usage = slot.leave()
    spent_ms = (time.perf_counter() - started_at) * 1e3
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    if slot is not None and usage is not None and usage.live_blocks:  # what the model computes once and keeps
        slot.keep()
    return spent_ms, faults, usage
