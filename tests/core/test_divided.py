"""Models that are divided among devices: where their parts go, and when these go with them."""

import dataclasses

import pytest
from core.several import CHANGED, MB, several, sized
from core.simulated import LoadPlan
from onecopy.pool.core import events
from onecopy.pool.core.reach import within_reach
from onecopy.protocol.messages import BuildModel, Thaw


def rooms_of(pool):
    """Return what room loaders were told of that were to divide a model."""
    said = [getattr(one, "message", None) for world in pool.worlds for one in world.instructions]
    return [one.options["room"] for one in said if isinstance(one, BuildModel) and "room" in one.options]


def test_a_model_that_fits_on_no_device_is_divided_among_them():
    pool = several()
    loaded = pool.host.load("large", plan=sized(*[MB * 7 // 2] * 4))
    number = pool.host.submit("large")
    pool.pass_time(3.0)
    assert pool.host.outcome(loaded) == "done"
    assert pool.host.code(number) == "reply"
    assert [world.core.ledger.accounts()["weights"] for world in pool.worlds] == [7 * MB, 7 * MB]
    (home,) = [world for world in pool.worlds if "large" in world.core.library.models]
    version = home.core.library.models["large"].current
    thaw = next(one for one in home.instructions if isinstance(getattr(one, "message", None), Thaw))
    assert thaw.regions == version.layout
    assert len(version.layout) == 4
    part = f"large+{version.number}"
    assert "no model" in pool.host.inboxes["ann"].get(pool.host.submit(part)).error["message"]
    evicted = pool.host.evict("large")
    assert "it is divided among devices" in pool.host.answers[evicted].error["message"]
    pool.host.unload("large")
    pool.pass_time(3.0)
    assert [world.core.ledger.accounts()["weights"] for world in pool.worlds] == [0, 0]
    assert not pool.host.store.open_fds
    assert not pool.devices._parts


def test_it_is_not_divided_where_it_is_not_to_be():
    pool = several()
    loaded = pool.host.load("large", plan=sized(*[4 * MB] * 4), divide=False)
    pool.pass_time(3.0)
    assert pool.host.outcome(loaded) == "out_of_budget"


def test_it_is_divided_among_those_within_reach_of_where_it_runs():
    pool = several(3, peers={"cpu:1": ["cpu:2"], "cpu:2": ["cpu:1"]})
    pool.host.load("other", plan=sized(2 * MB), devices=["cpu:2"], pin=True)
    loaded = pool.host.load("large", plan=sized(*[MB * 7 // 4] * 7))
    pool.pass_time(3.0)
    assert pool.host.outcome(loaded) == "done"
    assert pool.device_of_model("large") == ["cpu:1"], "of the two it has more room"
    taken_bytes = [world.core.ledger.accounts()["weights"] for world in pool.worlds]
    assert taken_bytes[0] == 0
    assert sum(taken_bytes) == MB * 7 // 4 * 7 + 2 * MB
    assert list(rooms_of(pool)[0]) == ["cpu:1", "cpu:2"]


def test_it_is_refused_where_none_can_use_the_memory_of_another():
    pool = several(peers={})
    loaded = pool.host.load("large", plan=sized(*[4 * MB] * 4))
    alone = pool.host.load("alone", plan=sized(*[4 * MB] * 4), devices=["cpu:0"])
    whole = pool.host.load("whole", plan=sized(*[4 * MB] * 4), divide=False)
    pool.pass_time(3.0)
    for caller in (loaded, alone, whole):
        assert pool.host.outcome(caller) == "out_of_budget"
    why = "; it is not divided, because none of these can use the memory of another"
    assert pool.host.answers[loaded].error["message"].endswith(why)
    assert why not in pool.host.answers[alone].error["message"]
    assert why not in pool.host.answers[whole].error["message"]


def test_it_runs_where_most_room_is_within_reach():
    rooms = {"a": 5, "b": 4, "c": 4, "d": 3}
    chain = {"a": ["b"], "b": ["a", "c"], "c": ["b", "elsewhere"], "d": []}
    assert list(within_reach(rooms, chain).items()) == [("b", 4), ("a", 5), ("c", 4)]
    everyone = {one: [other for other in rooms if other != one] for one in rooms}
    assert list(within_reach(rooms, everyone)) == ["a", "b", "c", "d"]
    assert within_reach({"d": 3}, chain) == {"d": 3}


def test_a_divided_load_that_failed_is_tried_again_with_what_room_there_is_then():
    pool = several()
    plan = dataclasses.replace(sized(*[MB * 7 // 2] * 4), outcome="dies")
    loaded = pool.host.load("large", plan=plan)
    pool.pass_time(3.0)
    assert pool.host.outcome(loaded) == "load_failed"
    assert len(rooms_of(pool)) == 1
    pool.host.load("other", plan=sized(4 * MB), devices=["cpu:1"], pin=True)
    pool.pass_time(1.0)
    number = pool.host.submit("large")
    pool.pass_time(3.0)
    assert pool.host.code(number) == "load_failed"
    before, after = rooms_of(pool)
    assert after["cpu:0"] == before["cpu:0"]
    assert after["cpu:1"] == before["cpu:1"] - 4 * MB * 3 // 4, "a quarter of what there is is left for workers"


def test_a_load_that_was_to_be_divided_and_failed_is_not_if_it_fits_now():
    pool = several()
    for device in ("cpu:0", "cpu:1"):
        pool.host.load(f"on {device}", plan=sized(5 * MB), devices=[device], pin=True)
    pool.pass_time(1.0)
    failing = dataclasses.replace(sized(3 * MB, 3 * MB), outcome="dies")
    loaded = pool.host.load("large", plan=failing)
    pool.pass_time(3.0)
    assert pool.host.outcome(loaded) == "load_failed"
    assert len(rooms_of(pool)) == 1
    pool.host.unload("on cpu:0")
    pool.host.unload("on cpu:1")
    pool.pass_time(1.0)
    failing.outcome = "built"
    number = pool.host.submit("large")
    pool.pass_time(3.0)
    assert pool.host.code(number) == "reply"
    assert len(rooms_of(pool)) == 1
    (home,) = [world for world in pool.worlds if "large" in world.core.library.models]
    assert not home.core.library.models["large"].current.is_divided


def test_a_part_on_another_device_that_lies_in_a_file_that_changed_has_the_model_loaded_anew():
    pool = several()
    pool.host.load("large", plan=sized(*[MB * 7 // 2] * 4))
    pool.pass_time(3.0)
    (home,) = [world for world in pool.worlds if "large" in world.core.library.models]
    version = home.core.library.models["large"].current
    (foreign, *_) = [number for number in version.layout if number not in version.regions]
    pool.feed(events.FileChanged(foreign, CHANGED))
    assert version.life.state == "freed"
    assert [world.core.ledger.accounts()["weights"] for world in pool.worlds] == [0, 0]
    number = pool.host.submit("large")
    pool.pass_time(3.0)
    assert pool.host.code(number) == "reply"


def test_of_two_that_wait_for_memory_on_the_device_of_the_other_one_is_loaded():
    pool = several()
    loads = {}
    for name, own in (("a", "cpu:0"), ("b", "cpu:1")):
        plan = LoadPlan(wants=tuple((7 * MB, f"{name}{part}".encode() * 8) for part in range(2)))
        # Told beforehand, because it is rare that both come to be divided at one time.
        room = {device: 9 * MB if device == own else 8 * MB for device in ("cpu:0", "cpu:1")}
        loads[name] = pool.host.load(name, plan=plan, devices=[own], divide=False, room=room)
    numbers = [pool.host.submit(name) for name in loads]
    pool.pass_time(5.0)
    assert sorted(map(pool.host.outcome, loads.values())) == ["done", "out_of_budget"]
    assert sorted(map(pool.host.code, numbers)) == ["out_of_budget", "reply"]


@pytest.mark.parametrize("after_s", [0.01, 0.06, 0.11, 0.16, 0.21, 0.26, 0.31])
@pytest.mark.parametrize("how", ["the loader dies", "it is unloaded"])
def test_whenever_dividing_ends_nothing_of_it_is_left(after_s, how):
    pool = several()
    pool.host.load("large", plan=sized(*[MB * 7 // 2] * 4))
    pool.pass_time(0.4)  # until the second device has refused it, too
    pool.pass_time(after_s)
    if how == "it is unloaded":
        pool.host.unload("large")
    for world in pool.worlds:
        for loader in world.loaders():
            if how == "the loader dies":
                loader.die("SIGKILL")
    pool.pass_time(5.0)
    pool.host.unload("large")
    pool.pass_time(5.0)
    assert [world.core.ledger.used_bytes for world in pool.worlds] == [0, 0]
    assert not pool.host.store.open_fds
    assert not pool.devices._parts
