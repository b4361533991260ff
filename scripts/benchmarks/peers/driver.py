"""What runs in a peer's environment: starts it, sends it requests, and reports on its standard output.

``python -m peers.driver JSON``, with a `Job`, the adapter as ``module:class``, the name of a step, and what
the step is told. Each line of the report is a JSON object; what the peer itself prints goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np

from .adapters.base import Adapter, Job
from .clients import Client
from .load import closed_loop, open_loop, poisson
from .workloads import FEW, who

#: Requests under way for each worker while it is waited until each has answered.
_EACH = 16


def main() -> None:
    """Do one step."""
    order = json.loads(sys.argv[1])
    # Descriptor 1 of this process and all that it starts becomes standard error; the report has one of its own.
    report = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    job = Job(**order["job"])
    module, _, name = order["adapter"].partition(":")
    kind: type[Adapter] = getattr(importlib.import_module(f"peers.adapters.{module}"), name)
    adapter = kind(job)
    STEPS[order["step"]](adapter, report, **order["told"])
    adapter.stop()  # after a failure whoever has started this process kills what is left


def tell(report: TextIO, **values: Any) -> None:
    """Write a line of the report."""
    print(json.dumps(values), file=report, flush=True)


def memory(adapter: Adapter, report: TextIO) -> None:
    """Start, have every worker answer, rest, and wait until somebody outside has looked."""
    client = adapter.start()
    client.call(adapter.job.about.payload())
    adapter.settle()
    all_answered(client, adapter.job.about.payload(), adapter.job.workers)
    time.sleep(2)  # heaps that give memory back to the system do so after a while at rest
    tell(report, ready=True, counts_client=adapter.counts_client)
    sys.stdin.readline()
    client.close()


def start(adapter: Adapter, report: TextIO) -> None:
    """Measure the time until the first worker, all workers, and one more have answered."""
    payload = adapter.job.about.payload()
    started_at = time.perf_counter()
    client = adapter.start()
    client.call(payload)
    first_s = time.perf_counter() - started_at
    all_answered(client, payload, adapter.job.workers)
    values: dict[str, Any] = {"first_s": first_s, "all_s": time.perf_counter() - started_at}
    if adapter.can_grow:
        started_at = time.perf_counter()
        client = adapter.grow()
        all_answered(client, payload, adapter.job.workers + 1)
        values["one_more_s"] = time.perf_counter() - started_at
    tell(report, values=values)
    client.close()


def speed(adapter: Adapter, report: TextIO, window_s: float, in_flight: int, seed: int) -> None:
    """Measure latency at rest, throughput with few requests under way and with many, and latency at half of that.

    Args:
        adapter: of the peer.
        report: where the values go.
        window_s: how long each of the four is measured.
        in_flight: how many requests are under way at once for the most throughput.
        seed: of the times at which requests come.
    """
    payload = adapter.job.about.payload()
    client = adapter.start()
    all_answered(client, payload, adapter.job.workers)
    closed_loop(client, payload, in_flight, window_s / 2)  # to warm up
    at_rest = closed_loop(client, payload, 1, window_s).summary()
    few = closed_loop(client, payload, min(FEW, in_flight), window_s).summary()
    busy = closed_loop(client, payload, in_flight, window_s).summary()
    half = open_loop(client, payload, poisson(max(busy["rate"] / 2, 1), window_s, seed)).summary()
    values = {"at_rest": at_rest, "few": few, "busy": busy, "half_load": half}
    tell(report, values=values | {"answer": float(np.sum(np.asarray(client.call(payload)).ravel()[:-1]))})
    client.close()


def all_answered(client: Client, payload: Any, workers: int) -> None:
    """Send requests until each of so many workers has answered one."""
    seen: set[int] = set()
    under_way = number = 0
    while len(seen) < workers or under_way:
        while under_way < _EACH * workers and len(seen) < workers:
            client.submit(payload, number)
            number += 1
            under_way += 1
        for answer in client.wait(60):
            under_way -= 1
            if isinstance(answer.value, BaseException):
                raise answer.value
            seen.add(who(answer.value))


STEPS: dict[str, Callable[..., None]] = {"memory": memory, "start": start, "speed": speed}

if __name__ == "__main__":
    main()
