"""Large tensors there and back, against the executor of the standard library and copies of the same bytes.

A tensor is copied by the client into its mailbox, by the worker into the memory that the model runs in, and, as
the result, back into the mailbox, where the client reads it in place. An executor pickles a NumPy array through a
pipe; of a torch tensor torch lets it send a descriptor of shared memory.
"""

from __future__ import annotations

import mmap
import os
import statistics
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from onecopy.pool import Pool
from turns import Echo, echo, in_turns

#: A float32 image of 602 kB, and a tensor of 64 MB.
IMAGE_SHAPE = (3, 224, 224)
LARGE_SHAPE = (4096, 4096)
BLOCKS = 15
#: Requests under way at once, and how many are timed.
UNDER_WAY, COUNT = 8, 500
LARGE_TURNS = 25


def rates(submits: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return requests per second of each with several under way, the median of several turns."""
    found: dict[str, list[float]] = {name: [] for name in submits}
    for turn in range(6):
        for name, submit in submits.items():
            started_at = time.perf_counter()
            under_way = deque(submit() for _ in range(UNDER_WAY))
            for _ in range(COUNT - UNDER_WAY):
                under_way.popleft().result()
                under_way.append(submit())
            while under_way:
                under_way.popleft().result()
            if turn:
                found[name].append(COUNT / (time.perf_counter() - started_at))
    return {name: statistics.median(one) for name, one in found.items()}


def large(call: Callable[[], Any], size_bytes: int) -> dict[str, float]:
    """Time a tensor there and back, and copies of it between warm pages, in turns; return medians in ms."""
    fd = os.memfd_create("benchmark")
    os.ftruncate(fd, size_bytes)
    shared, private = np.frombuffer(mmap.mmap(fd, size_bytes), np.uint8), np.ones(size_bytes, np.uint8)
    os.close(fd)
    times: dict[str, list[float]] = {"there and back": [], "a copy": []}
    for turn in range(LARGE_TURNS + 3):
        for name, one in (("there and back", call), ("a copy", lambda: np.copyto(shared, private))):
            started_at = time.perf_counter()
            one()
            if turn >= 3:  # those before touch the pages
                times[name].append((time.perf_counter() - started_at) * 1e3)
    return {name: statistics.median(one) for name, one in times.items()}


def measure() -> dict[str, Any]:
    """Measure latency and throughput of 602 kB, and the time of 64 MB."""
    image, matrix = torch.zeros(IMAGE_SHAPE), torch.zeros(LARGE_SHAPE)
    with (
        Pool({"echo": Echo()}, workers=1) as pool,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor,
    ):
        handle = pool.model("echo")
        submits = {
            "onecopy": lambda: handle.submit(image),
            "executor": lambda: executor.submit(echo, image.numpy()),
            "executor, torch tensor": lambda: executor.submit(echo, image),
        }
        calls = {name: lambda submit=submit: submit().result() for name, submit in submits.items()}
        timed = in_turns(calls | {"onecopy": lambda: handle(image)}, BLOCKS)
        latency = {name: one["p50_us"] for name, one in timed.items()}
        rate = rates(submits)
        whole = large(lambda: handle(matrix), matrix.nbytes)
        inline = pool.status().mailboxes.inline
    ratios = {f"602 kB p50 / {name}": latency["onecopy"] / latency[name] for name in submits if name != "onecopy"}
    ratios |= {
        f"602 kB throughput / {name}": rate["onecopy"] / rate[name] for name in submits if name != "onecopy"
    }
    ratios |= {f"64 MB / {n} copies": whole["there and back"] / (n * whole["a copy"]) for n in (3, 4)}
    return {
        "latency, 602 kB, us": latency,
        f"requests per second, 602 kB, {UNDER_WAY} under way": rate,
        "64 MB, ms": whole,
        "requests with arrays in sockets": inline,
        "ratios": ratios,
    }
