"""The load generator: when requests are due, what counts as their latency, and what latencies come to."""

import itertools
import math
import statistics
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers.clients import Answer, CallingClient, Client, FutureClient
from peers.load import Sample, closed_loop, open_loop, percentile, poisson


@given(st.lists(st.floats(0, 1e6), min_size=1).map(sorted), st.floats(0.001, 1))
def test_a_percentile_is_the_least_value_that_enough_values_do_not_exceed(ordered, part):
    found = percentile(ordered, part)
    needed = part * len(ordered)
    assert sum(one <= found for one in ordered) >= needed
    assert sum(one < found for one in ordered) < needed


def test_percentiles_of_few_values_are_the_values_themselves():
    assert [percentile([1, 2, 3, 4], part) for part in (0.25, 0.5, 0.51, 0.99, 1)] == [1, 2, 3, 4, 4]
    assert percentile(range(1, 1001), 0.999) == 999


def test_arrivals_are_the_same_for_a_seed_and_come_as_often_as_they_shall():
    times = poisson(500, 20, seed=7)
    assert times == poisson(500, 20, seed=7) != poisson(500, 20, seed=8)
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 20
    assert len(times) == pytest.approx(10_000, abs=5 * math.sqrt(10_000))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    # gaps of a Poisson process are exponential: their deviation is their mean
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.1)


class LateClient(Client):
    """Answers nothing before all requests have been sent."""

    def __init__(self, requests):
        self.requests, self.sent = requests, []

    def submit(self, payload, number):
        self.sent.append(number)

    def wait(self, timeout_s):
        if len(self.sent) < self.requests:
            threading.Event().wait(timeout_s)
            return []
        done, self.sent, self.requests = self.sent, [], math.inf
        return [Answer(number, 1e9, None) for number in done]

    def call(self, payload):
        raise NotImplementedError

    def close(self):
        pass


def test_latency_counts_from_when_a_request_was_due():
    times = [0.0, 0.01, 0.02]
    sample = open_loop(LateClient(len(times)), None, times)
    first, second, third = sample.latencies_s
    assert first - second == pytest.approx(0.01)
    assert second - third == pytest.approx(0.01)
    assert sample.unanswered == 0


class Counting:
    """Notes how many calls are under way at once."""

    def __init__(self):
        self.lock, self.now, self.most = threading.Lock(), 0, 0

    def __call__(self, payload):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        with self.lock:
            self.now -= 1
        return payload


@pytest.mark.parametrize("in_flight", [1, 4])
def test_a_closed_loop_keeps_no_more_under_way_than_it_shall(in_flight):
    count = Counting()
    client = CallingClient(count, threads=16)
    sample = closed_loop(client, "x", in_flight, duration_s=0.05)
    client.close()
    assert 1 <= count.most <= in_flight
    assert sample.summary()["answers"] > in_flight
    assert sample.failed == 0


@pytest.mark.parametrize("in_flight", [1, 3])
def test_errors_are_counted_and_the_first_is_told(in_flight):
    def fail(payload):
        raise ValueError("no")

    with ThreadPoolExecutor(1) as threads:
        client = FutureClient(lambda payload: threads.submit(fail, payload))
        said = closed_loop(client, "x", in_flight, duration_s=0.02).summary()
    assert said["answers"] == 0
    assert said["failed"] > 0
    assert said["error"] == "ValueError('no')"
    assert "p50_ms" not in said


def test_a_summary_tells_milliseconds_and_answers_a_second():
    sample = Sample(span_s=2.0)
    for milliseconds in range(1, 101):
        sample.add(milliseconds / 1000, None)
    said = sample.summary()
    assert said["p50_ms"] == pytest.approx(50)
    assert said["p99_ms"] == pytest.approx(99)
    assert "p99.9_ms" not in said  # of a hundred answers none is above it
    assert said["rate"] == 50


def test_a_future_that_is_done_at_once_is_answered_at_once():
    def send(payload):
        future = Future()
        future.set_result(payload)
        return future

    client = FutureClient(send)
    client.submit("x", 5)
    assert [(answer.number, answer.value) for answer in client.wait(0)] == [(5, "x")]
    assert client.wait(0) == []
