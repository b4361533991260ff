"""Batches against single calls: the same model twice in one pool, once with ``max_batch``, in turns.

Throughput is that of a closed loop: one client keeps many requests under way. Latency is that of an open loop, in
which requests come at random, as many a second for both: four fifths of what the pool can do without batches. It
counts from when a request was meant to be sent.
"""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from memory import PATH, load
from onecopy.pool import Model, Pool
from onecopy.pool.handle import ModelHandle
from torch import nn

MAX_BATCH = 32
TURNS = 5
#: Requests under way at once in the closed loop.
UNDER_WAY = 256
#: Of the throughput without batches: what is asked for in the open loop; and for how long, each turn.
LOAD, OPEN_S = 0.8, 4.0
WIDTH, LAYERS = 512, 6
TEXT = "a short sentence about one copy of the weights"


def mlp() -> nn.Module:
    """Return a stack of layers."""
    torch.manual_seed(0)
    return nn.Sequential(*(part for _ in range(LAYERS) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())))


class Case(NamedTuple):
    """A model, its one argument, and how many requests a turn of the closed loop has."""

    model: Callable[[int], Model]
    x: Any
    count: int


CASES = {
    "MLP, 512 wide": Case(lambda most: Model(mlp, max_batch=most), torch.rand(1, WIDTH), 5000),
    "MiniLM, one short text": Case(
        lambda most: Model(load, args=(PATH,), method="encode", max_batch=most, warm=True), TEXT, 1000
    ),
}


def measure() -> dict[str, Any]:
    """Return throughput and latency of each model, with batches and without."""
    return {name: _measure(case) for name, case in CASES.items()}


def _measure(case: Case) -> dict[str, Any]:
    models = {"single": case.model(1), "batched": case.model(MAX_BATCH)}
    with Pool(models, workers=len(os.sched_getaffinity(0))) as pool:
        handles = {name: pool.model(name) for name in models}
        closed: dict[str, list[float]] = {name: [] for name in handles}
        for turn in range(TURNS + 1):
            for name, handle in handles.items():
                rate = _closed_loop(handle, case)
                if turn:  # the first is to warm up
                    closed[name].append(rate)
        throughput = {name: statistics.median(rates) for name, rates in closed.items()}
        rate = LOAD * throughput["single"]
        latencies: dict[str, list[list[float]]] = {name: [] for name in handles}
        for turn in range(TURNS):
            for name, handle in handles.items():
                latencies[name].append(_open_loop(handle, case.x, rate, turn))
    p50, p99 = (
        {name: statistics.median(_percentile(one, part) for one in turns) for name, turns in latencies.items()}
        for part in (0.5, 0.99)
    )
    return {
        "throughput, requests/s": throughput,
        "throughput, batched / single": throughput["batched"] / throughput["single"],
        "offered, requests/s": rate,
        "p50, ms": p50,
        "p99, ms": p99,
        "p99, batched / single": p99["batched"] / p99["single"],
    }


def _closed_loop(handle: ModelHandle, case: Case) -> float:
    """Return requests per second with many under way."""
    started_at = time.perf_counter()
    under_way = deque(handle.submit(case.x) for _ in range(UNDER_WAY))
    for _ in range(case.count - UNDER_WAY):
        under_way.popleft().result()
        under_way.append(handle.submit(case.x))
    for future in under_way:
        future.result()
    return case.count / (time.perf_counter() - started_at)


def _open_loop(handle: ModelHandle, x: Any, rate: float, seed: int) -> list[float]:
    """Return latencies in milliseconds, ordered, of requests that come at random, so many a second."""
    draw = random.Random(seed).expovariate
    latencies_ms: list[float] = []
    is_done = threading.Semaphore(0)

    def answered(meant_at: float) -> None:
        latencies_ms.append((time.perf_counter() - meant_at) * 1e3)
        is_done.release()

    meant_at = time.perf_counter()
    until = meant_at + OPEN_S
    sent = []
    while (meant_at := meant_at + draw(rate)) < until:
        if (early_s := meant_at - time.perf_counter()) > 0:
            time.sleep(early_s)
        future = handle.submit(x)
        future.add_done_callback(lambda _, meant_at=meant_at: answered(meant_at))
        sent.append(future)
    for future in sent:
        future.result()  # raises if it has failed
        is_done.acquire()  # callbacks come after results
    return sorted(latencies_ms)


def _percentile(ordered: list[float], part: float) -> float:
    return ordered[int(part * (len(ordered) - 1))]
