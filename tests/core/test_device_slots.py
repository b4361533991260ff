"""Slots in the memory of a GPU: each keeps its size, so one that does not suit any more is replaced."""

import pytest
from core.simulated import RunPlan
from core.world import World
from onecopy.pool.core import events
from onecopy.pool.core.instructions import EmptyRegion, FreeRegions, GrowRegion, MakeRegion, ToChild
from onecopy.pool.core.position import Position
from onecopy.pool.core.rings import FIRST_BYTES, Ring
from onecopy.protocol.messages import MapSlot, Run, UnmapSlot, Used

MIB = 1 << 20


def serving(*models: str, workers: int = 1, slots: int = 0, slot_bytes: int = 0, **options) -> World:
    world = World(workers, slots or workers, slot_bytes=slot_bytes, position=Position("cuda:0", gpu=0))
    world.join()
    for name in models:
        world.load(name, **options)
    world.pass_time(3.0)
    return world


def ring(world: World) -> Ring:
    return world.core.workspace.rings["device"]


def answer(world: World, model: str = "m", **plan) -> str:
    number = world.submit(model, plan=RunPlan(**plan))
    world.pass_time(3.0)
    return world.code(number)


def sizes(world: World) -> set[int]:
    return {one.size_bytes for one in world.regions.values() if one.name == "slot"}


def runs_of(world: World) -> list[Run]:
    return [one for one in world.said if isinstance(one, Run)]


def steps(world: World) -> list[str]:
    """What became of slots, in its order."""
    names = {MakeRegion: "make", FreeRegions: "free", MapSlot: "map", UnmapSlot: "unmap", Run: "run"}
    kinds = [type(one.message if isinstance(one, ToChild) else one) for one in world.instructions]
    return [names[kind] for kind in kinds if kind in names]


def is_in_place(world: World) -> bool:
    return any(isinstance(one, GrowRegion | EmptyRegion) for one in world.instructions)


def test_all_of_a_slot_may_be_used_and_its_size_is_told_with_it():
    world = serving("m")
    assert answer(world) == "reply"
    [told] = [one for one in world.said if isinstance(one, MapSlot)]
    [run] = runs_of(world)
    assert told.size_bytes == run.limit_bytes == FIRST_BYTES


def test_a_slot_that_is_too_small_is_replaced_when_its_holder_rises():
    world = serving("m", workers=2)
    first = {number for number, one in world.regions.items() if one.name == "slot"}
    answer(world, peak_bytes=100 * MIB)
    assert sizes(world) == {112 * MIB}  # what it needs, in steps
    assert not first & world.regions.keys()
    answer(world, peak_bytes=100 * MIB)
    assert runs_of(world)[-1].limit_bytes == 112 * MIB
    assert ring(world).spills == 1
    assert not is_in_place(world)


def test_workers_are_told_to_let_go_of_a_slot_before_the_next_one_is_made():
    world = serving("m")
    answer(world, peak_bytes=100 * MIB)
    answer(world)
    assert steps(world)[-7:] == ["map", "run", "unmap", "free", "make", "map", "run"]


