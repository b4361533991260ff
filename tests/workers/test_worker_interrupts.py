"""Runs that are given up in a real worker: they end at the next safe point, and nothing else does."""

import batch_models
import pytest
from driven import call, pack
from leftovers import wait_until
from onecopy.protocol.errors import RequestCancelled


@pytest.fixture
def held(worker):
    return worker.hold(batch_models.Layers())


def test_a_long_loop_over_modules_ends_at_the_next_of_them(worker, held, tmp_path):
    begun = tmp_path / "begun"
    attempt = worker.order(held, "loop", call(str(begun)))
    assert wait_until(begun.exists)
    worker.interrupt(attempt)
    (error,) = worker.ended(attempt)
    assert isinstance(error, RequestCancelled)
    assert error.message == "the request was cancelled while it ran"
    assert worker.run(held, "seen", call()) == [[]], (
        "and a model that survives every Exception does not survive it"
    )
    assert worker.run(held, "loop", call(str(begun), 3)) == [3], "what comes after is run to its end"


def test_a_run_that_was_given_up_before_it_began_is_not_run(worker, held, tmp_path):
    paths = [tmp_path / name for name in "abc"]
    attempts = [worker.order(held, "touch_and_sleep", call(str(path))) for path in paths]
    worker.interrupt(attempts[1])
    results = [worker.ended(attempt)[0] for attempt in attempts]
    assert results[::2] == [str(paths[0]), str(paths[2])]
    assert isinstance(results[1], RequestCancelled)
    assert [path.exists() for path in paths] == [True, False, True]


def test_several_may_be_given_up_at_once(worker, held, tmp_path):
    begun, after = tmp_path / "begun", tmp_path / "after"
    attempts = [worker.order(held, "loop", call(str(begun)))]
    # As many as surely fit: a socket with a timeout waits until three quarters of its buffer are free.
    attempts += [worker.order(held, "touch_and_sleep", call(str(after))) for _ in range(30)]
    assert wait_until(begun.exists)
    for attempt in attempts:
        worker.interrupt(attempt)
    assert all(isinstance(worker.ended(attempt)[0], RequestCancelled) for attempt in attempts)
    assert not after.exists()


@pytest.mark.parametrize("max_batch", [1, 4])
def test_a_pack_ends_between_its_calls(worker, tmp_path, max_batch):
    held = worker.hold(batch_models.Layers(), max_batch=max_batch)
    paths = [tmp_path / str(number) for number in range(200)]
    attempt = worker.order(held, "touch_and_sleep", pack([str(path) for path in paths]))
    assert wait_until(paths[1].exists if max_batch == 1 else lambda: worker.marks.begun == attempt)
    worker.interrupt(attempt)
    assert isinstance(worker.ended(attempt)[0], RequestCancelled)
    assert sum(path.exists() for path in paths) < 10


def test_a_batch_ends_for_all_of_its_parts(worker, tmp_path):
    held = worker.hold(batch_models.Layers(), max_batch=8)
    begun = tmp_path / "begun"
    attempt = worker.order(held, "loop", *[call(str(begun)) for _ in range(3)])
    assert wait_until(lambda: worker.marks.begun == attempt)
    worker.interrupt(attempt)
    assert [type(error) for error in worker.ended(attempt)] == [RequestCancelled] * 3


def test_what_is_over_cannot_be_given_up_any_more(worker, held):
    attempt = worker.order(held, "__call__", call(1))
    assert worker.ended(attempt) == [1]
    worker.interrupt(attempt)
    assert worker.run(held, "__call__", call(2)) == [2]


def test_the_page_tells_what_was_begun(worker, held, tmp_path):
    begun = tmp_path / "begun"
    attempt = worker.order(held, "loop", call(str(begun)))
    assert wait_until(begun.exists)
    assert worker.marks.begun == attempt
    worker.interrupt(attempt)
    worker.ended(attempt)
    assert wait_until(lambda: worker.marks.begun == 0)


def test_a_run_that_nobody_gives_up_has_no_hooks(worker, held):
    assert worker.run(held, "hooks", call()) == [0]
