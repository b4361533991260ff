"""What earlier loads took: it is kept, it decides where models go and who waits, and it refuses nobody."""

import hypothesis.strategies as st
import pytest
from core.several import Several
from core.simulated import LoadPlan, RunPlan
from core.test_devices_machine import STEPS, run_step
from core.world import World
from hypothesis import HealthCheck, given, settings
from onecopy.pool.core.ledger import Allowance
from onecopy.pool.core.predictions import LEAST_OVERDUE_S, MAX_KEY, MAX_LOADS, key_of
from onecopy.pool.core.seen import NOTHING, Seen, merged

MB = 1 << 20
DEVICE_MB = 1 << 20  # what the device has: much more than any pool here may take


def world_of(loads=None, *, room_mb=0, **options):
    """A pool that may take so many megabytes, and knows of these loads."""
    world = World(2, allowance=Allowance(DEVICE_MB * MB, room_mb * MB, 0), loads=loads, **options)
    measure(world)
    world.join()
    world.pass_time(2.0)
    return world


def measure(world, **more):
    world.measure(DEVICE_MB * MB, **more)


def load(world, name, size_mb=1, seconds=0.05, **options):
    plan = LoadPlan(seconds=seconds, wants=((size_mb * MB, b""),))
    return world.load(name, plan=plan, workspace="private", load_key=f"key of {name}", **options)


def expecting(**loader_mb):
    """What is known of models whose loaders had so many megabytes."""
    return {f"key of {name}": Seen(loader_bytes=size * MB, load_s=1.0) for name, size in loader_mb.items()}


def is_loading(world):
    """The models that are being built by a loader that was forked."""
    library = world.core.library
    return sorted(
        version.load.name for child, version in library._loaders.items() if not world.core.fleet.is_to_fork(child)
    )


def states(world):
    return {name: model.current.life.state for name, model in world.core.library.models.items()}


# --- what is kept --------------------------------------------------------------------------------------------


def test_what_a_load_took_is_kept():
    world = world_of()
    caller = load(world, "a", size_mb=3, seconds=1.0)
    world.pass_time(0.5)
    (loader,) = world.loaders()
    measure(world, loaders={loader.number: 90 * MB})
    measure(world, loaders={loader.number: 70 * MB})
    world.pass_time(3.0)
    assert world.outcome(caller) == "done"
    seen = world.loads_seen["key of a"]
    assert (seen.weights_bytes, seen.loader_bytes) == (3 * MB, 90 * MB)
    assert seen.load_s == pytest.approx(2.0, rel=0.1)  # it builds, and then it fills
    world.evict("a")
    world.pass_time(1.0)
    world.submit("a", plan=RunPlan(0.001))
    world.pass_time(1.0)
    assert world.loads_seen["key of a"].return_s == pytest.approx(0.03)
    assert world.core.library.models["a"].current.seen == world.loads_seen["key of a"]


def test_what_a_worker_and_a_run_took_is_kept_too():
    world = World(1, 1)
    world.join()
    world.load("a", warm=True, load_key="k")
    world.pass_time(5.0)
    assert world.loads_seen["k"].private_bytes is not None
    assert world.loads_seen["k"].need_bytes is None
    world.submit("a", plan=RunPlan(0.01, peak_bytes=40 * MB))
    world.pass_time(1.0)
    assert world.loads_seen["k"].need_bytes == 40 * MB


def test_a_load_without_a_key_is_expected_nothing_of_and_nothing_of_it_is_kept():
    world = world_of({"": Seen(weights_bytes=9)})
    for name, key in (("a", None), ("b", 7), ("c", ["x"]), ("d", "x" * (MAX_KEY + 1)), ("e", "")):
        world.load(name, **({} if key is None else {"load_key": key}))
    world.load("f", frozen=True)
    world.pass_time(2.0)
    assert set(states(world).values()) == {"ready"}
    assert not world.loads_seen
    assert {one.current.expected for one in world.core.library.models.values()} == {NOTHING}
    assert world.core.library.models["f"].current.seen.weights_bytes == 4096 + 100


