"""Models that are moved to another device: who answers meanwhile, and what happens if it cannot be."""

from __future__ import annotations

import pytest
from core.several import MB, several, sized
from core.simulated import LoadPlan, RunPlan
from onecopy.pool.core import events


def moving(**options):
    """A pool whose model "m" is on its first device, and takes a second to load."""
    pool = several()
    asks_after = LoadPlan(seconds=0.5, wants=sized(MB).wants)  # and fills in as much time
    pool.host.load("m", **{"devices": ["cpu:0"], "plan": asks_after, **options})
    pool.pass_time(2.0)
    return pool


def answered_by(pool):
    """How many requests each device has answered or has."""
    return [
        sum(model.answered + model.unanswered for model in world.core.library.models.values())
        for world in pool.worlds
    ]


def test_the_first_device_answers_until_the_other_can():
    pool = moving()
    first = pool.worlds[0].core.library.models["m"].current
    moved = pool.host.move("m", "cpu:1")
    for _ in range(5):
        pool.host.submit("m")
        pool.pass_time(0.1)
    assert pool.device_of_model("m") == ["cpu:0", "cpu:1"]
    assert answered_by(pool) == [5, 0]
    assert not pool.host.outcome(moved)
    pool.pass_time(2.0)
    assert pool.host.outcome(moved) == "done"
    assert pool.device_of_model("m") == ["cpu:1"]
    assert first.life.state == "freed"
    number = pool.host.submit("m")
    pool.pass_time(1.0)
    assert pool.host.code(number) == "reply"


def test_what_the_first_device_has_accepted_it_answers_and_what_comes_then_the_other():
    pool = moving()
    moved = pool.host.move("m", "cpu:1")
    numbers = [pool.host.submit("m", plan=RunPlan(1.0)) for _ in range(6)]  # with two workers: three seconds
    pool.pass_time(1.5)
    late = pool.host.submit("m")
    pool.pass_time(0.2)
    assert pool.host.code(late) == "reply", "although the first device is busy"
    assert not pool.host.outcome(moved), "its memory is not free yet"
    pool.pass_time(3.0)
    assert pool.host.outcome(moved) == "done"
    assert [pool.host.code(number) for number in numbers] == ["reply"] * 6


def test_what_cannot_be_loaded_there_stays_where_it_is():
    pool = moving(plan=sized(5 * MB))
    pool.host.load("large", devices=["cpu:1"], plan=sized(8 * MB), pin=True)
    pool.pass_time(1.0)
    moved = pool.host.move("m", "cpu:1")
    pool.pass_time(2.0)
    assert pool.host.outcome(moved) == "out_of_budget"
    assert pool.device_of_model("m") == ["cpu:0"]
    number = pool.host.submit("m")
    pool.pass_time(1.0)
    assert pool.host.code(number) == "reply"
    pool.host.unload("large")
    pool.pass_time(1.0)
    again = pool.host.move("m", "cpu:1")
    pool.pass_time(2.0)
    assert pool.host.outcome(again) == "done"


def test_a_model_that_is_nowhere_yet_or_evicted_is_loaded_where_it_is_moved_to():
    pool = several()
    pool.host.load("lazy", devices=["cpu:0"], eager=False, plan=sized(MB))
    pool.host.load("evicted", devices=["cpu:0"], plan=sized(MB, 2 * MB))
    pool.pass_time(1.0)
    pool.host.evict("evicted")
    pool.pass_time(1.0)
    moved = [pool.host.move(name, "cpu:1") for name in ("lazy", "evicted")]
    pool.pass_time(2.0)
    assert [pool.host.outcome(one) for one in moved] == ["done", "done"]
    states = {name: one.current.life.state for name, one in pool.worlds[1].core.library.models.items()}
    assert states == {"lazy": "ready", "evicted": "ready"}


