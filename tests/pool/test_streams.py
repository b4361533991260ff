"""Streams: items in order as they come, credit, errors in the middle, and every way in which a reader leaves."""

from __future__ import annotations

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import request_models
import torch
from leftovers import wait_until
from module_pool import shared_pool
from onecopy.pool import (
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    Pool,
    RequestCancelled,
    SupervisorLost,
    WorkerDied,
)


@pytest.fixture(scope="module")
def module_pool(tmp_path_factory):
    """One pool for the tests that change nothing in it."""
    with shared_pool(tmp_path_factory, {"model": request_models.Yielding()}) as pool:
        pool.model("model", method="pid")()
        yield pool


def is_idle(pool):
    """Whether every worker could take something new."""
    return all(worker.outstanding == 0 for worker in pool.status().workers)


@pytest.mark.parametrize("buffersize", [1, 2, 3, 16, 1000])
def test_items_come_in_order_and_then_the_end(module_pool, buffersize):
    stream = module_pool.stream("model", 100, buffersize=buffersize)
    assert list(stream) == list(range(100))
    assert list(stream) == []
    assert next(stream, "over") == "over"


def test_a_stream_may_be_empty(module_pool):
    assert list(module_pool.stream("model", 0)) == []


def test_items_come_while_the_model_runs(module_pool, tmp_path):
    stream = module_pool.model("model", method="wait_between").stream(str(tmp_path / "go"))
    assert next(stream) == 0
    (tmp_path / "go").touch()
    assert list(stream) == [1]


def test_large_arrays_travel_in_items(module_pool):
    items = list(module_pool.model("model", method="arrays").stream(20))
    assert all(torch.equal(item, torch.full((10_000,), float(number))) for number, item in enumerate(items))
    items[0].fill_(7.0)  # they belong to the reader
    assert len(items) == 20


def test_an_error_comes_after_the_items_before_it(module_pool):
    stream = module_pool.model("model", method="fail_after").stream(3)
    seen = []
    with pytest.raises(ModelError, match="ValueError: only 3"):
        seen.extend(stream)
    assert next(stream, "over") == "over"
    stream = module_pool.model("model", method="fail_after").stream(3)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ModelError, match="only 3"):
        next(stream)


def test_a_method_that_does_not_yield_says_how_to_call_it(module_pool):
    stream = module_pool.model("model", method="listed").stream(3)
    with pytest.raises(ModelError, match="listed returned a list"):
        next(stream)
    with pytest.raises(InvalidRequest, match=r"pool\.stream"):
        module_pool.run("model", 3)


def test_wrong_use_is_refused_at_once(module_pool):
    with pytest.raises(ConfigError, match="buffersize must be a whole number from 1"):
        module_pool.stream("model", 3, buffersize=0)
    with pytest.raises(InvalidRequest, match=r"\[args, kwargs\]\[0\]\[0\] cannot travel"):
        module_pool.stream("model", threading.Lock())
    with pytest.raises(ModelNotFound, match="nobody"):
        next(module_pool.stream("nobody"))


def test_the_model_is_never_further_ahead_than_its_reader_lets_it(module_pool, tmp_path):
    path = tmp_path / "asked"
    stream = module_pool.model("model", method="ahead").stream(str(path), buffersize=4)
    for taken in range(1, 20):
        assert next(stream) == taken - 1
        assert os.path.getsize(path) <= taken + 4 + 1  # one more is made before it is known that it must wait
    stream.close()
    assert wait_until(lambda: is_idle(module_pool))


# --- readers that go away ------------------------------------------------------------------------------------


def leave_the_loop(handle, path):
    for item in handle.stream(path):
        if item == 20:
            break


def close(handle, path):
    stream = handle.stream(path)
    assert next(stream) == 0
    stream.close()
    stream.close()
    assert list(stream) == []


def leave_the_block(handle, path):
    with handle.stream(path) as stream:
        assert next(stream) == 0


def raise_in_the_loop(handle, path):
    def read():
        for _ in handle.stream(path):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        read()


def become_garbage_in_a_cycle(handle, path):
    stream = handle.stream(path)
    assert next(stream) == 0
    cycle = [stream]
    cycle.append(cycle)
    del stream, cycle
    gc.collect()


def drop_it_unread(handle, path):
    handle.stream(path)


