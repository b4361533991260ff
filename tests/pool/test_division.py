"""How calls are divided among messages, and for whom of those that may ask again they wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onecopy.pool.division import GAP_S, QUICK_S, ClosedLoop, Division
from onecopy.pool.packs import PACKS_PER_WORKER, Pace

#: Rounds after which nobody doubts that it is a closed loop.
MANY = 50
WORKERS = 8


class Clock:
    """A time that passes when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def looped(clock, calls=4, share=1.0):
    """Return what is known after many rounds of so many answers, each followed by a part of as many calls."""
    loop = ClosedLoop(clock)
    for _ in range(MANY):
        loop.answered(calls)
        for _ in range(int(calls * share)):
            loop.came()
        clock.now += 2 * GAP_S
    return loop


def pace_of(mean_s):
    """Return what is known of a model that has run for so long each time."""
    pace = Pace()
    for _ in range(1000):
        pace.learn(mean_s, 1)
    return pace


def division_of(loop, *, mean_s=1e-5, spare_cores=1):
    return Division(WORKERS, spare_cores, loop, pace_of(mean_s))


# --- closed loops --------------------------------------------------------------------------------------------


def test_of_those_who_ask_again_as_many_are_to_come_as_were_answered():
    loop = looped(Clock())
    assert loop.is_closed
    loop.answered(3)
    loop.answered(2)
    to_come = [loop.to_come]
    for _ in range(6):
        loop.came()
        to_come.append(loop.to_come)
    assert to_come == [5, 4, 3, 2, 1, 0, 0]


def test_who_has_not_come_within_a_moment_is_not_waited_for():
    clock = Clock()
    loop = looped(clock)
    loop.answered(2)
    clock.now += 0.9 * GAP_S
    loop.came()
    assert loop.to_come == 1
    clock.now += 1.1 * GAP_S
    assert loop.to_come == 0


@pytest.mark.parametrize("share", [0.0, 0.5, 0.75])
def test_where_some_do_not_ask_again_nobody_is_waited_for(share):
    loop = looped(Clock(), share=share)
    assert not loop.is_closed
    loop.answered(4)
    assert loop.to_come == 0


def test_who_thinks_before_each_call_is_not_waited_for():
    clock = Clock()
    loop = ClosedLoop(clock)
    for _ in range(MANY):
        loop.answered(1)
        clock.now += 2 * GAP_S
        loop.came()
    assert not loop.is_closed


def test_who_was_waited_for_in_vain_is_waited_for_only_after_asking_again_and_later_each_time():
    clock = Clock()
    loop = looped(clock)
    rounds = []
    for _ in range(3):
        loop.answered(4)
        assert loop.to_come == 4
        clock.now += 2 * GAP_S
        rounds.append(0)
        while not loop.to_come:
            loop.came()
            loop.answered(1)
            rounds[-1] += 1
        loop.came()
    assert rounds[0] < rounds[1] <= rounds[2] < MANY


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("answered"), st.integers(1, 64)),
            st.tuples(st.just("came"), st.integers(1, 64)),
            st.tuples(st.just("time"), st.sampled_from([GAP_S / 3, 2 * GAP_S])),
        )
    ),
    st.booleans(),
)
def test_no_more_are_to_come_than_were_answered_and_none_after_a_moment(steps, is_closed):
    clock = Clock()
    loop = looped(clock) if is_closed else ClosedLoop(clock)
    answered = 0
    for what, amount in steps:
        if what == "time":
            clock.now += amount
        elif what == "answered":
            loop.answered(amount)
            answered += amount
        else:
            for _ in range(amount):
                loop.came()
        assert 0 <= loop.to_come <= answered
        assert 0.0 <= loop._share <= 1.0
    clock.now += 2 * GAP_S
    assert loop.to_come == 0


# --- messages ------------------------------------------------------------------------------------------------


def test_without_a_closed_loop_each_worker_gets_what_comes_and_then_a_message_that_waits():
    division = division_of(ClosedLoop(Clock()))
    assert [division.least(messages, messages + 1) for messages in range(WORKERS)] == [1] * WORKERS
    most = PACKS_PER_WORKER * WORKERS
    assert division.least(WORKERS, 10 * most) == 10
    assert division.least(most, 10 * most) == division.least(most, 1) == pace_of(1e-5).calls
    assert [division.room(messages, 1) for messages in (0, most - 1, most, most + 9)] == [most, 1, 1, 1]


def test_calls_of_a_closed_loop_travel_together_with_those_to_come():
    loop = looped(Clock())
    division = division_of(loop)
    loop.answered(7)
    loop.came()
    assert division.least(0, 1) == 7
    for calls in range(2, 8):
        loop.came()
        assert division.room(0, calls) == 1
    assert division.least(0, 7) == 1  # all are there


def test_what_runs_for_longer_is_divided_among_what_one_spare_core_runs_and_what_waits_for_it():
    loop = looped(Clock())
    division = division_of(loop, mean_s=QUICK_S / 2)
    loop.answered(16)
    assert division.least(0, 0) == 16 / PACKS_PER_WORKER
    wide = division_of(loop, mean_s=QUICK_S / 2, spare_cores=4)
    assert wide.least(0, 0) < 16 / PACKS_PER_WORKER


def test_what_runs_for_longer_than_a_message_costs_waits_for_nobody():
    loop = looped(Clock())
    division = division_of(loop, mean_s=2 * QUICK_S)
    loop.answered(7)
    assert loop.to_come == 7
    assert [division.least(messages, messages + 1) for messages in range(WORKERS)] == [1] * WORKERS
    assert division.room(0, 100) == PACKS_PER_WORKER * WORKERS


@given(
    st.integers(0, 100), st.integers(0, 1000), st.integers(0, 64), st.booleans(),
    st.sampled_from([1e-6, 5e-5, 3e-4, 2e-3]), st.integers(1, 64),
)  # fmt: skip
def test_a_message_never_needs_more_calls_than_may_travel_together(
    messages, calls, answered, closed, mean_s, cores
):
    clock = Clock()
    loop = looped(clock, share=1.0 if closed else 0.0)
    if answered:
        loop.answered(answered)
    division = division_of(loop, mean_s=mean_s, spare_cores=cores)
    assert 1 <= division.least(messages, max(1, calls)) <= max(1, pace_of(mean_s).calls)
    assert division.room(messages, calls) >= 1