def test_what_was_expected_stays_as_it_was_and_a_second_load_expects_what_the_first_took():
    world = world_of()
    load(world, "a", size_mb=3)
    world.pass_time(2.0)
    assert world.core.library.models["a"].current.expected == NOTHING
    load(world, "a", size_mb=5)
    world.pass_time(2.0)
    version = world.core.library.models["a"].current
    assert (version.expected.weights_bytes, version.seen.weights_bytes) == (3 * MB, 5 * MB)


FIGURES = st.builds(
    Seen,
    *[st.none() | st.integers(0, 9) if one != "load_s" else st.none() | st.floats(0, 9) for one in Seen._fields],
)


@given(FIGURES, FIGURES)
def test_of_sizes_that_vary_the_largest_counts_and_of_the_rest_the_newest(old, new):
    both = merged(old, new)
    for name in Seen._fields:
        before, after = getattr(old, name), getattr(new, name)
        known = [one for one in (before, after) if one is not None]
        if not known:
            assert getattr(both, name) is None
        elif name in ("loader_bytes", "private_bytes", "need_bytes"):
            assert getattr(both, name) == max(known)
        else:
            assert getattr(both, name) == known[-1]
    assert merged(both, new) == both
    assert merged(old, NOTHING) == merged(NOTHING, old) == old


@pytest.mark.parametrize("key", [None, 3, b"x", "x" * (MAX_KEY + 1)])
def test_a_key_is_a_short_text(key):
    assert key_of({"load_key": key}) == key_of({}) == ""
    assert key_of({"load_key": "x" * MAX_KEY})


# --- where models go -----------------------------------------------------------------------------------------


def several(loads, count=2):
    pool = Several(count, workers=2, allowance=Allowance(100 * MB, 10 * MB, 0), loads=loads)
    pool.host.join("ann")
    pool.pass_time(1.0)
    return pool


def test_a_size_that_was_seen_decides_where_a_model_goes_before_that_of_its_files():
    pool = several({"large": Seen(weights_bytes=5 * MB), "small": Seen(weights_bytes=MB)})
    pool.host.load("first", plan=LoadPlan(wants=((6 * MB, b""),)), devices=["cpu:1"], pin=True)
    for name in "ab":
        pool.host.load(name, devices=["cpu:0"])
    pool.pass_time(1.0)
    pool.host.load("large", load_key="large", size_bytes=1, plan=LoadPlan(wants=((5 * MB, b""),)))
    assert pool.device_of_model("large") == ["cpu:0"], "although there are more models"
    pool.host.load("small", load_key="small", size_bytes=8 * MB)
    assert pool.device_of_model("small") == ["cpu:1"], "although its file is large"


def test_loads_that_come_together_are_spread_by_what_they_will_take():
    pool = several({name: Seen(weights_bytes=6 * MB) for name in "abc"}, count=3)
    for name in "abc":
        pool.host.load(name, load_key=name, plan=LoadPlan(wants=((6 * MB, b""),)))
    assert sorted(pool.device_of_model(name) for name in "abc") == [["cpu:0"], ["cpu:1"], ["cpu:2"]]
    pool.pass_time(2.0)
    assert {core.library.models.popitem()[1].current.life.state for core in pool.devices.cores} == {"ready"}


def test_what_one_device_has_seen_the_others_know():
    pool = several({})
    pool.host.load("a", devices=["cpu:1"], load_key="k", plan=LoadPlan(wants=((3 * MB, b""),)))
    pool.pass_time(2.0)
    pool.host.load("b", devices=["cpu:0"], load_key="k")
    assert pool.worlds[0].core.library.models["b"].current.expected.weights_bytes == 3 * MB


# --- who waits -----------------------------------------------------------------------------------------------


def test_a_load_counts_with_what_it_should_take_from_the_fork_of_its_loader_to_its_end():
    world = world_of(expecting(a=200), room_mb=300)
    load(world, "a", size_mb=150, seconds=1.0)
    world.pass_time(0.5)
    assert world.core.ledger.accounts()["loading"] == 200 * MB
    (loader,) = world.loaders()
    measure(world, loaders={loader.number: 220 * MB})
    assert world.core.ledger.accounts()["loading"] == 220 * MB, "never less than what is measured"
    world.pass_time(3.0)
    assert states(world) == {"a": "ready"}
    assert not world.core.ledger.is_expecting
    assert world.core.ledger.used_bytes == 150 * MB


