"""Small requests: one at a time, many under way, and `map` over numbers, beside what stands next to each.

One worker, one client. The floor is a bare relay over ZeroMQ, in which every request is a message of its own; a
pool's `map`, and an executor's with a chunk size, put many into one message.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import msgpack
import numpy as np
from onecopy.pool import Pool
from relay import relay
from turns import Echo, echo, in_turns

TURNS = 5
#: Requests of 1 kB, and numbers, of each turn; of numbers that are sent one by one a part is enough.
REQUESTS, NUMBERS, SINGLE_NUMBERS = 10_000, 100_000, 5000
CHUNK_SIZES = (16, 256, 4096)


def rates_in_turns(calls: dict[str, tuple[Callable[[int], Any], int]], turns: int = TURNS) -> dict[str, float]:
    """Return how many per second each call does of those that it is told to do, the median of several turns."""
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, (call, count) in calls.items():
            started_at = time.perf_counter()
            call(count)
            if turn:  # the first is to warm up
                rates[name].append(count / (time.perf_counter() - started_at))
    return {name: statistics.median(one) for name, one in rates.items()}


def measure() -> dict[str, Any]:
    """Measure latency and throughput of a 1 kB array, and throughput of numbers."""
    x = np.zeros(128)
    with (
        relay(x.tobytes()) as bare,
        relay(msgpack.packb([[1], {}])) as bare_number,
        Pool({"echo": Echo()}, workers=1) as pool,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor,
    ):
        handle = pool.model("echo")
        alone = pool.model("echo", retries=0)  # nothing that may run but once travels with others
        latency = in_turns(
            {
                "relay": bare.one,
                "onecopy": lambda: handle(x),
                "executor": lambda: executor.submit(echo, x).result(),
            },
            blocks=60,
        )
        rates = rates_in_turns(
            {
                "relay": (bare.pipelined, REQUESTS),
                "onecopy": (lambda count: results(handle.submit(x) for _ in range(count)), REQUESTS),
                "onecopy, alone": (lambda count: results(alone.submit(x) for _ in range(count)), REQUESTS),
                "onecopy map": (lambda count: list(handle.map([x] * count)), REQUESTS),
                "executor": (lambda count: results(executor.submit(echo, x) for _ in range(count)), REQUESTS),
            }
        )
        numbers = rates_in_turns(
            {
                "relay, one by one": (bare_number.pipelined, SINGLE_NUMBERS),
                "onecopy map": (lambda count: list(handle.map(range(count))), NUMBERS),
                "executor map, one by one": (lambda count: list(executor.map(echo, range(count))), SINGLE_NUMBERS),
            }
            | {f"executor map, chunks of {size}": (mapping(executor, size), NUMBERS) for size in CHUNK_SIZES}
        )
    best = max(numbers[f"executor map, chunks of {size}"] for size in CHUNK_SIZES)
    return {
        "latency, 1 kB": latency,
        "requests per second, 1 kB": rates,
        "numbers per second": numbers,
        "ratios": {
            "p50 / relay": latency["onecopy"]["p50_us"] / latency["relay"]["p50_us"],
            "p50 / executor": latency["onecopy"]["p50_us"] / latency["executor"]["p50_us"],
            "throughput / executor": rates["onecopy"] / rates["executor"],
            "throughput / relay": rates["onecopy"] / rates["relay"],
            "throughput alone / executor": rates["onecopy, alone"] / rates["executor"],
            "numbers / executor map with the best chunk size": numbers["onecopy map"] / best,
            "numbers / executor map, one by one": numbers["onecopy map"] / numbers["executor map, one by one"],
            "numbers / relay, one by one": numbers["onecopy map"] / numbers["relay, one by one"],
        },
    }


def results(futures: Iterable[Any]) -> list[Any]:
    """Return the results of futures, all of which are made first."""
    return [future.result() for future in list(futures)]


def mapping(executor: ProcessPoolExecutor, size: int) -> Callable[[int], list[int]]:
    """Return what maps so many numbers, in chunks of this size."""
    return lambda count: list(executor.map(echo, range(count), chunksize=size))
