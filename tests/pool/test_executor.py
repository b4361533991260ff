"""A pool's model as an executor of the standard library: in everything but in what a task may be."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import threading

import pytest
from leftovers import wait_until
from onecopy.pool import ConfigError, InvalidRequest, ModelError, ModelNotFound
from request_models import Quick


@pytest.fixture
def executor(module_pool):
    with module_pool.executor("model") as executor:
        yield executor


def checked():
    """A function that stands for the method of its name."""
    raise AssertionError("it runs in the pool alone")


@pytest.mark.parametrize("task", [None, "checked", Quick.checked, Quick().checked, checked, "__call__"])
def test_a_task_is_a_method_by_name_or_function(executor, task):
    assert isinstance(executor, concurrent.futures.Executor)
    future = executor.submit(task, 5)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(20) == 5


def test_keyword_arguments_travel(executor, tmp_path):
    executor.submit("write", path=str(tmp_path / "log"), word="said").result(20)
    assert (tmp_path / "log").read_text() == "said\n"


@pytest.mark.parametrize("task", [lambda x: x, "_private", "", "no name", "a.b", 5, Quick.__init__])
def test_what_names_no_public_method_is_refused(executor, task):
    with pytest.raises(ConfigError, match="code never travels to a pool: make it a method of the model"):
        executor.submit(task, 5)


def test_a_method_that_is_not_there_is_named(executor):
    with pytest.raises(ModelNotFound, match="no method 'upper'"):
        executor.submit(str.upper, "a").result(20)


def test_the_method_of_a_handle_is_that_of_a_task_without_one(module_pool):
    with module_pool.model("model", method="checked").executor() as executor, pytest.raises(ModelError):
        executor.submit(None, -1).result(20)


def test_map_gives_results_in_order_of_several_sources(executor, tmp_path):
    assert list(executor.map(None, range(100))) == list(range(100))
    assert list(executor.map("checked", range(100), chunksize=7)) == list(range(100))
    path = str(tmp_path / "log")
    list(executor.map("write", itertools.repeat(path), ["a", "b"]))
    assert sorted((tmp_path / "log").read_text().split()) == ["a", "b"]


def test_map_raises_in_its_place(executor):
    results = executor.map(Quick.checked, [1, 2, -3, 4])
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(ModelError, match="-3 is negative"):
        next(results)


def test_map_and_result_keep_to_timeouts(executor, tmp_path):
    go = tmp_path / "go"
    results = executor.map("wait_for", [str(go)], timeout=0.05)
    with pytest.raises(TimeoutError):
        next(results)
    future = executor.submit("wait_for", str(go))
    with pytest.raises(TimeoutError):
        future.result(0.01)
    with pytest.raises(TimeoutError):
        future.exception(0.01)
    go.touch()
    assert future.result(20) == str(go)


def test_wait_tells_of_the_first_that_is_done_and_of_errors(executor, tmp_path):
    go = tmp_path / "go"
    waiting = executor.submit("wait_for", str(go))
    quick = executor.submit(None, 1)
    done, rest = concurrent.futures.wait([waiting, quick], 20, concurrent.futures.FIRST_COMPLETED)
    assert (done, rest) == ({quick}, {waiting})
    failing = executor.submit("checked", -1)
    done, rest = concurrent.futures.wait([waiting, failing], 20, concurrent.futures.FIRST_EXCEPTION)
    assert (done, rest) == ({failing}, {waiting})
    assert concurrent.futures.wait([waiting], 0.01) == (set(), {waiting})
    go.touch()
    assert concurrent.futures.wait([waiting, quick, failing], 20).not_done == set()
    assert isinstance(failing.exception(), ModelError)


def test_as_completed_yields_each_once(executor):
    futures = [executor.submit(None, x) for x in range(50)]
    assert {future.result() for future in concurrent.futures.as_completed(futures, 20)} == set(range(50))


def test_a_cancelled_future_is_done_for_everybody(executor, tmp_path):
    go = tmp_path / "go"
    future = executor.submit("wait_for", str(go))
    called = threading.Event()
    future.add_done_callback(lambda _: called.set())
    assert not future.done()
    assert future.cancel()
    assert future.cancel()
    assert called.wait(20)
    assert future.cancelled()
    assert concurrent.futures.wait([future], 20).done == {future}
    assert list(concurrent.futures.as_completed([future], 20)) == [future]
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(20)
    go.touch()


def test_waiting_for_a_future_ends_when_another_thread_cancels_it(executor, tmp_path):
    future = executor.submit("wait_for", str(tmp_path / "go"))
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        one = threads.submit(concurrent.futures.wait, [future], 20)
        two = threads.submit(future.exception, 20)
        future.cancel()
        assert one.result().done == {future}
        with pytest.raises(concurrent.futures.CancelledError):
            two.result()
    (tmp_path / "go").touch()


def test_callbacks_are_called_once_whenever_they_are_added(executor):
    seen = []
    future = executor.submit(None, 5)
    future.add_done_callback(lambda one: seen.append(one.result()))
    assert wait_until(lambda: seen == [5])
    future.add_done_callback(lambda one: seen.append(one.result()))
    assert seen == [5, 5]


def test_asyncio_can_run_in_it(executor):
    async def main():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, Quick.checked, x) for x in range(30)))

    assert asyncio.run(main()) == list(range(30))


def test_an_argument_that_cannot_travel_is_refused_at_once(executor):
    with pytest.raises(InvalidRequest, match=r"\[args, kwargs\]\[0\]\[0\] cannot travel"):
        executor.submit(None, threading.Lock())
    executor.shutdown()  # nothing is left to be waited for


def test_shutting_down_waits_and_leaves_the_pool(module_pool, tmp_path):
    executor = module_pool.executor("model")
    go = tmp_path / "go"
    futures = [executor.submit("wait_for", str(go)) for _ in range(5)]
    executor.shutdown(wait=False)
    assert not any(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(None, 1)
    with pytest.raises(RuntimeError, match="shut down"):
        executor.map(None, [1])
    go.touch()
    executor.shutdown()
    assert all(future.done() for future in futures)
    executor.shutdown()
    assert module_pool.run("model", 1) == 1


def test_shutting_down_can_give_up_what_is_not_done(module_pool, tmp_path):
    executor = module_pool.executor("model")
    futures = [executor.submit("wait_for", str(tmp_path / "go")) for _ in range(10)]
    done = executor.submit(None, 1)
    mine = module_pool.submit("model", 2)
    executor.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    assert done.cancelled() or done.result() == 1
    (tmp_path / "go").touch()
    assert mine.result(20) == 2
    assert repr(executor) == "<PoolExecutor of model: shut down>"


def test_more_tasks_than_a_client_may_have_under_way_wait_their_turn(module_pool, monkeypatch):
    monkeypatch.setattr("onecopy.pool.executor._MOST_UNANSWERED", 20)
    with module_pool.executor("model") as executor:
        futures = [executor.submit(None, x) for x in range(200)]
        assert module_pool._connection.unanswered <= 20
        assert [future.result() for future in futures] == list(range(200))


def test_joblib_uses_every_worker_with_threads(module_pool, tmp_path):
    joblib = pytest.importorskip("joblib")
    meet = module_pool.model("model", method="meet")
    parallel = joblib.Parallel(n_jobs=8, backend="threading")
    pids = parallel(joblib.delayed(meet)(str(tmp_path), 3) for _ in range(12))
    assert len(set(pids)) == 3
    handle = module_pool.model("model")
    assert parallel(joblib.delayed(handle)(x) for x in range(100)) == list(range(100))
