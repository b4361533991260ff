"""Who gets what: the last idle worker first, models in turns, small requests ahead, never more than the slots."""

from core.told import Told, reply, run, thaw
from onecopy.pool.core import events
from onecopy.pool.core.instructions import ForkChild, ToChild
from onecopy.pool.core.position import Position
from onecopy.pool.core.workers import AHEAD_S, AWAKE_S, MAX_AHEAD, QUICK_S
from onecopy.protocol.messages import Leave, Run


def runs(out):
    """The worker and the request of each run."""
    return [
        (one.child, part[0].decode()) for one in out if isinstance(one.message, Run) for part in one.message.parts
    ]


def measured(core, seconds):
    """Let the worker that is used first run one request twice, so that its time is known."""
    child = next(reversed(core.core.fleet.workers._idle))
    for number in (901, 902):
        core.submit(number)
        core.ended(child, core.core.attempts.count, number, seconds=seconds)
    return child


def test_the_worker_that_was_used_last_is_used_first():
    core = Told(workers=3).start("m")
    assert runs(core.submit(1)) == [(3, "ann/1")]
    core.ended(3, 1, 1)
    assert runs(core.submit(2)) == [(3, "ann/2")]
    assert runs(core.submit(3)) == [(2, "ann/3")]


def test_no_more_workers_hold_work_than_there_are_slots():
    core = Told(workers=3, slots=2).start("m")
    assert [len(runs(core.submit(number))) for number in (1, 2, 3)] == [1, 1, 0]
    assert core.ended(3, 1, 1) == [reply(1), run(3, 3, 3)]


def test_requests_of_unknown_length_are_not_handed_ahead():
    core = Told().start("m")
    assert runs(core.submit(1)) == [(1, "ann/1")]
    assert runs(core.submit(2)) == []


def test_short_requests_are_handed_ahead_up_to_some_milliseconds_of_work():
    core = Told().start("m")
    seconds = 0.4 * AHEAD_S
    measured(core, seconds)
    handed = [len(runs(core.submit(number))) for number in range(5)]
    assert handed == [1, 1, 1, 0, 0]
    assert runs(core.ended(1, 3, 0, seconds=seconds)) == [(1, "ann/3")]


def test_requests_that_take_no_time_are_handed_ahead_up_to_a_number():
    core = Told().start("m")
    measured(core, 0.0)
    assert sum(len(runs(core.submit(number))) for number in range(2 * MAX_AHEAD)) == MAX_AHEAD


def test_idle_workers_come_before_handing_ahead():
    core = Told(workers=2).start("m")
    child = measured(core, 0.0001)
    assert [runs(core.submit(number))[0][0] for number in (1, 2)] == [child, 3 - child]


def handed_to(core, *numbers, **options):
    """The worker that each of these requests was handed to."""
    return [child for number in numbers for child, _ in runs(core.submit(number, **options))]


def test_where_workers_would_take_a_core_from_who_feeds_them_quick_requests_go_to_one_that_is_awake():
    core = Told(workers=3, position=Position(spare_cores=1)).start("m")
    child = measured(core, QUICK_S / 2)
    ahead = int(AWAKE_S / (QUICK_S / 2))
    handed = handed_to(core, *range(ahead + 5), retries=1)
    assert set(handed[:ahead]) == {child}
    assert len(set(handed)) == 3, "it has enough to do"


def test_where_there_are_cores_for_two_the_second_is_woken_up():
    core = Told(workers=3, position=Position(spare_cores=2)).start("m")
    child = measured(core, QUICK_S / 2)
    assert len(set(handed_to(core, *range(20), retries=1))) == 2
    assert child in handed_to(core, 801, retries=1)


def test_what_takes_longer_or_could_not_be_taken_back_gets_a_worker_of_its_own():
    for seconds, options in ((2 * QUICK_S, {"retries": 1}), (QUICK_S / 2, {"retries": 0})):
        core = Told(workers=2, position=Position(spare_cores=1)).start("m")
        measured(core, seconds)
        assert len(set(handed_to(core, 1, 2, **options))) == 2


def test_as_many_workers_as_a_model_shall_have_at_least_are_used_before_any_that_is_awake():
    core = Told(workers=3, position=Position(spare_cores=1))
    core.start()
    core.declare("m", min_workers=2)
    measured(core, QUICK_S / 2)
    assert len(set(handed_to(core, *range(10), retries=1))) == 2


def test_nothing_waits_behind_the_first_run_of_a_model_in_a_worker_which_thaws_it():
    core = Told(workers=2, slots=1).start("m")
    measured(core, 0.0001)
    core.exited(2)  # the other one never ran it
    assert runs(core.submit(1)) == [(1, "ann/1")]
    assert runs(core.submit(2)) == []


def test_the_first_run_in_a_worker_is_not_measured_because_it_includes_the_thaw():
    core = Told().start("m")
    core.submit(1)
    core.ended(1, 1, 1, seconds=20.0)
    assert core.core.library.models["m"].expected_s is None
    core.submit(2)
    core.ended(1, 2, 2, seconds=0.5)
    assert core.core.library.models["m"].expected_s == 0.5


def test_models_take_turns():
    core = Told().start("a", "b")
    for number in (1, 2, 3):
        core.submit(number, "a")
    for number in (11, 12):
        core.submit(number, "b")
    order = [number for attempt, number in enumerate((1, 11, 2, 12, 3), 1) if core.ended(1, attempt, number)]
    assert order == [1, 11, 2, 12, 3]


def test_a_weight_set_is_handed_to_a_worker_once():
    core = Told(workers=2).start("m")
    assert core.submit(1) == [thaw(2), run(2, 1, 1)]
    assert core.submit(2) == [thaw(1), run(1, 2, 2, seat=1)]
    core.ended(2, 1, 1)
    assert core.submit(3) == [run(2, 3, 3)]


def test_requests_that_came_before_any_worker_run_in_order_once_there_is_one():
    core = Told()
    core.declare("m")
    for number in (1, 2):
        assert core.submit(number) == []
    core.feed(events.ZygoteReady())
    assert core.forked(1) == [thaw(1), run(1, 1, 1)]
    assert core.ended(1, 1, 1) == [reply(1), run(1, 2, 2)]


def test_a_model_that_is_loaded_again_under_its_name_gets_its_turns():
    core = Told().start("a", "m")
    core.submit(1, "a")
    core.submit(2, "m")
    core.feed(events.Cancelled("ann", 2))
    core.feed(events.ModelRemoved("caller", "m"))
    core.declare("m")
    core.submit(3, "m")
    assert core.ended(1, 1, 1) == [reply(1), thaw(1, 3), run(1, 2, 3, weight_set=3)]


def test_a_worker_is_handed_nothing_ahead_once_its_successor_is_there_so_that_it_becomes_idle():
    core = Told().start("m")
    measured(core, 0.0001)
    core.submit(1)
    core.core.fleet.workers.outdate(core.core.fleet.workers.get(1))
    assert core.submit(2) == [ForkChild(2, "worker"), run(1, 4, 2)]
    assert core.forked(2) == []
    assert core.submit(3) == []
    assert core.ended(1, 3, 1) == [reply(1)]
    assert core.ended(1, 4, 2)[1:] == [ToChild(1, Leave(), [], ()), thaw(2), run(2, 5, 3)]
