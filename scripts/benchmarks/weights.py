"""Loading 2 GB of weights: how fast against the bare kernel copy, with how much memory, and at whose cost.

The file is in the page cache when loads are timed, for the pool as for what stands beside it. Peaks are the most
that was seen of the memory of all processes together, looked at every few milliseconds.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onecopy.pool import Model, Pool
from onecopy.pool.supervisor.sampler import read_memory
from onecopy.protocol.contents import OpenFiles
from onecopy.protocol.frozen import freeze, thaw
from onecopy.protocol.mapping import map_region
from onecopy.protocol.skeleton import SkeletonUnpickler
from safetensors.torch import load_file, save_file
from torch import nn

LAYERS, SIDE = 64, 2896  # 2.1 GB
BACKBONE_LAYERS = 15  # 0.5 GB
WORKERS = 8
TURNS = 3
#: Of the load and the copy that it is measured against: on a virtual machine new memory comes at any speed.
COPY_TURNS = 9


class Stack(nn.Module):
    """Square layers, one after the other."""

    def __init__(self, layers: int = LAYERS, side: int = SIDE) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(side, side, bias=False) for _ in range(layers))

    def forward(self, x: Any) -> Any:
        return self.layers[0](x)


class Headed(nn.Module):
    """A backbone that is the same in all of them, and a head of its own."""

    def __init__(self, head: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Stack(BACKBONE_LAYERS)
        torch.manual_seed(1 + head)
        self.head = nn.Linear(SIDE, 100)

    def forward(self, x: Any) -> Any:
        return self.head(self.backbone(x))


class Echo:
    """What is served meanwhile."""

    def __call__(self, x: Any) -> Any:
        return x


def measure() -> dict[str, Any]:
    """Return all figures."""
    with _file() as path:
        size_bytes = os.path.getsize(path)
        report = {"file, GB": size_bytes / 1e9, **_times(path), **_peaks(path, size_bytes)}
        report["p99 of a small request while it loads"] = _disturbance(path)
    return report | _heads() | _attaching()


@contextmanager
def _file() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.safetensors")
        generator = torch.Generator().manual_seed(0)
        state = {f"layers.{index}.weight": torch.rand(SIDE, SIDE, generator=generator) for index in range(LAYERS)}
        save_file(state, path)
        yield path


def _model(path: str, **options: Any) -> Model:
    return Model(Stack, weights=path, **options)


# --- time ----------------------------------------------------------------------------------------------------


def _times(path: str) -> dict[str, Any]:
    """Time the load, the bare copy and a plain load in turns; return medians in seconds."""
    times: dict[str, list[float]] = {"bare kernel copy": [], "pool": [], "pool, mapped": [], "plain": []}
    with Pool({"echo": Echo()}, workers=WORKERS, slots=2) as pool:
        pool.run("echo", 1)
        calls = {
            "bare kernel copy": lambda: _copy(path),
            "pool": lambda: pool.load("big", _model(path)),
            "pool, mapped": lambda: pool.load("mapped", _model(path, residency="file")),
            "plain": lambda: _in_process(_load_plain, path),
        }
        for turn in range(COPY_TURNS + 1):
            for name, call in list(calls.items())[: 4 if turn <= TURNS else 2]:
                started_at = time.perf_counter()
                spent = call()
                if turn:  # the first is to warm up
                    times[name].append(spent if isinstance(spent, float) else time.perf_counter() - started_at)
                if name.startswith("pool"):
                    pool.unload(pool.models()[-1].name)
    medians = {f"load, {name}, s": statistics.median(one) for name, one in times.items()}
    return medians | {"load / bare kernel copy": medians["load, pool, s"] / medians["load, bare kernel copy, s"]}


def _copy(path: str) -> float:
    size_bytes = os.path.getsize(path)
    started_at = time.perf_counter()
    source, target = os.open(path, os.O_RDONLY), os.memfd_create("copy")
    os.ftruncate(target, size_bytes)
    copied_bytes = 0
    while copied_bytes < size_bytes:
        copied_bytes += os.sendfile(target, source, copied_bytes, size_bytes - copied_bytes)
    spent_s = time.perf_counter() - started_at
    os.close(source)
    os.close(target)
    return spent_s


def _load_plain(path: str) -> float:
    started_at = time.perf_counter()
    Stack().load_state_dict(load_file(path))
    return time.perf_counter() - started_at


# --- memory --------------------------------------------------------------------------------------------------


def _peaks(path: str, size_bytes: int) -> dict[str, Any]:
    """Return the most memory that a load takes, beyond what was there before, as parts of the file."""
    with Pool({"echo": Echo()}, workers=WORKERS, slots=2) as pool:
        pool.run("echo", 1)
        before = pool.memory().total_bytes
        peak = _peak_while(lambda: pool.memory().total_bytes, lambda: pool.load("big", _model(path)))
        pool.run("big", torch.zeros(1, SIDE))
    process = get_context("spawn").Process(target=_load_plain, args=(path,))
    plain = _peak_while(lambda: _memory_of(process.pid), lambda: (process.start(), process.join()))
    empty = get_context("spawn").Process(target=_import_only)
    base = _peak_while(lambda: _memory_of(empty.pid), lambda: (empty.start(), empty.join()))
    return {
        "peak of loading, 8 workers / file": (peak - before) / size_bytes,
        "peak of load_state_dict, one process / file": (plain - base) / size_bytes,
    }


def _peak_while(look: Any, call: Any) -> int:
    peaks, is_over = [0], threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            peaks.append(look())
            is_over.wait(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    is_over.set()
    watcher.join()
    return max(peaks)


def _memory_of(pid: int | None) -> int:
    found = read_memory(pid) if pid else None
    return found.pss if found else 0


def _import_only() -> None:
    time.sleep(0.2)  # long enough to be looked at


def _in_process(function: Any, *args: Any) -> Any:
    """Call in a new process, so that what it allocates is new as well; return its result."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_call, args=(theirs, function, args))
    process.start()
    result = ours.recv()
    process.join()
    return result


