"""Whose turn it is: models by their shares, clients evenly, higher priorities first, and nobody starves."""

import collections

import hypothesis.strategies as st
import pytest
from core.simulated import RunPlan
from core.told import Told, codes, submit_of
from core.world import World
from hypothesis import given
from onecopy.pool.core import events
from onecopy.pool.core.queue import AGE_S, Queue
from onecopy.pool.core.requests import Request
from onecopy.pool.core.terms import terms_of
from onecopy.pool.core.turns import Turns
from onecopy.pool.core.workers import AHEAD_S
from onecopy.protocol.errors import InvalidRequest
from onecopy.protocol.messages import Run


def saturated(shares, seconds, requests=200, workers=2, **wishes):
    """Let every model have more to do than can be done; return each one's part of the workers' time."""
    world = World(workers, workers)
    world.join()
    for name in shares:
        world.load(name, share=shares[name], **wishes)
    world.pass_time(3.0)
    for _ in range(requests):
        for name in shares:
            world.submit(name, plan=RunPlan(seconds[name]))
    world.pass_time(1.0)
    models = world.core.library.models
    assert all(models[name].queue.calls for name in shares), "one of them ran out of work"
    total_s = sum(models[name].worker_s for name in shares)
    return {name: models[name].worker_s / total_s for name in shares}


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_models_get_their_shares_of_the_workers_time(workers):
    shares = {"a": 6.0, "b": 3.0, "c": 1.0}
    found = saturated(shares, {"a": 0.02, "b": 0.01, "c": 0.015}, workers=workers, requests=100 * workers)
    for name, share in shares.items():
        assert found[name] == pytest.approx(share / 10, abs=0.05)


def test_models_without_shares_get_equal_parts_however_long_their_runs_are():
    found = saturated({"long": 1.0, "short": 1.0}, {"long": 0.05, "short": 0.005}, requests=250)
    assert found["long"] == pytest.approx(0.5, abs=0.05)


def test_shares_hold_for_batches_too():
    found = saturated({"a": 3.0, "b": 1.0}, {"a": 0.04, "b": 0.04}, max_batch=4, requests=400)
    assert found["a"] == pytest.approx(0.75, abs=0.05)


def test_a_model_that_had_nothing_to_do_saves_up_no_turns():
    core = Told().start("a", "b")
    for number in range(20):
        core.submit(number, "a")
        core.ended(1, core.core.attempts.count, number)
    order = []
    for number in range(100, 104):
        core.submit(number, "a")
        core.submit(number + 10, "b")
    for number in (100, 110, 101, 111):
        order += [
            one.message.request
            for one in core.ended(1, core.core.attempts.count, number)
            if hasattr(one, "client")
        ]
    assert order == [100, 110, 101, 111]


def test_one_client_with_very_many_requests_delays_another_by_what_is_under_way():
    world = World(2, 2)
    for client in ("ann", "bob"):
        world.join(client)
    world.load("m")
    world.pass_time(3.0)
    for _ in range(500):
        world.submit("m", plan=RunPlan(0.01))
    world.pass_time(0.5)
    for _ in range(10):
        number = world.submit("m", "bob", plan=RunPlan(0.01))
        world.pass_time(0.0205)  # what runs, and its own
        assert world.code(number, "bob") == "reply"


def order_of(core, count):
    """End what runs, one after another; return the numbers in the order in which they ran."""
    numbers = []
    for _ in range(count):
        [(attempt, given)] = core.books.held[1].items()
        [(_, number)] = given.keys
        numbers.append(number)
        core.ended(1, attempt, number)
    return numbers


def test_higher_priorities_go_first():
    core = Told().start("m")
    core.submit(0)
    for number, priority in ((1, -5), (2, 0), (3, 7), (4, 0), (5, 7)):
        core.submit(number, priority=priority)
    assert order_of(core, 6) == [0, 3, 5, 2, 4, 1]


def test_a_lower_priority_waits_a_second_for_each_level_at_most():
    core = Told().start("m")
    core.submit(0)
    core.submit(1, priority=-3)
    for number in range(10, 20):
        core.submit(number)
    order = []
    for _ in range(6):
        core.now += 0.9 * AGE_S
        order += order_of(core, 1)
    assert order.index(1) == 5  # the others had their last turn 3.6 s after it came, and it its first then


def test_nobody_who_waits_is_forgotten_over_higher_priorities():
    world = World(1, 1)
    world.join()
    world.load("m")
    world.pass_time(3.0)
    lowest = [world.submit("m", plan=RunPlan(0.05), priority=-1) for _ in range(3)]
    for _ in range(70):
        for _ in range(2):
            world.submit("m", plan=RunPlan(0.05))
        world.pass_time(0.05)
    assert [world.code(number) for number in lowest] == ["reply"] * 3


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), min_size=1, max_size=60), st.data())
def test_turns_are_those_of_a_plain_heap(served, data):
    class One:
        def __init__(self, name, weight):
            self.name, self.weight, self.clock_s = name, weight, 0.0

    members = {name: One(name, weight) for name, weight in (("a", 1.0), ("b", 2.0), ("c", 4.0))}
    turns = Turns()
    for member in members.values():
        turns.add(member)
    given_s = collections.Counter()
    for _, seconds in served:
        first = turns.first()
        assert given_s[first.name] / first.weight == min(
            given_s[one.name] / one.weight for one in members.values()
        )
        turns.took(first, seconds)
        given_s[first.name] += seconds
        if data.draw(st.booleans()):
            turns.correct(first, -seconds / 2)
            given_s[first.name] -= seconds / 2
    assert len(turns._heap) <= 2 * len(members) + 65


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(-2, 2), st.booleans()), max_size=60), st.data())
def test_a_queue_loses_nothing_and_keeps_the_order_of_each_line(steps, data):
    queue, now, waiting = Queue(), 0.0, []
    for number, (client, priority, is_taken) in enumerate(steps):
        now += data.draw(st.sampled_from([0.0, 0.5, 3.0]))
        request = Request(client, submit_of(number, client=client, priority=priority), [], now)
        queue.add(request, now)
        waiting.append(request)
        if is_taken and data.draw(st.booleans()):
            gone = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            queue.discard(gone)
        elif is_taken and waiting:
            first = queue.first()
            line = [
                one
                for one in waiting
                if (one.client, one.submit.priority) == (first.client, first.submit.priority)
            ]
            assert line[0] is first
            queue.take(first, 1.0, now)
            waiting.remove(first)
        assert set(queue) == set(waiting)
        assert queue.calls == len(queue) == len(waiting)


