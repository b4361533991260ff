"""The load generator: closed and open loops over any client, and what their latencies come to.

In a closed loop the next request waits for an answer, so a slow peer is asked less: its throughput is what tells.
In an open loop requests come at times that were fixed before, and latency counts from that time, also when the
request could be sent only later. So a stall shows in every request that it has delayed, and not only in one
("coordinated omission", Gil Tene, How NOT to Measure Latency, 2013).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .clients import Client

QUANTILES = (0.5, 0.99, 0.999)
#: How long after the last request of an open loop answers are waited for.
_GRACE_S = 30.0


@dataclass(slots=True)
class Sample:
    """What one loop has seen.

    Attributes:
        latencies_s: of each answer.
        span_s: from the first request to the last answer.
        failed: requests that got an error instead.
        unanswered: requests that got nothing in time.
        error: the first error.
    """

    latencies_s: list[float] = field(default_factory=list)
    span_s: float = 0.0
    failed: int = 0
    unanswered: int = 0
    error: str = ""

    def add(self, latency_s: float, answer: Any) -> None:
        """Count an answer, or an error."""
        if isinstance(answer, BaseException):
            self.failed += 1
            self.error = self.error or repr(answer)
        else:
            self.latencies_s.append(latency_s)

    def summary(self) -> dict[str, Any]:
        """Return what is reported of it: milliseconds, and answers a second.

        A percentile is told if there are enough answers for one at least to be above it.
        """
        ordered = sorted(self.latencies_s)
        told = [one for one in QUANTILES if len(ordered) * (1 - one) >= 1 - 1e-9]
        quantiles: dict[str, Any] = {f"p{100 * one:g}_ms": percentile(ordered, one) * 1e3 for one in told}
        counts: dict[str, Any] = {"answers": len(ordered), "failed": self.failed, "unanswered": self.unanswered}
        if self.error:
            counts["error"] = self.error
        return quantiles | {"rate": len(ordered) / self.span_s if self.span_s else 0.0} | counts


def percentile(ordered: Sequence[float], part: float) -> float:
    """Return the least of these values that no less than a part of them does not exceed (the nearest rank).

    Args:
        ordered: the values, the smallest first; at least one.
        part: between 0 and 1.
    """
    return ordered[max(1, math.ceil(part * len(ordered))) - 1]


def poisson(rate: float, duration_s: float, seed: int) -> list[float]:
    """Return when requests come, in seconds from the beginning: independent of each other, so many a second."""
    random_gaps = random.Random(seed)
    times: list[float] = []
    now = random_gaps.expovariate(rate)
    while now < duration_s:
        times.append(now)
        now += random_gaps.expovariate(rate)
    return times


def closed_loop(client: Client, payload: Any, in_flight: int, duration_s: float) -> Sample:
    """Keep so many requests under way.

    Args:
        client: of the peer.
        payload: what every request carries.
        in_flight: with 1 the client's blocking call is used, as a program would that wants one answer.
        duration_s: how long requests are sent.
    """
    sample = Sample()
    started_at = time.perf_counter()
    if in_flight == 1:
        _one_at_a_time(client, payload, started_at + duration_s, sample)
    else:
        _keep_under_way(client, payload, in_flight, started_at + duration_s, sample)
    sample.span_s = time.perf_counter() - started_at
    return sample


def _one_at_a_time(client: Client, payload: Any, until: float, sample: Sample) -> None:
    while (sent_at := time.perf_counter()) < until:
        try:
            answer = client.call(payload)
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is a request that failed
            answer = error
        sample.add(time.perf_counter() - sent_at, answer)


def _keep_under_way(client: Client, payload: Any, in_flight: int, until: float, sample: Sample) -> None:
    sent_at: dict[int, float] = {}
    number = 0
    while sent_at or time.perf_counter() < until:
        while len(sent_at) < in_flight and (now := time.perf_counter()) < until:
            sent_at[number] = now
            client.submit(payload, number)
            number += 1
        for done, done_at, answer in client.wait(_GRACE_S):
            sample.add(done_at - sent_at.pop(done), answer)


def open_loop(client: Client, payload: Any, times: Sequence[float]) -> Sample:
    """Send requests at given times, whether or not earlier ones are answered.

    Args:
        client: of the peer.
        payload: what every request carries.
        times: in seconds from the beginning, in order.
    """
    sample = Sample()
    started_at = time.perf_counter()
    answered = 0

    def collect(timeout_s: float) -> int:
        done = client.wait(timeout_s)
        for number, done_at, answer in done:
            sample.add(done_at - started_at - times[number], answer)
        return len(done)

    for number, due in enumerate(times):
        while (left_s := started_at + due - time.perf_counter()) > 0:
            answered += collect(left_s)
        client.submit(payload, number)
    give_up_at = time.perf_counter() + _GRACE_S
    while answered < len(times) and (left_s := give_up_at - time.perf_counter()) > 0:
        answered += collect(left_s)
    sample.unanswered = len(times) - answered
    sample.span_s = time.perf_counter() - started_at
    return sample
