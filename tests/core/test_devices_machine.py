"""Several devices under whatever may happen: everybody is answered once, and nothing is left."""

import dataclasses

import hypothesis.strategies as st
from core.several import CHANGED, MB, several
from core.simulated import LoadPlan, RunPlan
from hypothesis import HealthCheck, given, settings
from onecopy.pool.core import events

NAMES = st.sampled_from("abc")
CLIENTS = st.sampled_from(["ann", "bob"])
STEPS = st.one_of(
    st.tuples(
        st.just("load"), NAMES, st.sampled_from([[], ["cpu:0"], ["cpu:1"], ["cpu:2", "cpu:0"]]),
        st.sampled_from([1, 2]), st.sampled_from([0, 3, 6, 9, 12, 24]), st.sampled_from([0, 6]), st.booleans(),
        st.booleans(),
    ),
    st.tuples(st.just("change"), st.integers(0, 5)),
    st.tuples(st.just("submit"), NAMES, CLIENTS, st.integers(1, 20), st.sampled_from([0.0, 0.5]), st.booleans()),
    st.tuples(st.just("kill"), st.sampled_from(["worker", "loader", "zygote"]), st.integers(0, 5)),
    st.tuples(st.just("unload"), NAMES),
    st.tuples(st.just("pin"), NAMES, st.booleans()),
    st.tuples(st.just("evict"), NAMES),
    st.tuples(st.just("move"), NAMES, st.sampled_from(["cpu:0", "cpu:1", "cpu:2", "cpu:3"])),
    st.tuples(st.just("leave"), CLIENTS),
    st.tuples(st.just("wait"), st.sampled_from([0.001, 0.03, 0.3, 2.0])),
)  # fmt: skip


@given(st.lists(STEPS, min_size=1, max_size=40))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_happens_everybody_is_answered_once_and_nothing_is_left(steps):
    pool = several(3)
    asked, callers = [], []
    for step in steps:
        run_step(pool, step, asked, callers)
    pool.check_that_everything_ends(asked, callers, "abc")
    assert [len(world.workers()) for world in pool.worlds] == [2, 2, 2]
    pool.feed(events.StopAsked(drain=True))
    pool.pass_time(10.0)
    assert pool.host.is_finished


def regions_with_weights(world):
    return [record.number for record in world.core.library.holdings.regions if record.weight_sets]


def change_file(pool, number):
    """Let a region be a file that has changed: what is loaded from it from now on is other than before."""
    for world in pool.worlds:
        for version in world.core.library.holdings.sets.values():
            if number in version.layout and version.load.source == "factory":
                plan = pool.host.load_plans[version.load.pickled]
                wants = tuple((size, digest[::-1]) for size, digest in plan.wants)
                pool.host.load_plans[version.load.pickled] = dataclasses.replace(plan, wants=wants)
    pool.feed(events.FileChanged(number, CHANGED))


def run_step(pool, step, asked, callers):
    kind, *rest = step
    if kind == "load":
        name, devices, replicas, size, hint, is_eager, is_warm = rest
        options = {"replicas": replicas, **({"devices": devices} if devices else {})}
        parts = tuple((size * MB // 3, f"{name}{part}".encode() * 8) for part in range(3) if size)
        plan = LoadPlan(seconds=0.1, wants=parts)
        options |= {"eager": is_eager, "warm": is_warm, "size_bytes": hint * MB}
        callers.append(pool.host.load(name, plan=plan, **options))
    elif kind == "submit":
        name, client, count, timeout_s, has_session = rest
        wishes = {"session": "s"} if has_session else {}
        for _ in range(count):
            number = pool.host.submit(name, client, timeout_s=timeout_s, retries=1, plan=RunPlan(0.02), **wishes)
            asked.append((client, number))
    elif kind == "change":
        (place,) = rest
        lying = [number for world in pool.worlds for number in regions_with_weights(world)]
        if lying:
            change_file(pool, lying[place % len(lying)])
    elif kind == "kill":
        whom, place = rest
        world = pool.worlds[place % len(pool.worlds)]
        if whom == "zygote":
            world.zygote_dies("SIGKILL")
        elif found := (world.workers() if whom == "worker" else world.loaders()):
            found[place % len(found)].die("SIGKILL")
    elif kind == "leave":
        (client,) = rest
        pool.feed(events.ClientLeft(client))
        asked[:] = [one for one in asked if one[0] != client]
        pool.host.join(client)
    elif kind == "wait":
        pool.pass_time(rest[0])
    elif kind == "move":
        callers.append(pool.host.move(*rest))
    else:
        calls = {"unload": pool.host.unload, "evict": pool.host.evict}
        callers.append(pool.host.pin(rest[0], is_pinned=rest[1]) if kind == "pin" else calls[kind](rest[0]))
