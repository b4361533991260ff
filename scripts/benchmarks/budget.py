"""Ten models of 200 MB in a budget for three: who is in memory when it is needed, and what a return costs.

5,000 requests of one client, whose models follow Zipf's law, up to 64 at once. A request is a hit if no weights
had to be brought back for it; requests that wait for the same return are one miss. Beside it stands what no cache
can beat that serves the same requests one after the other: Belady's, which knows the future and evicts what is
needed last. The pool may do better, because it lets those wait whose weights are not there, and serves others
meanwhile.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from onecopy.pool import Model, Pool
from outside import Watch, memory_of_stopped

MODELS, ROOM = 10, 3
SIZE_BYTES = 200_000_000
#: Besides weights: private memory of two workers, zygote and supervisor, and mailboxes.
REST_BYTES = 350_000_000
REQUESTS, WINDOW = 5000, 64
COPIES = 9


class Scale(torch.nn.Module):
    """A model of 200 MB that says which it is."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((SIZE_BYTES // 4,), float(number)), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input, with the model's number added from somewhere in the weights."""
        return x + self.weight[int(x) * 7919]

    def largest(self) -> float:
        """Read all weights."""
        return float(self.weight.max())


def measure() -> dict[str, Any]:
    """Return what became of the requests, and how long returns took."""
    budget_bytes = ROOM * SIZE_BYTES + REST_BYTES
    order = random.Random(1).choices(range(MODELS), [1 / (1 + one) for one in range(MODELS)], k=REQUESTS)
    models = {f"m{one}": Model(Scale, args=(one,), workspace="private") for one in range(MODELS)}
    with Pool(models, workers=2, mailbox=0, devices={"cpu": {"budget": budget_bytes}}) as pool:
        for one in range(MODELS):  # each is built and, but for three, written out once
            pool.run(f"m{one}", torch.zeros(()))
        before = _returns(pool)
        supervisor_pid = pool.status().pid
        started_at = time.perf_counter()
        wrong = sum(1 for number, y in _run(pool, order) if y != number)
        elapsed_s = time.perf_counter() - started_at
        misses = _returns(pool) - before
        with Watch(lambda: memory_of_stopped(supervisor_pid)) as watch:  # which would take the others' time
            wrong += sum(1 for number, y in _run(pool, order) if y != number)
        return_s, request_s, copy_s = _return_against_copy(pool)
    best = belady_misses(order, ROOM)
    return {
        "requests": REQUESTS,
        "wrong answers": wrong,
        "requests/s": REQUESTS / elapsed_s,
        "budget, MB": budget_bytes / 1e6,
        "most seen from outside, MB": watch.most / 1e6,
        "looks": watch.looks,
        "hits": 1 - misses / REQUESTS,
        "hits of the offline optimum, one request after the other": 1 - best / REQUESTS,
        "hits / those of the optimum": (REQUESTS - misses) / (REQUESTS - best),
        "return of 200 MB, ms": return_s * 1e3,
        "first request that reads all of them, over one that finds them there, ms": request_s * 1e3,
        "copy of 200 MB into new memory, ms": copy_s * 1e3,
        "return / copy": return_s / copy_s,
        "first request / copy": request_s / copy_s,
    }


def _run(pool: Pool, order: list[int]) -> Iterator[tuple[int, float]]:
    """Yield the number of each request's model and the answer, in order."""
    waiting: deque[tuple[int, int, Any]] = deque()
    for index, number in enumerate(order):
        x = index % 1000
        waiting.append((number, x, pool.submit(f"m{number}", torch.tensor(float(x)))))
        if len(waiting) == WINDOW:
            number, x, future = waiting.popleft()
            yield number, float(future.result()) - x
    for number, x, future in waiting:
        yield number, float(future.result()) - x


def _returns(pool: Pool) -> int:
    return sum(one.returns for one in pool.memory().weights)


def _return_against_copy(pool: Pool) -> tuple[float, float, float]:
    """Time returns from the disk, whose pages are in the system's cache, and copies in memory, in turns.

    Returns:
        What a return takes; what it costs the request that needs it and reads all of the weights, in all; a copy.
    """
    source = np.ones(SIZE_BYTES // 4, dtype=np.float32)
    returns, requests, copies = [], [], []
    largest = pool.model("m0", method="largest")
    largest()
    for _ in range(COPIES):
        pool.evict("m0")
        first_s, then_s = _timed(largest), _timed(largest)
        requests.append(first_s - then_s)
        returns.append(next(one.return_s for one in pool.memory().weights if one.model == "m0"))
        copies.append(_timed(source.copy))
    return statistics.median(returns), statistics.median(requests), statistics.median(copies)


def _timed(work: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    work()
    return time.perf_counter() - started_at


def belady_misses(order: list[int], room: int) -> int:
    """Return how often a cache of so many equal sets misses that always evicts what is needed last.

    L. A. Belady, A study of replacement algorithms for a virtual-storage computer, 1966.
    """
    following: list[float] = [float("inf")] * len(order)
    last: dict[int, int] = {}
    for index in range(len(order) - 1, -1, -1):
        following[index] = last.get(order[index], float("inf"))
        last[order[index]] = index
    held: dict[int, float] = {}
    misses = 0
    for index, number in enumerate(order):
        if number not in held:
            misses += 1
            if len(held) == room:
                del held[max(held, key=lambda one: held[one])]
        held[number] = following[index]
    return misses