def test_what_is_pinned_stays_pinned_and_a_newer_version_follows():
    pool = moving(devices=[])
    pool.host.pin("m")
    pool.host.move("m", "cpu:1")
    pool.pass_time(2.0)
    model = pool.worlds[1].core.library.models["m"]
    assert model.is_pinned
    loaded = pool.host.load("m", plan=sized(2 * MB))
    pool.pass_time(2.0)
    assert pool.host.outcome(loaded) == "done"
    assert pool.device_of_model("m") == ["cpu:1"]


def test_a_session_begins_anew_on_the_other_device():
    pool = moving()
    pool.host.submit("m", session="s")
    pool.pass_time(1.0)
    pool.host.submit("m", plan=RunPlan(3.0))  # so that the first device is not done at once
    moved = pool.host.move("m", "cpu:1")
    pool.pass_time(1.5)
    number = pool.host.submit("m", session="s")
    pool.pass_time(0.5)
    assert pool.host.code(number) == "reply"
    assert pool.worlds[1].core.dispatch.sessions.has_session("m", "s")
    pool.pass_time(3.0)
    assert pool.host.outcome(moved) == "done"


@pytest.mark.parametrize("late", [False, True])
def test_a_model_that_is_unloaded_on_its_way_is_gone_from_both(late):
    pool = moving()
    pool.host.submit("m", plan=RunPlan(5.0))
    moved = pool.host.move("m", "cpu:1")
    pool.pass_time(2.0 if late else 0.5)  # only the first ends what it has, or the other still loads
    unloaded = pool.host.unload("m")
    pool.pass_time(6.0)
    assert pool.host.outcome(unloaded) == "done"
    assert pool.host.outcome(moved) == ("done" if late else "model_not_found")
    assert pool.device_of_model("m") == []
    assert not any(world.core.library.holdings.sets for world in pool.worlds)


def test_whoever_wants_to_attach_gets_what_answers():
    pool = moving()
    pool.host.submit("m", plan=RunPlan(5.0))
    pool.host.move("m", "cpu:1")
    pool.pass_time(2.0)
    caller = pool.host.attach("m")
    pool.pass_time(0.1)
    assert pool.host.attached[caller]
    assert pool.worlds[1].core.library.models["m"].current.attached == {caller}


def test_nothing_is_moved_that_is_on_its_way_or_has_no_way():
    pool = moving()
    pool.host.load("both", replicas=2)
    pool.host.load("object", frozen=True, plan=sized(MB))
    pool.pass_time(1.0)
    there = pool.host.move("m", "cpu:0")
    loaded = pool.host.load("slow", devices=["cpu:0"], plan=LoadPlan(seconds=2.0))
    refused = {
        pool.host.move("nothing", "cpu:0"): "no model 'nothing' here; there are: both, m, object, slow",
        pool.host.move("m", "cpu:7"): "no device 'cpu:7' in this pool; there are: cpu:0, cpu:1",
        pool.host.move("both", "cpu:0"): "both is on cpu:0, cpu:1; only one can be moved",
        pool.host.move("slow", "cpu:1"): "slow is being loaded; try again when it is ready",
    }
    (home,) = pool.device_of_model("object")
    away = "cpu:1" if home == "cpu:0" else "cpu:0"
    refused[pool.host.move("object", away)] = (
        "object was handed over as an object, and no loader could build it on another device; unload it, and load "
        "it there"
    )
    moved = pool.host.move("m", "cpu:1")
    for caller in (pool.host.move("m", "cpu:1"), pool.host.load("m")):
        refused[caller] = "m is being moved to cpu:1; try again when it is there"
    pool.pass_time(6.0)
    assert {caller: pool.host.answers[caller].error["message"] for caller in refused} == refused
    assert [pool.host.outcome(one) for one in (there, loaded, moved)] == ["done"] * 3


def test_a_pool_ends_whatever_is_being_moved():
    pool = moving()
    number = pool.host.submit("m")
    pool.host.move("m", "cpu:1")
    pool.feed(events.StopAsked(drain=True))
    pool.pass_time(5.0)
    assert pool.host.is_finished
    assert pool.host.code(number) == "reply"
