"""Calls that are submitted one by one and travel together: when they do, and that nobody can tell."""

from __future__ import annotations

import numpy as np
import pytest
from echoing import Echoing, handle_of
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from onecopy.pool import (
    InvalidRequest,
    ModelNotFound,
    WorkerDied,
)
from onecopy.pool.division import GAP_S
from onecopy.pool.packs import Pace

#: Messages that go out at once for two workers.
ROOM = 4
QUICK = 100


def learned(connection, *, think_s=0.001, **options):
    """Return a handle of a model that is known to be quick, whose users think before they ask again."""
    handle = handle_of(connection, **options)
    for number in range(QUICK):
        future = handle._gathering.submit((number,), {})
        connection.answer_one()
        assert future.result() == number
        connection.now += think_s
    connection.counts.clear()
    return handle


def submit(handle, xs):
    return [handle._gathering.submit((x,), {}) for x in xs]


def answer_all(connection):
    while connection.sent:
        connection.answer_one()


# --- when they do --------------------------------------------------------------------------------------------


def test_who_does_not_keep_workers_busy_sends_every_call_at_once():
    connection = Echoing()
    handle = learned(connection)
    for _ in range(50):
        futures = submit(handle, range(ROOM))
        assert len(connection.sent) == ROOM
        answer_all(connection)
        assert [one.result() for one in futures] == list(range(ROOM))
        connection.now += 0.001
    assert set(connection.counts) == {0}


def test_beyond_that_calls_wait_for_the_next_answer_and_travel_together():
    connection = Echoing()
    futures = submit(learned(connection), range(20))
    assert connection.counts == [0] * ROOM
    connection.answer_one()
    assert connection.counts == [0] * ROOM + [16]
    answer_all(connection)
    assert [one.result() for one in futures] == list(range(20))


def test_as_many_answers_as_come_at_once_are_followed_by_as_many_messages():
    connection = Echoing()
    submit(learned(connection), range(16))
    for _ in range(3):
        connection.answer(connection.sent.popleft())
    connection.gatherings.look_after()
    assert connection.counts == [0] * ROOM + [4, 4, 4]


def test_while_workers_have_something_to_run_a_message_has_its_part_of_what_is_unanswered():
    connection = Echoing()
    handle = learned(connection)
    submit(handle, range(4 + 4 * 8))  # 4 that travel alone, and 32 that wait
    for _ in range(ROOM):
        connection.answer(connection.sent.popleft())
    connection.gatherings.look_after()
    assert connection.counts[ROOM:] == [8] * ROOM
    for round_ in range(1, 4):
        connection.answer_one()
        submit(handle, range(7))
        connection.gatherings.look_after()
        assert len(connection.counts) == 2 * ROOM + round_ - 1, "24 are under way, and a part of 31 is 8"
        submit(handle, range(1))
        assert connection.counts[2 * ROOM :] == [8] * round_


def rounds_of(connection, handle, calls, count):
    """Let so many calls be submitted and answered, at once and again and again."""
    for _ in range(count):
        futures = submit(handle, range(calls))
        answer_all(connection)
        assert [one.result() for one in futures] == list(range(calls))


def test_calls_of_those_who_always_ask_again_travel_together_however_few_they_are():
    connection = Echoing()
    handle = learned(connection)
    rounds_of(connection, handle, 3, 50)
    connection.counts.clear()
    rounds_of(connection, handle, 3, 10)
    assert connection.counts == [3] * 10


def test_who_always_asks_again_and_once_does_not_keeps_the_others_waiting_for_a_moment():
    connection = Echoing()
    handle = learned(connection)
    rounds_of(connection, handle, 3, 50)
    connection.counts.clear()
    submit(handle, range(2))
    connection.gatherings.look_after()
    assert connection.counts == []
    assert connection.gatherings.sleep_ms(None) == GAP_S * 1000
    connection.now += 2 * GAP_S
    connection.gatherings.look_after()
    assert connection.counts == [2]
    answer_all(connection)
    for _ in range(3):  # and later for nobody
        submit(handle, range(1))
        answer_all(connection)
        connection.now += 2 * GAP_S
    connection.counts.clear()
    submit(handle, range(2))
    assert connection.counts == [0, 0]


def test_a_slow_model_waits_for_nobody():
    connection = Echoing(seconds=3e-4)
    handle = learned(connection, think_s=0.0)
    rounds_of(connection, handle, 2, 50)
    assert set(connection.counts) == {0}


def test_a_full_message_goes_out_at_once():
    connection = Echoing(seconds=1e-6)
    submit(learned(connection), range(ROOM + 3 * 64 + 5))
    assert connection.counts == [0] * ROOM + [64] * 3
    submit(learned(connection), ["x" * 40_000] * 3)
    assert connection.counts[-1] == 0  # more than fits into one travels by itself


