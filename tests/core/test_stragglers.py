"""Runs that take far longer than expected: what was handed to their workers behind them goes elsewhere."""

import math

import pytest
from core.told import Told, reply
from onecopy.pool.core import events
from onecopy.pool.core.instructions import Interrupt, TellLate, ToChild
from onecopy.pool.core.stragglers import LOOK_S
from onecopy.protocol.messages import Run

QUICK_S = 0.0001
#: The worker that is used first, and the other.
LATE, OTHER = 2, 1


def started(count=10, **options):
    """A quick model, and so many requests of it: all but the second in one worker, or behind its run there."""
    core = Told(workers=2).start("m")
    for number in (901, 902, 903, 904):
        core.submit(number)
        core.ended(LATE, core.core.attempts.count, number, seconds=QUICK_S)
    out = [one for number in range(1, count + 1) for one in core.submit(number, **{"retries": 1} | options)]
    assert runs(out) == [(OTHER if number == 2 else LATE, f"ann/{number}") for number in range(1, count + 1)]
    first, *behind = core.core.fleet.workers.get(LATE).outstanding
    return core, first, behind


def runs(out):
    """The worker and the request of each run."""
    messages = [(one.child, one.message) for one in out if isinstance(one, ToChild)]
    return [(child, one.parts[0][0].decode()) for child, one in messages if isinstance(one, Run)]


def interrupted(out):
    """The attempts that are to be left out."""
    return [one.attempt for one in out if isinstance(one, Interrupt)]


def test_what_waits_behind_a_run_that_takes_too_long_goes_to_others():
    core, first, behind = started()
    assert core.ended(OTHER, first + 1, 2) == [reply(2)]
    assert core.wake(LOOK_S) == []  # it is seen to be at that attempt
    out = core.wake(LOOK_S)
    assert interrupted(out) == behind[::-1]
    assert runs(out) == [(OTHER, f"ann/{number}") for number in range(3, 11)]
    for number in range(3, 11):
        attempt = behind[-1] + number - 2
        assert core.ended(OTHER, attempt, number, seconds=QUICK_S) == [reply(number, QUICK_S)]
    assert core.ended(LATE, first, 1, seconds=5.0) == [reply(1, 5.0)]
    for attempt in behind:  # it tells that it has left them out
        assert core.ended(LATE, attempt, 0, seconds=0.0) == []
    assert core.core.requests.unanswered == 0


def test_nothing_more_is_handed_to_such_a_worker_until_it_has_answered():
    core, first, behind = started(4)
    core.wake(LOOK_S)
    assert interrupted(core.wake(LOOK_S)) == behind[::-1]
    assert runs(core.submit(50)) == []
    assert runs(core.ended(OTHER, first + 1, 2, seconds=QUICK_S))[0] == (OTHER, "ann/3")
    assert {child for child, _ in runs(core.submit(51))} == {OTHER}
    core.ended(LATE, first, 1, seconds=3.0)
    for attempt in behind:
        core.ended(LATE, attempt, 0, seconds=0.0)
    assert runs(core.submit(52)) == [(LATE, "ann/52")]


@pytest.mark.parametrize("options", [{"retries": 0}, {"session": "ann's"}])
def test_what_may_run_once_or_belongs_to_its_worker_waits_for_it(options):
    core = Told().start("m")
    for number in (901, 902, 903, 904):
        core.submit(number)
        core.ended(1, core.core.attempts.count, number, seconds=QUICK_S)
    for number in range(1, 7):
        assert runs(core.submit(number, **options)) == [(1, f"ann/{number}")]
    core.wake(LOOK_S)
    assert core.wake(LOOK_S) == []
    assert core.core.fleet.workers.get(1).is_late


def test_a_worker_that_makes_progress_is_left_alone():
    core, *_ = started()
    numbers = iter([1, *range(3, 11)])
    for attempt in list(core.core.fleet.workers.get(LATE).outstanding):
        assert interrupted(core.wake(LOOK_S)) == []
        core.ended(LATE, attempt, next(numbers), seconds=LOOK_S)
    assert core.core.requests.unanswered == 1


def test_such_a_worker_dies_and_is_blamed_for_what_it_ran_alone():
    core, first, _behind = started()
    core.wake(LOOK_S)
    core.wake(LOOK_S)
    core.exited(LATE, begun=first)
    assert core.core.attempts.retried == 1
    assert core.core.requests.unanswered == 10
    assert len(core.core.attempts._running) == 1


def test_nobody_is_looked_at_while_none_holds_more_than_it_runs():
    core = Told(workers=2).start("m")
    core.submit(1)
    assert core.core.dispatch.stragglers.wake_at() == math.inf
    core, *_ = started()
    assert core.core.dispatch.stragglers.wake_at() == core.now + LOOK_S
    for attempt, number in zip([*core.core.attempts._running], range(1, 11), strict=True):
        core.ended(OTHER if number == 2 else LATE, attempt, number, seconds=QUICK_S)
    core.wake(LOOK_S)
    assert core.core.dispatch.stragglers.wake_at() == math.inf


def test_a_client_is_told_which_of_many_calls_keeps_the_others_waiting():
    core = Told().start("m")
    core.submit(1, calls=5, retries=1)
    assert core.wake(LOOK_S) == []
    assert core.wake(LOOK_S) == [TellLate(1, 1, "ann", 1)]
    assert core.wake(LOOK_S) == []  # once is enough
    core.ended(1, 1, 1, seconds=3.0)
    core.submit(2, calls=5)
    core.feed(events.Cancelled("ann", 2))
    core.wake(LOOK_S)
    assert core.wake(LOOK_S) == []  # nobody waits for it


def test_calls_that_are_made_as_one_are_nobodys_fault():
    core = Told()
    core.start()
    core.declare("m", max_batch=8)
    core.submit(1, calls=3)
    core.submit(2, calls=2)
    core.submit(3, calls=2)
    core.wake(1.0)
    core.wake(LOOK_S)
    core.ended(1, 1, 1)
    core.wake(LOOK_S)
    assert not [one for one in core.wake(LOOK_S) if isinstance(one, TellLate)]