def _call(pipe: Any, function: Any, args: tuple[Any, ...]) -> None:
    pipe.send(function(*args))


# --- who else is served --------------------------------------------------------------------------------------


def _disturbance(path: str) -> dict[str, float]:
    """Return the p99 of a small request with and without loads beside it, measured in turns."""
    x = np.zeros(128)
    times: dict[str, list[float]] = {"alone": [], "while loading": []}
    with Pool({"echo": Echo()}, workers=1) as pool:
        handle = pool.model("echo")
        for turn in range(2 * TURNS + 1):
            name = "while loading" if turn % 2 else "alone"
            is_over = threading.Event()

            def load(is_over: threading.Event = is_over) -> None:
                pool.load("big", _model(path))
                is_over.set()

            loading = threading.Thread(target=load if turn % 2 else time.sleep, args=() if turn % 2 else (2.0,))
            loading.start()
            while loading.is_alive():
                started_at = time.perf_counter()
                handle(x)
                if turn:
                    times[name].append((time.perf_counter() - started_at) * 1e6)
            if turn % 2:
                pool.unload("big")
    p99 = {name: statistics.quantiles(one, n=100)[98] for name, one in times.items()}
    return {**{f"{name}, us": value for name, value in p99.items()}, "ratio": p99["while loading"] / p99["alone"]}


# --- sharing -------------------------------------------------------------------------------------------------


def _heads() -> dict[str, Any]:
    """Return what ten models with one backbone take, against one of them."""
    with Pool({"head0": Model(Headed, args=(0,))}, workers=2) as pool:
        pool.run("head0", torch.zeros(1, SIDE))
        one = pool.memory().weights_bytes
        for head in range(1, 10):
            pool.load(f"head{head}", Model(Headed, args=(head,)))
        ten = pool.memory().weights_bytes
    return {"10 models with one backbone / one of them": ten / one}


def _attaching() -> dict[str, Any]:
    """Return what it takes to have 2 GB in a process beyond the unpickling of their skeleton, in ms."""
    frozen = freeze(Stack())
    fds = [os.memfd_create("weights") for _ in frozen.manifest.region_sizes_bytes]
    with OpenFiles() as files:
        for fd, region in zip(fds, frozen.fillings(files), strict=True):
            os.ftruncate(fd, region.size_bytes)
            region.write(fd)
    sizes_bytes = frozen.manifest.region_sizes_bytes
    whole, unpickling = [], []
    for _ in range(9):
        started_at = time.perf_counter()
        mappings = [map_region(*one) for one in zip(fds, sizes_bytes, strict=True)]
        thaw(frozen.skeleton, frozen.manifest, mappings)
        whole.append(time.perf_counter() - started_at)
        ready = _Ready(frozen.skeleton, frozen.manifest, mappings)
        started_at = time.perf_counter()
        ready.load()
        unpickling.append(time.perf_counter() - started_at)
    for fd in fds:
        os.close(fd)
    beyond_s = statistics.median(whole) - statistics.median(unpickling)
    return {"attaching 2 GB, beyond unpickling, ms": beyond_s * 1e3}


class _Ready(SkeletonUnpickler):
    """Unpickles around storages that were made before."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for index in range(len(self._entries)):
            self._storage(index)