@pytest.mark.parametrize(("seconds", "most"), [(1e-6, 64), (1e-4, 10), (3e-4, 3), (6e-4, 1), (2e-3, 1)])
def test_the_longer_they_run_the_fewer_travel_together(seconds, most):
    connection = Echoing(seconds=seconds)
    futures = submit(learned(connection), range(500))
    answer_all(connection)
    assert [one.result() for one in futures] == list(range(500))
    assert max(max(connection.counts), 1) in (most, most - 1)


@pytest.mark.parametrize("options", [{"timeout_s": 5.0}, {"retries": 0}, {"session": "mine"}])
def test_where_somebody_could_tell_every_call_travels_alone(options):
    connection = Echoing()
    futures = submit(learned(connection, **options), range(100))
    answer_all(connection)
    assert [one.result() for one in futures] == list(range(100))
    assert set(connection.counts) == {0}


def test_what_cannot_wait_does_not_overtake_what_does():
    connection = Echoing()
    handle = learned(connection)
    submit(handle, range(10))
    handle._gathering.submit((np.zeros(100_000),), {})
    assert connection.counts == [0] * ROOM + [6, 0]
    submit(handle, range(10))
    handle._gathering.submit((1,), {"more": 2})
    assert connection.counts == [0] * ROOM + [6, 0, 10, 0]


def test_a_model_that_is_slow_once_is_trusted_later_each_time():
    pace = Pace()
    trusted_after = []
    for _ in range(6):
        calls = 0
        while pace.calls == 1:
            pace.learn(1e-5, 1)
            calls += 1
        trusted_after.append(calls)
        pace.learn(10.0, 1)
        assert pace.calls == 1
    assert trusted_after == [64, 256, 1024, 4096, 4096, 4096]


def test_none_waits_for_long_whatever_becomes_of_the_others():
    connection = Echoing()
    submit(learned(connection), range(10))
    connection.gatherings.look_after()
    assert connection.counts == [0] * ROOM
    assert connection.gatherings.sleep_ms(None) == connection.gatherings.sleep_ms(60_000.0) == 5.0
    connection.now += 0.006
    connection.gatherings.look_after()
    assert connection.counts == [0] * ROOM + [6]


# --- that nobody can tell ------------------------------------------------------------------------------------


def test_a_call_that_is_given_up_while_it_waits_is_never_sent():
    connection = Echoing()
    futures = submit(learned(connection), range(10))
    assert futures[5].cancel()
    connection.answer_one()
    assert connection.counts == [0] * ROOM + [5]
    answer_all(connection)
    assert [one.result() for one in futures if not one.cancelled()] == [0, 1, 2, 3, 4, 6, 7, 8, 9]


@pytest.mark.parametrize("kill", [False, True])
def test_a_call_that_is_given_up_later_leaves_the_others_alone(kill):
    connection = Echoing()
    futures = submit(learned(connection), range(10))
    connection.answer_one()
    bundle = futures[5].bundle
    assert len(bundle.futures) == 6
    assert futures[5].cancel(kill=kill)
    assert connection.forgotten == [bundle.number]
    assert futures[7].cancel(kill=kill)
    assert connection.forgotten == [bundle.number]
    connection.gatherings.look_after()
    assert connection.counts == [0] * ROOM + [6, 4]
    answer_all(connection)
    assert [one.result() for one in futures if not one.cancelled()] == [0, 1, 2, 3, 4, 6, 8, 9]


@pytest.mark.parametrize("error", [WorkerDied("SIGKILL"), InvalidRequest("too much")])
def test_what_one_of_them_may_be_to_blame_for_is_found_out_one_by_one(error):
    connection = Echoing()
    futures = submit(learned(connection), range(10))
    connection.answer_one()
    bundle = futures[-1].bundle
    connection.refusals[bundle.number] = error
    answer_all(connection)
    assert [one.result() for one in futures] == list(range(10))
    assert connection.counts == [0] * ROOM + [6] + [0] * 6


def test_what_all_fail_with_is_everybodys_error():
    connection = Echoing()
    futures = submit(learned(connection), range(10))
    connection.answer_one()
    connection.refusals[futures[-1].bundle.number] = ModelNotFound("it was unloaded")
    answer_all(connection)
    assert [one.result() for one in futures[:ROOM]] == list(range(ROOM))
    assert all(isinstance(one.exception(), ModelNotFound) for one in futures[ROOM:])


def test_calls_that_one_keeps_from_being_answered_are_sent_again():
    connection = Echoing(seconds=1e-6)
    handle = learned(connection)
    futures = submit(handle, range(10))
    connection.answer_one()
    request = connection.sent.pop()
    bundle = request[0]
    connection.counts.clear()
    bundle.late(2)
    assert connection.counts == [0] * 5
    answer_all(connection)
    assert [one.result() for one in futures if one.done()] == [0, 1, 2, 3, 4, 5, 7, 8, 9]
    connection.answer(request)  # of which nobody needs more than that one
    assert futures[6].result() == 6
    assert submit(handle, range(10))
    assert max(connection.counts) == 0  # such calls are not so quick after all


