"""Calls that are submitted one by one and travel together, with real pools: everyone gets what is theirs."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import wait

import pytest
import request_models
from leftovers import wait_until
from onecopy.pool import (
    InvalidRequest,
    ModelError,
    Pool,
    SupervisorLost,
    WorkerDied,
)
from onecopy.pool.connection import Connection
from standalone import standalone

QUICK = 100


@pytest.fixture
def together(monkeypatch):
    """How many calls each message has that holds several."""
    seen = []
    original = Connection.post

    def post(self, *args, count=0, **options):
        if count:
            seen.append(count)
        return original(self, *args, count=count, **options)

    monkeypatch.setattr(Connection, "post", post)
    return seen


def quick(handle):
    """Let a model be known to be quick."""
    for number in range(QUICK):
        assert handle(number) == number
    return handle


def test_thousands_of_calls_of_many_threads_get_their_own_results(module_pool, together):
    handle = quick(module_pool.model("model"))
    results = {}

    def work(seed):
        futures = [handle.submit(x) for x in range(seed, seed + 2000)]
        results[seed] = [one.result() for one in futures]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {seed: list(range(seed, seed + 2000)) for seed in range(6)}
    assert max(together) > 8


def test_calls_in_threads_that_wait_for_each(module_pool):
    handle = quick(module_pool.model("model"))
    results = {}

    def work(seed):
        results[seed] = [handle(x) for x in range(seed, seed + 300)]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {seed: list(range(seed, seed + 300)) for seed in range(24)}


def test_tasks_of_an_event_loop_that_run_at_once_travel_together(module_pool, together):
    handle = quick(module_pool.model("model"))

    async def all_of_them():
        return await asyncio.gather(*[handle.arun(x) for x in range(5000)])

    assert asyncio.run(all_of_them()) == list(range(5000))
    assert max(together) > 8


def test_tasks_of_an_executor_travel_together(module_pool, together):
    quick(module_pool.model("model", method="checked"))
    with module_pool.executor("model") as executor:
        assert list(executor.map("checked", range(5000))) == list(range(5000))
    assert max(together) > 8


def test_one_that_fails_has_its_own_error(module_pool, together):
    handle = quick(module_pool.model("model", method="checked"))
    futures = [handle.submit(-x if x == 1500 else x) for x in range(3000)]
    wait(futures)
    with pytest.raises(ModelError, match=r"ValueError: -1500 is negative"):
        futures.pop(1500).result()
    assert [one.result() for one in futures] == [x for x in range(3000) if x != 1500]
    assert max(together) > 8


def test_one_result_that_cannot_travel_fails_alone(module_pool):
    handle = quick(module_pool.model("model", method="odd"))
    futures = [handle.submit(-1 if x == 1500 else x) for x in range(3000)]
    with pytest.raises(InvalidRequest, match=r"the result cannot travel: a _thread\.lock"):
        futures.pop(1500).result()
    assert [one.result() for one in futures] == [x for x in range(3000) if x != 1500]


def test_only_the_call_that_kills_its_worker_fails(together):
    with Pool({"model": request_models.Quick()}, workers=2, slots=2) as pool:
        handle = quick(pool.model("model", method="deadly"))
        futures = [handle.submit(-1 if x == 1500 else x) for x in range(3000)]
        with pytest.raises(WorkerDied, match="tried 2 times"):
            futures.pop(1500).result()
        assert [one.result() for one in futures] == [x for x in range(3000) if x != 1500]
    assert max(together) > 8


def test_what_waits_behind_one_that_takes_long_is_answered_elsewhere(tmp_path, together):
    path = tmp_path / "go on"
    with Pool({"model": request_models.Quick()}, workers=2, slots=2) as pool:
        handle = quick(pool.model("model", method="wait_if_path"))
        futures = [handle.submit(str(path) if x == 1500 else x) for x in range(3000)]
        late = futures.pop(1500)
        assert wait_until(lambda: handle(0) == 0 and all(one.done() for one in futures))
        assert not late.done()
        path.touch()
        assert late.result() == str(path)
        assert [one.result() for one in futures] == [x for x in range(3000) if x != 1500]
    assert max(together) > 8


@pytest.mark.parametrize("kill", [False, True])
def test_giving_one_up_that_runs_for_ever_frees_those_that_travel_with_it(tmp_path, together, kill):
    with Pool({"model": request_models.Quick()}, workers=1) as pool:
        handle = quick(pool.model("model", method="wait_if_path"))
        futures = [handle.submit(str(tmp_path / "never") if x == 50 else x) for x in range(100)]
        late = futures.pop(50)
        wait(futures[:10])
        assert late.cancel(kill=kill)
        if not kill:
            (tmp_path / "never").touch()  # it looks up nowhere before
        assert [one.result() for one in futures] == [x for x in range(100) if x != 50]
    assert max(together) > 8


def test_a_pool_that_is_shut_down_answers_what_waits(together):
    with Pool({"model": request_models.Quick()}, workers=2) as pool:
        handle = quick(pool.model("model"))
        futures = [handle.submit(x) for x in range(3000)]
    assert [one.result(0) for one in futures] == list(range(3000))
    assert max(together) > 8


def test_a_connection_that_is_closed_answers_what_waits():
    with Pool({"model": request_models.Quick()}, workers=2) as pool:
        with Pool.connect(pool.endpoint) as other:
            handle = quick(other.model("model"))
            futures = [handle.submit(x) for x in range(3000)]
        assert [one.result(0) for one in futures] == list(range(3000))


def test_a_lost_supervisor_fails_what_waits_as_well(together):
    pool = Pool({"model": request_models.Quick()}, workers=1)
    handle = quick(pool.model("model"))
    futures = [handle.submit(x) for x in range(20_000)]
    pool._supervisor.kill()
    wait(futures)
    assert all(one.exception() is None or isinstance(one.exception(), SupervisorLost) for one in futures)
    with pytest.raises(SupervisorLost):
        handle(1)
    pool.shutdown()
    assert max(together) > 8


def test_callbacks_may_submit_and_are_answered(module_pool):
    handle = quick(module_pool.model("model"))
    left = threading.Semaphore(0)

    def again(future):
        if future.result() > 0:
            handle.submit(future.result() - 1).add_done_callback(again)
        else:
            left.release()

    for _ in range(50):
        handle.submit(40).add_done_callback(again)
    for _ in range(50):
        assert left.acquire(timeout=60)


class Crowded:
    """A link that has no room until somebody reads."""

    def __init__(self, link):
        self._link = link
        self.is_full = False

    def __getattr__(self, name):
        return getattr(self._link, name)

    def send(self, message, buffers=()):
        return not self.is_full and self._link.send(message, buffers)

    def read(self):
        self.is_full = False
        return self._link.read()


def test_a_callback_that_finds_no_room_for_its_call_makes_some():
    """It runs in the thread that reads, and nobody else does."""
    with Pool({"model": request_models.Quick()}, workers=1) as pool:
        handle = pool.model("model")
        crowded = pool._connection._link = Crowded(pool._connection._link)
        is_answered = threading.Event()

        def again(_):
            crowded.is_full = True
            handle.submit(1).add_done_callback(lambda _: is_answered.set())

        handle.submit(0).add_done_callback(again)
        assert is_answered.wait(60)


def test_they_travel_together_over_tcp_as_well(tmp_path, together):
    toml = "workers = 2\nlisten = ['tcp://127.0.0.1:*']\n[models.model]\nsource = 'request_models:Quick'\n"
    with standalone(tmp_path, toml) as served:
        assert wait_until(lambda: "listening at" in served.log.read_text())
        with Pool.connect(served.log.read_text().partition("listening at ")[2].split()[0]) as pool:
            handle = quick(pool.model("model"))
            futures = [handle.submit(x) for x in range(3000)]
            assert [one.result() for one in futures] == list(range(3000))
    assert max(together) > 8
