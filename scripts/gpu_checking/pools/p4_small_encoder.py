"""A model whose launches take longer than its kernels, in one process and in a pool."""

from __future__ import annotations

import threading
import time
from typing import Any

from ..check import Check
from ..children import Child, Link
from .setting import pool_of, sizes

WORKERS = 4
LEAST_TIMES = 1.7
LEAST_TIMES_MPS = 3.0
SHAPE = (1, 32, 384)


def check(check: Check) -> None:
    """Four workers answer a small encoder's requests at 1.7 times the rate of one process, at 3 times with MPS."""
    with Child(alone) as child:
        rate = float(child.receive()["rate"])
    check.figure("one process, requests/s", rate)
    for mps, least in (("off", LEAST_TIMES), ("on", LEAST_TIMES_MPS)):
        text = f"{WORKERS} workers, MPS {mps}, do {least:g} times what one process does"
        with check.part(text):
            together = pooled(mps)
            times = together / rate
            check.figure(f"{WORKERS} workers, MPS {mps}, requests/s", together)
            check.claim(text, times >= least, f"{times:.2f} times")


def alone(link: Link) -> None:
    """Run the encoder one request after the other."""
    import torch

    from .pool_models import Encoder, device, synchronize

    torch.set_num_threads(1)
    where = device()
    model = Encoder().to(where)
    given = torch.randn(SHAPE)
    count, seconds = 0, sizes().seconds
    with torch.inference_mode():
        for _ in range(20):
            model(given.to(where)).cpu()
        synchronize()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            model(given.to(where)).cpu()
            count += 1
    link.send(rate=count / seconds)


def pooled(mps: str) -> float:
    """Return how many requests a second a pool answers two of which are always waiting for each worker."""
    import torch
    from onecopy.pool import Model

    from .pool_models import Encoder

    given = torch.randn(SHAPE)
    with pool_of({"encoder": Model(Encoder)}, workers=WORKERS, slots=WORKERS, threads=1, mps=mps) as pool:
        for future in [pool.submit("encoder", given) for _ in range(20 * WORKERS)]:
            future.result()
        seconds = sizes().seconds
        until = time.perf_counter() + seconds
        counts: list[int] = []
        threads = [threading.Thread(target=ask, args=(pool, given, until, counts)) for _ in range(2 * WORKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / seconds


def ask(pool: Any, given: Any, until: float, counts: list[int]) -> None:
    """Be one user who waits for each answer."""
    count = 0
    while time.perf_counter() < until:
        pool.run("encoder", given)
        count += 1
    counts.append(count)