def test_the_late_one_of_them_can_be_given_up():
    connection = Echoing(seconds=1e-6)
    futures = submit(learned(connection), range(10))
    connection.answer_one()
    bundle = futures[-1].bundle
    bundle.late(5)
    assert futures[3].cancel()
    assert futures[6].cancel()
    assert connection.forgotten == [3 + 1 + QUICK, futures[6].number]
    assert futures[-1].cancel(kill=True)
    assert connection.forgotten[2:] == [bundle.number]
    answer_all(connection)
    assert [one.result() for one in futures if not one.cancelled()] == [0, 1, 2, 4, 5, 7, 8]


def test_a_signal_handler_that_raises_loses_nobodys_call(monkeypatch):
    connection = Echoing()
    futures = submit(learned(connection), range(10))

    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(connection, "post", interrupted)
        with pytest.raises(KeyboardInterrupt):
            connection.answer_one()
    answer_all(connection)
    assert [one.result() for one in futures] == list(range(10))


def test_one_that_raises_when_an_answer_comes_keeps_it_from_nobody():
    connection = Echoing()
    futures = submit(learned(connection), range(10))
    connection.answer_one()

    def interrupted(_):
        raise KeyboardInterrupt

    futures[6].add_done_callback(interrupted)
    with pytest.raises(KeyboardInterrupt):
        answer_all(connection)
    assert [one.result() for one in futures] == list(range(10))


class Calls(RuleBasedStateMachine):
    """Calls come, are answered, fail and are given up in any order; each ends once, as it would have alone."""

    def __init__(self):
        super().__init__()
        self.connection = Echoing(seconds=1e-6)
        self.handle = handle_of(self.connection)
        self.futures = []
        self.failed = set()

    @initialize(think_s=st.sampled_from([0.0, 0.001]))
    def be_known(self, think_s):
        self.handle = learned(self.connection, think_s=think_s)

    @rule(seconds=st.sampled_from([0.0001, 0.001, 0.01]))
    def time_passes(self, seconds):
        self.connection.now += seconds
        self.connection.gatherings.look_after()
        if seconds > GAP_S:
            assert bool(self.connection.sent) or not self.connection.gatherings

    @rule(count=st.integers(1, 100))
    def come(self, count):
        start = len(self.futures)
        self.futures += submit(self.handle, range(start, start + count))

    @rule()
    def come_large(self):
        self.futures += submit(self.handle, [np.full(10_000, len(self.futures))])

    @precondition(lambda self: self.connection.sent)
    @rule(place=st.integers(0, 1000))
    def answer(self, place):
        sent = self.connection.sent
        request = sent[place % len(sent)]
        sent.remove(request)
        self.connection.answer(request)

    @precondition(lambda self: self.connection.sent)
    @rule(place=st.integers(0, 1000), error=st.sampled_from([WorkerDied("SIGKILL"), ModelNotFound("gone")]))
    def fail(self, place, error):
        sent = self.connection.sent
        expected, _, _, count = request = sent[place % len(sent)]
        if count == 0 or not isinstance(error, WorkerDied):
            own = [one for one in expected.futures if one.bundle is expected] if count else [expected]
            self.failed.update(one for one in own if not one.done())
        sent.remove(request)
        self.connection.refusals[expected.number] = error
        self.connection.answer(request)

    @precondition(lambda self: self.futures)
    @rule(place=st.integers(0, 1000), kill=st.booleans())
    def give_up(self, place, kill):
        self.futures[place % len(self.futures)].cancel(kill=kill)

    @precondition(lambda self: self.handle._gathering._bundles)
    @rule(place=st.integers(0, 1000), call=st.integers(0, 100))
    def be_late(self, place, call):
        bundles = list(self.handle._gathering._bundles)
        bundles[place % len(bundles)].late(call)

    @rule()
    def look_after(self):
        self.connection.gatherings.look_after()

    @invariant()
    def whoever_waits_waits_for_answers_or_for_those_to_come(self):
        self.connection.gatherings.look_after()
        has_waiting = bool(self.connection.gatherings)
        assert bool(self.connection.sent) or not has_waiting or self.handle._gathering._loop.to_come

    def teardown(self):
        answer_all(self.connection)
        self.time_passes(0.001)
        answer_all(self.connection)
        assert not self.connection.gatherings
        for number, future in enumerate(self.futures):
            assert future.done()
            if future in self.failed and not future.cancelled():
                assert isinstance(future.exception(), (WorkerDied, ModelNotFound))
            elif not future.cancelled():
                assert np.max(future.result()) == number
        assert not self.handle._gathering._alone
        assert not self.handle._gathering._bundles


TestCalls = Calls.TestCase
TestCalls.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
