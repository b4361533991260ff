"""What a handle's options do to its requests: who goes first, who stays together, who gives up; and wrong ones."""

from __future__ import annotations

import concurrent.futures
import os

import pytest
import request_models
from leftovers import wait_until
from onecopy.pool import ConfigError, DeadlineExceeded, Pool
from onecopy.pool.options import RequestOptions


@pytest.fixture
def busy(tmp_path):
    """A pool whose one worker waits for a file, and what makes that file."""
    with Pool({"model": request_models.Quick()}, workers=1) as pool:
        pool.run("model", 0)
        begun = tmp_path / "begun"
        future = pool.model("model", method="wait_for").submit(str(tmp_path / "go"), str(begun))
        assert wait_until(begun.exists)
        yield pool, (tmp_path / "go").touch, future
        (tmp_path / "go").touch()


def test_of_what_waits_the_higher_priority_goes_first(busy, tmp_path):
    pool, let_go, _ = busy
    path = str(tmp_path / "log")
    futures = [
        pool.model("model", method="write", priority=priority).submit(path, priority)
        for priority in (0, -100, 50, 100, -50)
    ]
    assert wait_until(lambda: pool.status().unanswered == 6)  # with the one that runs
    let_go()
    concurrent.futures.wait(futures, 20)
    assert (tmp_path / "log").read_text().split() == ["100", "50", "0", "-50", "-100"]


def test_requests_of_one_session_stay_on_one_worker():
    with Pool({"model": request_models.Quick()}, workers=3, slots=3) as pool:
        sessions = [pool.model("model", method="pid", session=f"talk {number}") for number in range(6)]
        pids = [[handle() for handle in sessions] for _ in range(10)]
        assert all(len(set(of_one)) == 1 for of_one in zip(*pids, strict=True))
        futures = [handle.submit() for _ in range(20) for handle in sessions]
        assert [future.result() for future in futures] == pids[0] * 20


def test_a_deadline_passes_while_a_request_waits(busy):
    pool, _, _ = busy
    with pytest.raises(DeadlineExceeded, match=r"0\.1 s"):
        pool.model("model", timeout_s=0.1)(1)
    with pytest.raises(DeadlineExceeded):
        list(pool.model("model", timeout_s=0.1).map(range(3)))


def test_a_run_that_is_cancelled_can_be_made_to_end_at_once(busy):
    pool, _, future = busy
    before = pool.status().workers[0].pid
    assert future.cancel(kill=True)
    assert future.cancelled()
    assert concurrent.futures.wait([future], 20).done == {future}
    assert pool.model("model", method="pid")() != before  # without the file that was waited for
    assert not os.path.exists(f"/proc/{before}")


def test_only_the_run_that_is_given_up_is_ended(busy):
    pool, let_go, future = busy
    before = pool.status().workers[0].pid
    waiting = pool.submit("model", 1)
    assert waiting.cancel(kill=True)  # it has not begun: nobody is ended for it
    let_go()
    assert future.result(20)
    assert pool.model("model", method="pid")() == before


def test_a_second_cancel_does_no_more_and_what_is_done_stays(busy):
    pool, let_go, future = busy
    waiting = pool.submit("model", 1)
    assert waiting.cancel()
    assert waiting.cancel(kill=True)
    let_go()
    assert future.result(20)
    assert not future.cancel(kill=True)
    assert not future.cancelled()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout_s": 0}, "timeout_s must be a number above 0"),
        ({"timeout_s": -1}, "timeout_s must be a number above 0"),
        ({"timeout_s": float("nan")}, "timeout_s must be a number above 0"),
        ({"timeout_s": float("inf")}, "timeout_s must be a number above 0, at most 1e"),
        ({"timeout_s": 10**400}, "timeout_s must be"),
        ({"timeout_s": True}, "timeout_s must be a number above 0.*not True"),
        ({"timeout_s": "5"}, "timeout_s must be a number above 0.*not '5'"),
        ({"priority": 101}, "priority must be a whole number from -100 to 100, not 101"),
        ({"priority": -101}, "priority must be"),
        ({"priority": 1.5}, "priority must be"),
        ({"priority": True}, "priority must be"),
        ({"priority": None}, "priority must be"),
        ({"retries": -1}, "retries must be a whole number from 0 to 100"),
        ({"retries": 101}, "retries must be"),
        ({"retries": True}, "retries must be"),
        ({"session": "x" * 129}, "session must be a text of at most 128 printable characters"),
        ({"session": "a\nb"}, "session must be"),
        ({"session": None}, "session must be"),
        ({"session": b"x"}, "session must be"),
        ({"method": "a b"}, "method 'a b': a name has"),
        ({"method": 5}, "method 5: a name has"),
    ],
)
def test_a_wrong_option_is_named(options, said):
    with pytest.raises(ConfigError, match=said):
        RequestOptions("model", **options)


def test_options_are_frozen_and_tell_what_may_be_packed():
    assert RequestOptions("model", priority=-100, session="é" * 128, timeout_s=1e9, retries=0).session
    assert RequestOptions("model", priority=100).may_be_packed
    with pytest.raises(AttributeError):
        RequestOptions("model").priority = 5