@pytest.mark.parametrize(
    "go_away",
    [leave_the_loop, close, leave_the_block, raise_in_the_loop, become_garbage_in_a_cycle, drop_it_unread],
)
def test_a_reader_that_goes_away_frees_the_worker(module_pool, tmp_path, go_away):
    ended = tmp_path / "ended"
    go_away(module_pool.model("model", method="endless"), str(ended))
    assert wait_until(lambda: is_idle(module_pool))
    assert ended.exists() or go_away is drop_it_unread  # which may not even have begun
    assert not module_pool._connection._expected
    assert module_pool.model("model", method="pid")() > 0


def test_garbage_may_be_collected_while_the_connection_is_locked(module_pool, tmp_path):
    ended = tmp_path / "ended"
    stream = module_pool.model("model", method="endless").stream(str(ended))
    assert next(stream) == 0
    with module_pool._connection._link._lock:  # as in the midst of sending
        del stream
    assert module_pool.model("model", method="pid")() > 0  # whoever sends next tells of it
    assert wait_until(ended.exists)


def test_another_thread_may_close_a_stream_that_is_waited_for(module_pool, tmp_path):
    stream = module_pool.model("model", method="wait_between").stream(str(tmp_path / "go"))
    assert next(stream) == 0
    with ThreadPoolExecutor(1) as thread:
        rest = thread.submit(list, stream)
        assert wait_until(lambda: module_pool._connection._receiver.is_active)
        stream.close()
        assert rest.result(20) == []
    (tmp_path / "go").touch()
    assert wait_until(lambda: is_idle(module_pool))


# --- together with others ------------------------------------------------------------------------------------


def test_many_threads_read_streams_while_others_run(module_pool):
    def read(seed):
        return sum(module_pool.stream("model", 300 + seed, buffersize=1 + seed))

    def run(_):
        return [module_pool.model("model", method="listed")(3) for _ in range(50)][-1]

    with ThreadPoolExecutor(8) as threads:
        sums, lists = threads.map(read, range(6)), threads.map(run, range(2))
        assert list(sums) == [sum(range(300 + seed)) for seed in range(6)]
        assert list(lists) == [[0, 1, 2]] * 2


def test_a_thread_can_read_several_streams_in_turns(module_pool):
    streams = [module_pool.stream("model", 50, buffersize=2) for _ in range(3)]
    assert list(zip(*streams, strict=True)) == [(number,) * 3 for number in range(50)]


def test_a_timeout_is_for_the_whole_stream(module_pool, tmp_path):
    stream = module_pool.model("model", method="wait_between", timeout_s=0.5).stream(str(tmp_path / "go"))
    assert next(stream) == 0
    with pytest.raises(DeadlineExceeded, match=r"0\.5 s"):
        next(stream)
    (tmp_path / "go").touch()


def test_a_stream_whose_worker_dies_is_not_begun_again():
    with Pool({"model": request_models.Yielding()}, workers=1) as pool:
        stream = pool.model("model", method="die_after", retries=5).stream(2)
        assert [next(stream), next(stream)] == [0, 1]
        with pytest.raises(WorkerDied, match="SIGKILL"):
            next(stream)
        assert list(pool.stream("model", 3)) == [0, 1, 2]


def test_shutting_down_closes_what_this_thread_reads_and_waits_for_the_others(tmp_path):
    pool = Pool({"model": request_models.Yielding()}, workers=2, slots=2)
    mine = pool.model("model", method="endless").stream(str(tmp_path / "ended"))
    assert next(mine) == 0

    def read():
        return list(pool.model("model", method="wait_between").stream(str(tmp_path / "go")))

    def let_it_go():
        assert wait_until(mine._inbox.done)
        (tmp_path / "go").touch()

    with ThreadPoolExecutor(2) as threads:
        theirs = threads.submit(read)
        assert wait_until(lambda: len(pool._connection._expected) == 2)
        gone = threads.submit(let_it_go)
        pool.shutdown()
        assert theirs.result() == [0, 1]
        gone.result()


def test_a_stream_that_is_left_open_does_not_keep_the_pool(tmp_path):
    with Pool({"model": request_models.Yielding()}, workers=1) as pool:
        stream = pool.model("model", method="endless").stream(str(tmp_path / "ended"))
        assert next(stream) == 0
    with pytest.raises(RequestCancelled, match="shut down before this stream was read to its end"):
        list(stream)


def test_a_stream_of_a_lost_supervisor_ends_with_that(tmp_path):
    pool = Pool({"model": request_models.Yielding()}, workers=1)
    stream = pool.model("model", method="wait_between").stream(str(tmp_path / "go"))
    assert next(stream) == 0
    os.kill(pool.status().pid, 9)
    with pytest.raises(SupervisorLost):
        list(stream)
    pool.shutdown()