def test_loads_that_should_not_fit_beside_each_other_come_one_after_the_other():
    world = world_of(expecting(a=200, b=200, c=50), room_mb=300)
    callers = [load(world, name, size_mb=10, seconds=1.0) for name in "abc"]
    assert is_loading(world) == ["a"], "nobody overtakes"
    world.pass_time(2.5)
    assert is_loading(world) == ["b", "c"]
    world.pass_time(5.0)
    assert [world.outcome(caller) for caller in callers] == ["done"] * 3


def test_what_the_system_has_left_counts_too():
    world = world_of(expecting(a=80, b=80, c=10))
    world.measure(DEVICE_MB * MB, available_bytes=100 * MB)
    for name in "abc":
        load(world, name, seconds=1.0)
    assert is_loading(world) == ["a"]
    world.pass_time(0.5)
    (loader,) = world.loaders()
    world.measure(DEVICE_MB * MB, available_bytes=100 * MB, loaders={loader.number: 75 * MB})
    assert is_loading(world) == ["a", "b", "c"], "what it has is not expected any more"


def test_a_loader_that_waits_is_forked_as_soon_as_memory_is_free_and_not_at_all_if_nobody_wants_it():
    world = world_of(expecting(a=200, b=200, c=200), room_mb=300)
    for name in "abc":
        load(world, name, size_mb=10, seconds=5.0)
    world.unload("b")
    world.core.ledger.budget_bytes = 500 * MB
    measure(world)
    assert is_loading(world) == ["a", "c"]


def test_room_is_made_for_what_a_load_should_take_before_it_asks_for_it():
    world = world_of(expecting(b=200), room_mb=300)
    load(world, "a", size_mb=200)
    world.pass_time(1.0)
    load(world, "b", size_mb=10, seconds=1.0)
    measure(world)
    world.pass_time(0.2)
    assert states(world) == {"a": "evicted", "b": "building"}


def test_a_return_that_was_measured_in_an_earlier_pool_decides_who_leaves():
    world = world_of({"key of a": Seen(return_s=50.0), "key of b": Seen(return_s=0.001)}, room_mb=250)
    for name in "ab":
        load(world, name, size_mb=100)
        world.pass_time(1.0)
        for _ in range(1 if name == "a" else 3):
            world.submit(name, plan=RunPlan(0.001))
        world.pass_time(1.0)
    load(world, "c", size_mb=100)
    world.pass_time(2.0)
    assert states(world) == {"a": "ready", "b": "evicted", "c": "ready"}, "although it is used more often"


# --- a wrong prediction refuses nobody -----------------------------------------------------------------------


def test_what_could_not_be_free_at_all_does_not_count_and_evicts_nobody():
    world = world_of(expecting(b=10_000), room_mb=300)
    load(world, "a", size_mb=100)
    world.pass_time(1.0)
    caller = load(world, "b", size_mb=100)
    measure(world)
    world.pass_time(1.0)
    assert world.outcome(caller) == "done"
    assert states(world) == {"a": "ready", "b": "ready"}


def test_a_load_that_was_to_be_small_and_is_large_is_decided_by_what_it_is():
    world = world_of(expecting(a=1, b=1), room_mb=300)
    callers = [load(world, "a", size_mb=290), load(world, "b", size_mb=310)]
    world.pass_time(2.0)
    assert [world.outcome(caller) for caller in callers] == ["done", "out_of_budget"]


def test_what_is_expected_of_one_gives_way_before_another_is_refused():
    world = world_of(expecting(a=150, b=150), room_mb=350)
    load(world, "pinned", size_mb=40, pin=True)
    world.pass_time(1.0)
    callers = [load(world, "a", size_mb=130, seconds=0.5), load(world, "b", size_mb=160, seconds=0.5)]
    assert is_loading(world) == ["a", "b"]
    world.core.ledger.budget_bytes = 340 * MB  # what is expected does not fit any more, what comes does
    measure(world)
    world.pass_time(5.0)
    assert [world.outcome(caller) for caller in callers] == ["done", "done"]


