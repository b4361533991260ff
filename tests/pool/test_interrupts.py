"""Runs that nobody waits for any more end early, end to end; no other run is harmed."""

from __future__ import annotations

import batch_models
import pool_models
import pytest
from leftovers import wait_until
from onecopy.pool import DeadlineExceeded, Pool


@pytest.fixture
def pool():
    models = {"layers": batch_models.Layers(), "trouble": pool_models.Trouble()}
    with Pool(models, workers=1) as pool:
        yield pool


def begin_loop(pool, tmp_path, name="begun", **options):
    """Let the one worker call modules for ever."""
    begun = tmp_path / name
    future = pool.model("layers", method="loop", **options).submit(str(begun))
    assert wait_until(begun.exists)
    return future


def pid(pool):
    return pool.model("layers", method="pid")()


def test_a_run_that_is_cancelled_ends_and_its_worker_goes_on(pool, tmp_path):
    worker = pid(pool)
    assert begin_loop(pool, tmp_path).cancel()
    assert pid(pool) == worker


def test_a_run_that_is_late_ends_too(pool, tmp_path):
    worker = pid(pool)
    future = begin_loop(pool, tmp_path, timeout_s=0.5)
    with pytest.raises(DeadlineExceeded, match="running"):
        future.result()
    assert pid(pool) == worker


def test_what_ran_for_a_client_that_left_ends(pool, tmp_path):
    worker = pid(pool)
    other = Pool.connect(pool._connection.endpoint)
    begin_loop(other, tmp_path)
    other.shutdown(cancel_futures=True)
    assert pid(pool) == worker


def test_to_kill_ends_what_never_looks_up(pool, tmp_path):
    worker = pid(pool)
    begun = tmp_path / "begun"
    future = pool.model("trouble", method="wait_for").submit(str(tmp_path / "never"), str(begun))
    waiting = [pool.model("layers", method="pid", retries=0).submit() for _ in range(10)]
    assert wait_until(begun.exists)
    assert future.cancel(kill=True)
    successors = {one.result() for one in waiting}
    assert len(successors) == 1
    assert worker not in successors
    assert pool.status().to_dict()["retried"] == 0


def test_to_kill_what_has_not_begun_harms_nobody(pool, tmp_path):
    worker = pid(pool)
    go, begun = tmp_path / "go", tmp_path / "begun"
    running = pool.model("trouble", method="wait_for", retries=0).submit(str(go), str(begun))
    assert wait_until(begun.exists)
    waiting = [pool.submit("layers", number) for number in range(20)]
    for future in waiting[::2]:
        assert future.cancel(kill=True)
    go.touch()
    assert running.result() == worker
    assert [future.result() for future in waiting[1::2]] == list(range(1, 20, 2))
    assert pid(pool) == worker


def test_kills_amid_many_quick_runs_harm_none_of_the_others(tmp_path):
    with Pool({"layers": batch_models.Layers()}, workers=2, slots=2) as pool:
        handle, loop = pool.model("layers", retries=0), pool.model("layers", method="loop", retries=0)
        kept = []
        for number in range(200):
            begun = tmp_path / f"begun {number}"
            unwanted = handle.submit("unwanted") if number % 20 else loop.submit(str(begun))
            kept.append(handle.submit(number))
            assert number % 20 or wait_until(begun.exists)
            unwanted.cancel(kill=True)
        assert [future.result() for future in kept] == list(range(200))


def test_of_many_that_are_given_up_at_once_none_runs(pool, tmp_path):
    worker = pid(pool)
    running = begin_loop(pool, tmp_path)
    loop = pool.model("layers", method="loop")
    unwanted = [loop.submit(str(tmp_path / f"never {number}")) for number in range(50)]
    wanted = pool.submit("layers", 1)
    for future in [running, *unwanted]:
        future.cancel()
    assert wanted.result() == 1
    assert pid(pool) == worker
    assert not list(tmp_path.glob("never*"))


def test_a_stream_that_is_closed_frees_its_worker(pool, tmp_path):
    worker = pid(pool)
    stream = pool.model("layers", method="count").stream(10**9)
    assert [next(stream) for _ in range(40)] == list(range(40))
    stream.close()
    assert pid(pool) == worker
    assert pool.model("layers", method="seen")() == ["closed"]


def test_a_stream_that_computes_is_closed_at_its_next_module(pool, tmp_path):
    begun = tmp_path / "begun"
    stream = pool.model("layers", method="busy").stream(str(begun))
    assert next(stream) == "first"
    assert wait_until(begun.exists)
    stream.close()
    assert pool.model("layers", method="seen")() == ["closed"]


def test_a_pool_that_is_shut_down_waits_for_no_run_that_was_killed(tmp_path):
    with Pool({"layers": batch_models.Layers()}, workers=1) as pool:
        begin_loop(pool, tmp_path).cancel(kill=True)
