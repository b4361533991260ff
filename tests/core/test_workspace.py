"""Slots: who has which, how large they are, and what becomes of them."""

from core.simulated import RunPlan
from core.world import NO_MEMORY, World
from onecopy.pool.core import events
from onecopy.pool.core.instructions import EmptyRegion, FreeRegions, GrowRegion, MakeRegion, Remember
from onecopy.pool.core.rings import FIRST_BYTES
from onecopy.protocol.messages import MapSlot, Run, UnmapSlot, Used

MIB = 1 << 20


def serving(*models: str, workers: int = 1, slots: int = 0, slot_bytes: int = 0, **options) -> World:
    world = World(workers, slots or workers, slot_bytes=slot_bytes)
    world.join()
    for name in models:
        world.load(name, **options)
    world.pass_time(3.0)
    return world


def ring(world: World, name: str = "device"):
    return world.core.workspace.rings[name]


def answer(world: World, model: str = "m", **plan) -> str:
    number = world.submit(model, plan=RunPlan(**plan))
    world.pass_time(3.0)
    return world.code(number)


def slot_regions(world: World) -> list[int]:
    return [number for number, region in world.regions.items() if region.name == "slot"]


def runs_of(world: World) -> list[Run]:
    return [one for one in world.said if isinstance(one, Run)]


def test_a_ring_has_a_slot_for_each_seat_and_all_models_of_a_device_share_it():
    world = serving("m1", "m2", "m3", workers=8, slots=2)
    assert len(slot_regions(world)) == 2
    assert set(ring(world).needs_bytes.values()) == {0}
    assert ring(world).size_bytes == FIRST_BYTES


def test_a_run_has_a_seat_and_a_slot_of_which_it_is_told_how_much_it_may_use():
    world = serving("m")
    assert answer(world) == "reply"
    [run] = runs_of(world)
    assert (run.seat, run.slot, run.limit_bytes) == (0, *slot_regions(world), FIRST_BYTES)
    assert [one.slot for one in world.said if isinstance(one, MapSlot)] == slot_regions(world)


def test_a_worker_maps_a_slot_once():
    world = serving("m")
    for _ in range(3):
        assert answer(world) == "reply"
    assert len([one for one in world.said if isinstance(one, MapSlot)]) == 1


def test_the_slot_that_was_used_last_is_used_next_so_that_others_never_get_pages():
    world = serving("m", workers=4, slots=4)
    for _ in range(5):
        answer(world)
    assert len({run.slot for run in runs_of(world)}) == 1


def test_a_run_that_does_not_fit_makes_all_slots_large_enough_for_the_next():
    world = serving("m", workers=2)
    answer(world, peak_bytes=100 * MIB)
    assert ring(world).spills == 1
    need_bytes = FIRST_BYTES + 45 * MIB  # what did not fit, and a fourth of that for gaps
    assert {world.regions[number].size_bytes for number in slot_regions(world)} == {need_bytes}
    assert world.remembered[-1].need_bytes == need_bytes
    answer(world, peak_bytes=100 * MIB)
    assert runs_of(world)[-1].limit_bytes == need_bytes
    assert (ring(world).spills, ring(world).spilled_bytes) == (1, 0)


def test_gaps_that_leave_too_little_room_make_the_slot_larger_all_the_same():
    world = serving("m")
    worker, version = world.workers()[0].number, world.core.library.models["m"].current
    world.submit("m", plan=RunPlan(1.0))
    world.feed(events.SlotUsed(worker, Used(version.number, "x", 50 * MIB, 20 * MIB, 0)))
    assert ring(world).size_bytes == FIRST_BYTES + 25 * MIB


def test_what_is_private_because_a_model_forks_makes_no_slot_larger_run_after_run():
    world = serving("m")
    worker, version = world.workers()[0].number, world.core.library.models["m"].current
    world.submit("m", plan=RunPlan(1.0))
    for _ in range(10):
        world.feed(events.SlotUsed(worker, Used(version.number, "x", 40 * MIB, 40 * MIB, 0)))
    assert ring(world).size_bytes == 160 * MIB


def test_slots_of_a_fixed_size_stay_as_they_are():
    world = serving("m", slot_bytes=16 * MIB)
    for _ in range(2):
        assert answer(world, peak_bytes=100 * MIB) == "reply"
    assert {run.limit_bytes for run in runs_of(world)} == {16 * MIB}
    assert ring(world).spilled_bytes == 84 * MIB
    assert not [one for one in world.instructions if isinstance(one, GrowRegion)]


def test_what_is_remembered_is_there_from_the_start():
    world = serving("m")
    answer(world, peak_bytes=200 * MIB)
    [remembered] = [one for one in world.remembered if isinstance(one, Remember)]
    known = {remembered.identity: {remembered.signature: remembered.need_bytes}}
    later = World(1, 1, history=known)
    later.join()
    later.load("m")
    later.pass_time(3.0)
    assert ring(later).size_bytes == FIRST_BYTES + 170 * MIB
    answer(later, peak_bytes=200 * MIB)
    assert ring(later).spills == 0