def test_a_prediction_alone_never_lets_more_be_handed_out_than_there_is():
    world = world_of(expecting(b=200), room_mb=300)
    load(world, "a", size_mb=150)
    world.pass_time(1.0)
    world.submit("a", plan=RunPlan(1.0))
    caller = load(world, "b", size_mb=180, seconds=0.0)
    for _ in range(50):  # `check_memory` looks after each event
        world.pass_time(0.1)
    assert world.outcome(caller) == "done"


def test_a_load_that_hangs_counts_with_what_it_has_after_a_while_and_others_go_on():
    world = world_of(expecting(a=250, b=60), room_mb=300)
    load(world, "idle", size_mb=200)
    world.pass_time(1.0)
    world.evict("idle")
    world.pass_time(1.0)
    load(world, "a", size_mb=10, seconds=1000.0)
    load(world, "b", size_mb=10)
    number = world.submit("idle", plan=RunPlan(0.001))
    world.pass_time(LEAST_OVERDUE_S - 1)
    measure(world)
    assert is_loading(world) == ["a"]
    assert not world.code(number)
    world.pass_time(2.0)
    measure(world)
    world.pass_time(1.0)
    assert states(world) == {"idle": "ready", "a": "building", "b": "ready"}
    assert world.code(number) == "reply"


def test_loads_that_are_not_forked_yet_hold_nobody_up():
    """They hold nothing, so nothing is free when they are done."""
    world = world_of(room_mb=100)
    callers = [load(world, f"m{number}", size_mb=150, seconds=0.0) for number in range(20)]
    world.pass_time(10.0)
    assert {world.outcome(caller) for caller in callers} == {"out_of_budget"}


SIZES_MB = st.integers(1, 130)
EXPECTED_MB = st.none() | st.sampled_from([0, 1, 50, 90, 99, 101, 130, 500, 1 << 30])


@given(
    st.lists(st.tuples(SIZES_MB, EXPECTED_MB, EXPECTED_MB, st.sampled_from([0.0, 0.3, 3.0])), max_size=8),
    st.lists(st.sampled_from([0.0, 0.05, 1.0]), min_size=8, max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_whatever_is_expected_what_fits_is_loaded_and_what_does_not_is_refused(wanted, pauses_s):
    known = {
        f"key of m{number}": Seen(
            weights_bytes=None if weights is None else weights * MB,
            loader_bytes=None if loader is None else loader * MB,
        )
        for number, (_, loader, weights, _) in enumerate(wanted)
    }
    world = world_of(known, room_mb=100)
    callers = []
    for number, ((size_mb, _, _, seconds), pause_s) in enumerate(zip(wanted, pauses_s, strict=False)):
        callers.append(load(world, f"m{number}", size_mb, seconds))
        world.pass_time(pause_s)
        measure(world)
    for _ in range(100):
        world.pass_time(1.0)
        measure(world)
    outcomes = [world.outcome(caller) for caller in callers]
    assert outcomes == ["done" if size_mb <= 100 else "out_of_budget" for size_mb, *_ in wanted]
    assert not world.core.ledger.is_expecting


@given(st.lists(STEPS, min_size=1, max_size=30), st.lists(EXPECTED_MB, min_size=6, max_size=6))
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_happens_on_several_devices_predictions_leave_nobody_without_an_answer(steps, expected_mb):
    sizes_bytes = [None if one is None else one * MB // 10 for one in expected_mb]
    loads = {
        name: Seen(weights_bytes=weights, loader_bytes=loader, load_s=0.1, return_s=0.01)
        for name, weights, loader in zip("abc", sizes_bytes[:3], sizes_bytes[3:], strict=True)
    }
    pool = several(loads, count=3)
    pool.host.join("bob")
    load = pool.host.load
    pool.host.load = lambda name, **more: load(name, load_key=name, **more)
    asked, callers = [], []
    for step in steps:
        run_step(pool, step, asked, callers)
    pool.check_that_everything_ends(asked, callers, "abc")
    assert not any(world.core.ledger.is_expecting for world in pool.worlds)


def test_of_very_many_loads_those_learned_of_last_are_known():
    world = world_of({f"key of {number}": Seen(load_s=1.0) for number in range(MAX_LOADS)})
    load(world, "1")
    load(world, "new")
    world.pass_time(1.0)
    known = world.core.predictions._known
    assert len(known) == MAX_LOADS
    assert {"key of 1", "key of new"} <= known.keys()
    assert "key of 0" not in known
