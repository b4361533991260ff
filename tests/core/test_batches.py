"""Batches: what runs together, what waits for company, what becomes of one whose worker dies."""

from core.books import answer_to, body_of
from core.simulated import RunPlan
from core.told import Told, codes, submit_of
from core.world import World
from onecopy.pool.core import dispatch, events
from onecopy.pool.core.batching import Batching
from onecopy.pool.core.instructions import ForkChild, Interrupt, ToClient
from onecopy.pool.core.terms import Terms
from onecopy.pool.core.workers import AHEAD_S
from onecopy.protocol.errors import ModelError
from onecopy.protocol.messages import Failed, Reply, Run


def batches(out):
    """The request numbers of each run."""
    return [
        [int(part[0].decode().split("/")[1]) for part in one.message.parts]
        for one in out
        if isinstance(getattr(one, "message", None), Run)
    ]


def priorities(out):
    """How urgent each run is."""
    return [one.message.priority for one in out if isinstance(getattr(one, "message", None), Run)]


def started(workers=1, **options):
    core = Told(workers).start()
    core.declare("m", **{"max_batch": 4, "adaptive": False, **options})
    return core


def all_ended(core, child, attempt, numbers, seconds=1.0, client="ann"):
    answers = [[answer_to(body_of(client, number)), [], [], 0] for number in numbers]
    return core.feed(events.AttemptEnded(child, attempt, seconds, answers, []))


def test_an_idle_worker_takes_what_there_is_and_the_next_batch_grows_meanwhile():
    core = started()
    assert batches(core.submit(1)) == [[1]]
    assert [batches(core.submit(number)) for number in (2, 3, 4)] == [[], [], []]
    out = core.ended(1, 1, 1)
    assert batches(out) == [[2, 3, 4]]
    out = all_ended(core, 1, 2, (2, 3, 4))
    assert [one.message.request for one in out if isinstance(one, ToClient)] == [2, 3, 4]


def test_no_batch_is_larger_than_the_model_allows():
    core = started()
    for number in range(1, 8):
        core.submit(number)
    assert batches(core.ended(1, 1, 1)) == [[2, 3, 4, 5]]
    assert batches(all_ended(core, 1, 2, (2, 3, 4, 5))) == [[6, 7]]


def test_a_batch_is_as_urgent_as_the_most_urgent_of_it():
    core = started(max_batch=2)
    assert priorities(core.submit(1, priority=-10)) == [-10]
    for number, priority in enumerate((0, 7, -10, -20), 2):
        core.submit(number, priority=priority)
    assert priorities(core.ended(1, 1, 1)) == [7]
    assert priorities(all_ended(core, 1, 2, (3, 2))) == [-10]


def test_many_calls_of_one_request_count_as_many():
    core = started(max_batch=8)
    core.submit(1)
    core.submit(2, calls=3)
    core.submit(3, calls=4)
    core.submit(4, calls=2)
    core.submit(5, calls=100)
    assert batches(core.ended(1, 1, 1)) == [[2, 3]]
    assert batches(all_ended(core, 1, 2, (2, 3))) == [[4]]
    assert batches(all_ended(core, 1, 3, (4,))) == [[5]]


def test_no_batch_is_larger_than_can_travel(monkeypatch):
    monkeypatch.setattr(dispatch, "_MOST_BODY_BYTES", 20)
    monkeypatch.setattr(dispatch, "MAX_BUFFERS", 3)
    core = started()
    core.submit(1)
    for number in range(2, 6):  # each has a body of 5 bytes
        core.submit(number)
    assert batches(core.ended(1, 1, 1)) == [[2, 3, 4, 5]]
    core.submit(6)
    core.submit(7)
    core.feed(events.Submitted("ann", submit_of(8, body=b"x" * 11), []))
    for number in (9, 10):
        core.feed(events.Submitted("ann", submit_of(number), [b"a", b"b"]))
    assert batches(all_ended(core, 1, 2, (2, 3, 4, 5))) == [[6, 7]]


def test_one_method_at_a_time_and_streams_and_sessions_run_alone():
    core = started()
    core.submit(0)
    for number, wishes in enumerate(
        ({}, {"method": "other"}, {"method": "other"}, {"credit": 1}, {}, {"session": "s"}), 1
    ):
        core.submit(number, **wishes)
    found = batches(core.ended(1, 1, 0))
    for attempt in range(2, 6):
        found += batches(all_ended(core, 1, attempt, found[-1]))
    assert found == [[1], [2, 3], [4], [5], [6]]


def test_one_that_fails_fails_alone():
    core = started()
    for number in (1, 2, 3):
        core.submit(number)
    core.ended(1, 1, 1)
    good = [answer_to(body_of("ann", 2)), [], [], 0]
    out = core.feed(events.AttemptEnded(1, 2, 1.0, [good, ModelError("no").to_record()], []))
    assert [type(one.message) for one in out] == [Reply, Failed]


def test_each_part_gets_its_own_buffers():
    core = started()
    for number in (1, 2, 3):
        core.submit(number)
    core.ended(1, 1, 1)
    answers = [[answer_to(body_of("ann", 2)), [], [], 2], [answer_to(body_of("ann", 3)), [], [], 1]]
    out = core.feed(events.AttemptEnded(1, 2, 1.0, answers, [b"a", b"b", b"c"]))
    assert [one.buffers for one in out] == [[b"a", b"b"], [b"c"]]