def test_when_the_large_model_is_gone_its_pages_go_back_and_the_limit_with_them():
    world = serving("small", "large")
    answer(world, "small", peak_bytes=80 * MIB)
    answer(world, "large", peak_bytes=1024 * MIB)
    [slot] = slot_regions(world)
    world.unload("large")
    world.pass_time(1.0)
    assert EmptyRegion(slot, 84 * MIB) in world.instructions
    answer(world, "small", peak_bytes=80 * MIB)
    assert runs_of(world)[-1].limit_bytes == 84 * MIB


def test_pages_under_a_run_are_not_taken_away_before_it_has_ended():
    world = serving("small", "large", workers=2)
    answer(world, "large", peak_bytes=1024 * MIB)
    number = world.submit("small", plan=RunPlan(2.0, peak_bytes=80 * MIB))
    world.unload("large")
    world.pass_time(1.0)
    running = runs_of(world)[-1].slot
    assert not [one for one in world.instructions if isinstance(one, EmptyRegion) and one.region == running]
    world.pass_time(3.0)
    assert world.code(number) == "reply"
    assert [one for one in world.instructions if isinstance(one, EmptyRegion) and one.region == running]


def test_slots_end_with_the_last_model():
    world = serving("m", workers=2)
    answer(world)
    world.unload("m")
    world.pass_time(1.0)
    assert not slot_regions(world)
    assert not world.core.workspace.rings
    assert not any(worker.slots for worker in world.workers())


def test_a_workspace_of_its_own_has_slots_of_its_own_and_private_has_none():
    world = serving("m", workers=2)
    world.load("own", workspace="speech")
    world.load("alone", workspace="private")
    world.pass_time(1.0)
    assert set(world.core.workspace.rings) == {"device", "speech"}
    for name in ("m", "own", "alone"):
        assert answer(world, name) == "reply"
    slots = [run.slot for run in runs_of(world)]
    assert slots[0]
    assert slots[1] not in (0, slots[0])
    assert runs_of(world)[2][-2:] == (0, 0)


def test_one_lease_covers_all_that_is_handed_ahead_of_whatever_ring():
    world = serving("m", workers=1)
    world.load("own", workspace="speech")
    world.pass_time(1.0)
    for name in ("m", "own") * 3:
        answer(world, name, seconds=0.0001)
    for name in ("m", "own", "m"):
        world.submit(name, plan=RunPlan(0.0001))
    assert [run.seat for run in runs_of(world)[-3:]] == [0, 0, 0]
    assert {slot.life.state for name in ("device", "speech") for slot in ring(world, name).slots.values()} == {
        "leased"
    }
    world.pass_time(1.0)
    assert {slot.life.state for name in ("device", "speech") for slot in ring(world, name).slots.values()} == {
        "free"
    }


def test_the_slot_of_a_dead_worker_is_replaced_and_never_used_again():
    world = serving("m", workers=2)
    first = world.submit("m", plan=RunPlan(0.5, kills=1))
    world.pass_time(0.1)
    [lost] = {run.slot for run in runs_of(world)}
    world.pass_time(3.0)
    assert world.code(first) == "worker_died"
    assert lost not in world.regions
    assert len(slot_regions(world)) == 2
    for _ in range(4):
        answer(world)
    assert lost not in {run.slot for run in runs_of(world)[1:]}


def test_who_else_has_the_slot_of_a_dead_worker_mapped_lets_go_of_it():
    world = serving("m", workers=2, slots=1)
    for _ in range(4):
        answer(world)
    one, other = world.workers()
    world.submit("m", plan=RunPlan(5.0))
    [busy] = [worker for worker in (one, other) if worker.is_busy]
    idle = other if busy is one else one
    idle.slots |= busy.slots  # it had run there once
    for slot in ring(world).slots.values():
        slot.mapped_by.add(idle.number)
    busy.die("SIGKILL")
    world.pass_time(0.01)
    assert not idle.slots


def test_a_worker_that_dies_idle_costs_no_slot():
    world = serving("m", workers=2)
    answer(world)
    before = slot_regions(world)
    for worker in world.workers():
        worker.die("SIGKILL")
    world.pass_time(3.0)
    assert slot_regions(world) == before


def test_a_model_that_keeps_something_once_per_worker_stays_in_slots():
    world = serving("m", workers=2, slots=2)
    for _ in range(2):
        numbers = [world.submit("m", plan=RunPlan(0.1, escapes=True)) for _ in range(2)]
        world.pass_time(3.0)
        if not world.core.workspace.stateful:
            assert {world.code(number) for number in numbers} == {"reply"}
            assert all(run.slot for run in runs_of(world))
    assert world.core.workspace.stateful
    assert world.reports == ["m keeps tensors between its runs; it runs outside of the workspace from now on"]
    answer(world)
    assert runs_of(world)[-1].slot == 0