# --- bounds --------------------------------------------------------------------------------------------------


def test_a_model_may_bound_its_queue():
    core = Told().start()
    core.declare("m", max_queue=2)
    core.submit(1)
    assert codes(core.submit(2)) == {}
    assert codes(core.submit(3, calls=2)) == {3: "pool_busy"}
    assert codes(core.submit(4)) == {}
    assert codes(core.submit(5)) == {5: "pool_busy"}


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"priority": 101}, "priority must be from -100 to 100, not 101"),
        ({"priority": -(10**9)}, "priority"),
        ({"calls": -1}, "calls"),
        ({"calls": 1 << 30}, "calls"),
        ({"credit": -1}, "credit"),
        ({"credit": 1, "calls": 2}, "a stream is of one call"),
        ({"credit": 1, "reply": [1, 0, 64]}, "place"),
        ({"session": "s" * 129}, "session must have at most 128 characters, not 129"),
        ({"timeout_s": -1.0}, "timeout_s"),
        ({"retries": -1}, "retries"),
    ],
)
def test_absurd_requests_are_refused(wishes, says):
    core = Told().start("m")
    out = core.submit(1, **wishes)
    assert codes(out) == {1: "invalid_request"}
    assert says in out[0].message.error["message"]


@pytest.mark.parametrize(
    "options",
    [
        {"share": 0},
        {"share": "all"},
        {"max_batch": 0},
        {"max_wait_ms": -1},
        {"max_queue": -1},
        {"max_batch": True},
    ],
)
def test_absurd_terms_are_refused_and_leave_nothing(options):
    with pytest.raises(InvalidRequest, match=next(iter(options))):
        terms_of(options)
    core = Told().start()
    assert list(codes(core.declare("m", **options)).values()) == ["invalid_request"]
    assert not core.core.library.models
    assert not core.core.library.holdings.sets


def test_cancels_of_what_is_not_there_do_nothing():
    core = Told().start("m")
    core.submit(1)
    for number in range(2, 1000):
        assert core.core.handle(events.Cancelled("ann", number), core.now) == []
    assert [one.message.parts for one in core.submit(2) if isinstance(one.message, Run)] == []


def workers_of(world, name):
    return len(world.core.library.models[name].seats)


def test_a_model_runs_on_no_more_workers_than_it_may_and_still_is_handed_work_ahead():
    world = World(4, 4)
    world.join()
    world.load("a", max_workers=2)
    world.load("b")
    world.pass_time(3.0)
    for _ in range(300):
        world.submit("a", plan=RunPlan(0.001))
    world.pass_time(0.05)
    assert workers_of(world, "a") == 2
    assert any(len(worker.outstanding) > 1 for worker in world.core.fleet.workers)
    number = world.submit("b", plan=RunPlan(0.001))
    world.pass_time(0.02)
    assert world.code(number) == "reply"
    world.pass_time(5.0)
    assert world.core.requests.unanswered == 0


def test_a_model_has_its_turn_first_as_long_as_too_few_workers_run_it():
    world = World(3, 3)
    world.join()
    world.load("a", share=100)
    world.load("b", share=0.01, min_workers=1)
    world.pass_time(3.0)
    for _ in range(300):
        world.submit("a", plan=RunPlan(0.05))
        world.submit("b", plan=RunPlan(0.05))
    for _ in range(10):
        world.pass_time(0.1)
        assert workers_of(world, "b") >= 1
        assert workers_of(world, "a") >= 1


def test_a_model_at_its_most_goes_on_when_its_worker_dies():
    world = World(2, 2)
    world.join()
    world.load("a", max_workers=1)
    world.pass_time(3.0)
    numbers = [world.submit("a", plan=RunPlan(0.2), retries=1) for _ in range(10)]
    world.pass_time(0.1)
    (child,) = world.core.library.models["a"].seats
    world.children[child].die("SIGKILL")
    world.pass_time(5.0)
    assert {world.code(number) for number in numbers} == {"reply"}


def test_a_model_at_its_most_goes_on_when_another_leaves_room_for_it():
    world = World(2, 2)
    world.join()
    world.load("a", max_workers=1)
    world.load("b")
    world.pass_time(3.0)
    each_s = AHEAD_S * 0.7
    for names in ("a", "a", "bb", "bb"):  # so that it is known what they take, and both workers have "b"
        for name in names:
            world.submit(name, plan=RunPlan(each_s))
        world.pass_time(1.0)
    world.submit("b", plan=RunPlan(each_s))
    (worker,) = [one for one in world.core.fleet.workers if one.outstanding]
    for name in "baa":  # the last has to wait: its worker has enough, and another it may not have
        world.submit(name, plan=RunPlan(1.0))
    model = world.core.library.models["a"]
    assert model.is_held
    assert list(model.seats) == [worker.child]
    world.pass_time(2 * each_s)
    assert not model.queue.calls, "what ran in front of it is over"