def test_a_worker_that_answers_too_few_parts_has_failed_all_of_them():
    core = started()
    for number in (1, 2, 3):
        core.submit(number)
    core.ended(1, 1, 1)
    assert codes(core.feed(events.AttemptEnded(1, 2, 1.0, [], []))) == {2: "pool_error", 3: "pool_error"}


def test_of_a_batch_that_killed_its_worker_each_runs_alone_and_only_the_culprit_fails():
    world = World(1, 1)
    world.join()
    world.load("m", max_batch=8)
    world.pass_time(3.0)
    numbers = [world.submit("m", retries=1, plan=RunPlan(kills=5 if place == 3 else 0)) for place in range(6)]
    world.pass_time(30.0)
    assert [world.code(number) for number in numbers] == ["reply"] * 3 + ["worker_died"] + ["reply"] * 2


def test_a_batch_that_died_is_not_tried_again_for_those_that_must_run_once_at_most():
    core = started()
    for number, retries in ((1, 0), (2, 0), (3, 1)):
        core.submit(number, retries=retries)
    core.ended(1, 1, 1)
    out = core.exited(1, begun=2)
    assert codes(out) == {2: "worker_died"}
    assert batches(core.forked(out[-1].child)) == [[3]]
    assert isinstance(out[-1], ForkChild)


def test_a_batch_is_interrupted_when_nobody_waits_for_any_of_it():
    core = started()
    for number in (1, 2, 3):
        core.submit(number)
    core.ended(1, 1, 1)
    assert not [one for one in core.feed(events.Cancelled("ann", 2)) if isinstance(one, Interrupt)]
    assert core.feed(events.Cancelled("ann", 3, kill=True))[-1] == Interrupt(1, 2, kill=True)


def fast(**options):
    """A core with a busy worker that may be handed more, and a model of batches besides."""
    core = started(**options)
    core.declare("quick")
    for number in (901, 902):
        core.submit(number, "quick")
        core.ended(1, core.core.attempts.count, number, seconds=AHEAD_S / 10)
    core.submit(1)
    core.ended(1, 3, 1, seconds=AHEAD_S / 2)
    core.submit(903, "quick")
    return core


def test_a_batch_that_is_not_full_is_handed_ahead_only_after_a_while():
    core = fast(max_wait_ms=20)
    assert batches(core.submit(2)) == []
    assert core.core.wake_at() == core.now + 0.02
    assert batches(core.wake(0.02)) == [[2]]


def test_a_full_one_is_handed_ahead_at_once():
    core = fast(max_wait_ms=1000)
    assert [batches(core.submit(number)) for number in (2, 3, 4)] == [[], [], []]
    assert batches(core.submit(5)) == [[2, 3, 4, 5]]


def test_without_a_wait_it_waits_as_long_as_what_may_be_ahead_of_it():
    core = fast()
    assert batches(core.submit(2)) == []
    assert batches(core.wake(AHEAD_S)) == [[2]]


def test_others_are_handed_ahead_while_a_batch_fills():
    core = fast(max_wait_ms=1000)
    core.submit(2)
    assert batches(core.submit(904, "quick")) == [[904]]


# --- how large, and how long ---------------------------------------------------------------------------------


def measured(batching, seconds_of, sizes=(1, 2, 4, 8, 16, 32), times=8):
    for size in sizes:
        for _ in range(times):
            batching.measured(size, seconds_of(size))
    batching.batches |= 1  # not the one that is always as large as allowed
    return batching


def test_batches_stay_large_where_a_call_is_cheaper_in_company():
    assert measured(Batching(Terms(max_batch=32)), lambda size: 0.010 + 0.0005 * size).limit == 32


def test_batches_become_small_where_company_gains_nothing():
    batching = measured(Batching(Terms(max_batch=32)), lambda size: 0.02 * size)
    assert batching.limit == 1
    assert "hardly less" in batching.note


def test_batches_are_as_large_as_still_gains():
    def seconds_of(size):
        return 0.001 * max(size, 8)  # eight fit into the machine at once

    assert 8 <= measured(Batching(Terms(max_batch=32)), seconds_of).limit <= 15


def test_nothing_is_concluded_before_the_largest_was_measured():
    assert measured(Batching(Terms(max_batch=32)), lambda size: 0.02 * size, sizes=(1, 2, 4)).limit == 32


def test_one_batch_in_many_is_as_large_as_allowed():
    batching = measured(Batching(Terms(max_batch=32)), lambda size: 0.02 * size)
    limits = []
    for _ in range(128):
        batching.measured(1, 0.02)
        limits.append(batching.limit)
    assert sorted(limits)[-3:] == [1, 32, 32]


def test_what_is_fixed_stays():
    batching = measured(Batching(Terms(max_batch=32, max_wait_s=0.5, is_adaptive=False)), lambda size: 0.02 * size)
    assert (batching.limit, batching.wait_s, batching.note) == (32, 0.5, "fixed")


def test_nobody_waits_longer_than_a_batch_takes():
    batching = Batching(Terms(max_batch=4, max_wait_s=0.5))
    assert batching.wait_s == 0.5
    batching.measured(4, 0.01)
    assert batching.wait_s == 0.01


def test_expectations_are_never_negative():
    batching = Batching(Terms(max_batch=4))
    batching.measured(3, 0.0)
    assert batching.expected_s(2) == 0.0
    assert batching.expected_s(1) is None


def test_a_request_of_more_calls_than_a_batch_may_have_makes_batches_no_larger():
    batching = measured(Batching(Terms(max_batch=2)), lambda size: 0.01, sizes=(1, 2, 6))
    assert batching.limit == 2