def test_a_new_version_of_a_stateful_model_gets_another_chance():
    world = serving("m")
    for _ in range(2):
        answer(world, escapes=True)
    assert world.core.workspace.stateful
    world.load("m")
    world.pass_time(3.0)
    assert not world.core.workspace.stateful
    answer(world)
    assert runs_of(world)[-1].slot


def test_without_memory_for_slots_runs_go_without_and_it_is_said():
    world = World(2, 2)
    world.habits.refused_uses = {"slot"}
    world.join()
    world.load("m")
    world.pass_time(3.0)
    assert answer(world) == "reply"
    assert runs_of(world)[0].slot == 0
    assert f"workspace 'device': runs take private memory instead: {NO_MEMORY['message']}" in world.reports


def test_a_slot_that_cannot_grow_stays_as_large_as_it_is():
    world = serving("m")
    world.habits.refused_uses = {"slot"}
    for _ in range(3):
        answer(world, peak_bytes=100 * MIB)
    assert {run.limit_bytes for run in runs_of(world)} == {FIRST_BYTES}
    assert ring(world).spills == 3
    assert len([one for one in world.instructions if isinstance(one, GrowRegion)]) <= 2


def test_a_slot_that_was_refused_is_asked_for_again_once_something_is_freed_and_said_once():
    world = World(2, 2)
    world.habits.refused_uses = {"slot"}
    world.join()
    world.load("m")
    world.load("other")
    world.pass_time(3.0)
    assert answer(world) == "reply"
    assert len([one for one in world.reports if "private memory" in one]) == 1
    world.habits.refused_uses = set()
    assert answer(world) == "reply"
    assert runs_of(world)[-1].slot == 0  # nothing says that there is memory now
    world.unload("other")
    world.pass_time(1.0)
    assert answer(world) == "reply"
    assert runs_of(world)[-1].slot
    assert ring(world).refusal == ""


def test_a_slot_that_could_not_grow_grows_once_something_is_freed():
    world = serving("m", "other")
    world.habits.refused_uses = {"slot"}
    answer(world, peak_bytes=100 * MIB)
    assert ring(world).refusal
    world.habits.refused_uses = set()
    world.unload("other")
    world.pass_time(1.0)
    answer(world, peak_bytes=100 * MIB)
    assert runs_of(world)[-1].limit_bytes == FIRST_BYTES + 45 * MIB
    assert ring(world).refusal == ""


def test_one_of_several_slots_that_was_refused_is_not_forgotten_because_another_was_made():
    world = World(2, 2)
    world.habits.refused_uses = {"slot"}
    world.join()
    world.load("m")
    world.load("other")
    world.pass_time_until(lambda: "device" in world.core.workspace.rings)
    assert ring(world).refusal
    world.habits.refused_uses = set()
    world.load("third")
    world.pass_time(1.0)
    assert len(slot_regions(world)) == 2
    assert ring(world).refusal == ""


def test_where_there_is_no_allocator_there_are_no_slots():
    world = World(1, 1)
    world.habits.without_slots = "no compiler"
    world.join()
    world.load("m")
    world.pass_time(3.0)
    assert answer(world) == "reply"
    assert not [one for one in world.instructions if isinstance(one, MakeRegion)]
    assert world.core.workspace.without == "no compiler"


def test_a_late_word_of_a_worker_that_is_gone_or_of_a_set_that_is_freed_changes_nothing():
    world = serving("m", workers=2)
    answer(world)
    world.feed(events.SlotUsed(99, Used(1, "x", 500 * MIB, 0, 64)))
    assert not world.core.workspace.stateful
    world.feed(events.SlotUsed(1, Used(77, "x", 500 * MIB, 0, 0)))
    world.unload("m")
    world.pass_time(1.0)
    world.feed(events.SlotUsed(1, Used(1, "x", 500 * MIB, 0, 0)))
    assert not world.core.workspace.rings


def test_everything_that_was_made_is_freed():
    world = serving("m1", "m2", workers=3, slots=2)
    for name in ("m1", "m2") * 3:
        answer(world, name, peak_bytes=100 * MIB)
    world.unload("m1")
    world.unload("m2")
    world.pass_time(1.0)
    made = [one.region for one in world.instructions if isinstance(one, MakeRegion)]
    freed = [number for one in world.instructions if isinstance(one, FreeRegions) for number in one.regions]
    assert set(made) <= set(freed)
    mapped = [one.slot for one in world.said if isinstance(one, MapSlot)]
    unmapped = [one.slot for one in world.said if isinstance(one, UnmapSlot)]
    assert sorted(mapped) == sorted(unmapped)