def test_a_need_that_grows_little_by_little_replaces_slots_seldom():
    world = serving("m")
    for mebibytes in range(65, 129):
        answer(world, peak_bytes=mebibytes * MIB)
    made = [one.size_bytes // MIB for one in world.instructions if isinstance(one, MakeRegion)]
    assert made == [64, 80, 96, 112, 128]


def test_a_slot_that_is_leased_is_replaced_when_its_holder_is_handed_more():
    """A worker that is handed one short request after another never rises."""
    world = serving("m")
    for _ in range(6):
        answer(world, seconds=0.0001)
    [worker], version = world.workers(), world.core.library.models["m"].current
    for _ in range(2):
        world.submit("m", plan=RunPlan(0.0001))
    [slot] = ring(world).slots.values()
    world.feed(events.SlotUsed(worker.number, Used(version.number, "x", 64 * MIB, 36 * MIB, 0)))
    assert ring(world).slots[0] is slot
    world.submit("m", plan=RunPlan(0.0001))
    assert ring(world).slots[0] is not slot
    assert [run.slot for run in runs_of(world)[-3:]] == [slot.region, slot.region, 0]
    assert steps(world)[-5:] == ["run", "unmap", "free", "make", "run"]
    answer(world)
    assert runs_of(world)[-1].slot == ring(world).slots[0].region


def test_a_slot_much_larger_than_need_be_is_replaced_when_the_large_model_is_gone():
    world = serving("small", "large")
    answer(world, "small", peak_bytes=80 * MIB)
    answer(world, "large", peak_bytes=1024 * MIB)
    assert sizes(world) == {1280 * MIB}
    world.unload("large")
    world.pass_time(1.0)
    assert sizes(world) == {96 * MIB}
    assert not is_in_place(world)


def test_a_slot_a_little_larger_than_need_be_stays():
    world = serving("small", "large")
    answer(world, "small", peak_bytes=80 * MIB)
    answer(world, "large", peak_bytes=120 * MIB)
    before = sizes(world)
    world.unload("large")
    world.pass_time(1.0)
    assert sizes(world) == before == {128 * MIB}
    answer(world, "small")
    assert runs_of(world)[-1].limit_bytes == 128 * MIB


def test_slots_of_a_fixed_size_are_never_replaced():
    world = serving("m", slot_bytes=16 * MIB)
    for _ in range(3):
        answer(world, peak_bytes=100 * MIB)
    assert sizes(world) == {16 * MIB}
    assert len([one for one in world.instructions if isinstance(one, MakeRegion)]) == 1


def test_what_slots_take_counts_from_the_beginning_and_wholly():
    world = serving("m", workers=4, slots=3)
    assert world.core.ledger.accounts()["slots"] == 3 * FIRST_BYTES
    answer(world, peak_bytes=100 * MIB)
    assert world.core.ledger.accounts()["slots"] == 3 * 112 * MIB
    world.unload("m")
    world.pass_time(1.0)
    assert world.core.ledger.accounts()["slots"] == 0


def test_a_slot_that_its_holder_has_to_leave_first_counts_as_large_as_the_next():
    world = serving("m")
    [worker], version = world.workers(), world.core.library.models["m"].current
    world.submit("m", plan=RunPlan(1.0))
    world.feed(events.SlotUsed(worker.number, Used(version.number, "x", 64 * MIB, 36 * MIB, 0)))
    assert sizes(world) == {FIRST_BYTES}
    assert world.core.ledger.accounts()["slots"] == 112 * MIB


@pytest.mark.parametrize("dies", [False, True])
def test_a_slot_in_which_something_lives_stays_with_its_worker_and_the_seat_gets_another(dies: bool):
    world = serving("m")
    assert answer(world, escapes=True) == "reply"
    [escaped] = [run.slot for run in runs_of(world)]
    [made] = [number for number, one in world.regions.items() if one.name == "slot"]
    assert made != escaped
    assert world.core.ledger.accounts()["slots"] == 2 * FIRST_BYTES
    answer(world)
    assert runs_of(world)[-1].slot == made
    if dies:
        world.workers()[0].die("SIGKILL")
    else:
        world.load("other")
        world.unload("m")
    world.pass_time(1.0)
    assert world.core.ledger.accounts()["slots"] == FIRST_BYTES


def test_nobody_is_handed_more_in_a_slot_in_which_something_lives():
    world = serving("m")
    for _ in range(6):
        answer(world, seconds=0.0001)
    [worker], version = world.workers(), world.core.library.models["m"].current
    for _ in range(2):
        world.submit("m", plan=RunPlan(0.0001))
    [slot] = ring(world).slots.values()
    world.feed(events.SlotUsed(worker.number, Used(version.number, "x", 1, 0, 64)))
    world.submit("m", plan=RunPlan(0.0001))
    assert [run.slot for run in runs_of(world)[-3:]] == [slot.region, slot.region, 0]
    world.pass_time(1.0)
    assert slot.region not in world.regions


def test_memory_that_an_idle_worker_is_about_to_let_go_of_is_asked_for_again_when_it_has_run():
    world = serving("m")
    answer(world)
    world.habits.refused_uses = {"slot"}
    answer(world, peak_bytes=100 * MIB)
    assert ring(world).refusal
    assert not ring(world).slots
    world.habits.refused_uses = set()
    answer(world)
    assert sizes(world) == {112 * MIB}
    answer(world)
    assert runs_of(world)[-1].limit_bytes == 112 * MIB


@pytest.mark.parametrize("rises", [False, True])
def test_memory_that_a_busy_worker_still_holds_is_asked_for_again_when_it_lets_go(rises: bool):
    """A GPU's memory comes back when the last worker has unmapped it; one that runs does so when it is done."""
    world = serving("m", workers=2)
    for _ in range(2):
        for _ in range(2):
            world.submit("m", plan=RunPlan(0.1))
        world.pass_time(3.0)
    holder, other = world.workers()
    world.submit("m", plan=RunPlan(5.0))
    [busy] = [one for one in (holder, other) if one.is_busy]
    [idle] = {holder, other} - {busy}
    [slot] = [one for one in ring(world).slots.values() if one.life.state == "free"]
    slot.mapped_by.add(busy.number)
    busy.slots.add(slot.region)
    world.habits.refused_uses = {"slot"}
    answer(world, peak_bytes=100 * MIB)
    assert len(ring(world).slots) == 1
    assert ring(world).refusal
    assert busy.is_busy
    world.habits.refused_uses = set()
    assert not idle.is_busy
    if rises:
        world.pass_time(5.0)
    else:
        busy.die("SIGKILL")
        world.pass_time(0.1)
    assert sizes(world) == {112 * MIB}
    assert ring(world).refusal == ""
