"""There are as many workers as have work, between two numbers."""

from core.simulated import RunPlan
from core.world import World
from onecopy.pool.core.ledger import Allowance
from onecopy.pool.core.sizing import GROW_AFTER_S, SHRINK_AFTER_S

MB = 1 << 20


def world_of(least, most, **options):
    world = World(most, least_workers=least, **options)
    world.join()
    world.load("m", frozen=True)
    world.pass_time(2.0)
    return world


def ask(world, count, seconds=0.05):
    return [world.submit("m", plan=RunPlan(seconds)) for _ in range(count)]


def test_a_pool_starts_with_the_fewest_and_grows_while_requests_wait():
    world = world_of(1, 8)
    assert len(world.workers()) == 1
    numbers = ask(world, 400)
    world.pass_time(GROW_AFTER_S + 0.05)
    assert len(world.workers()) == 2
    world.pass_time(0.6)
    assert len(world.workers()) == 8
    assert "were added" in world.core.sizing.note
    world.pass_time(10.0)
    assert {world.code(number) for number in numbers} == {"reply"}


def test_it_shrinks_to_what_was_busy_at_once_when_the_rest_was_idle_for_long():
    world = world_of(1, 4)
    ask(world, 100)
    world.pass_time(5.0)
    assert len(world.workers()) == 4
    for _ in range(int(2 * SHRINK_AFTER_S / 0.5)):
        ask(world, 2)
        world.pass_time(0.5)
    assert len(world.workers()) == 2
    assert "no more than 2 were busy" in world.core.sizing.note
    world.pass_time(2 * SHRINK_AFTER_S)
    assert len(world.workers()) == 1


def test_a_short_burst_adds_none():
    world = world_of(1, 8)
    ask(world, 10, seconds=0.001)
    world.pass_time(2.0)
    assert len(world.workers()) == 1


def test_it_does_not_grow_into_memory_that_is_not_there():
    world = world_of(1, 8, allowance=Allowance(1 << 40, 100 * MB, 0))
    world.measure(1 << 40, workers={world.workers()[0].number: 40 * MB})
    ask(world, 200)
    world.pass_time(0.5)
    world.measure(1 << 40, workers={worker.number: 40 * MB for worker in world.workers()})
    world.pass_time(0.5)
    assert len(world.workers()) == 2
    assert "no memory" in world.core.sizing.note


def test_a_fixed_number_stays():
    world = world_of(0, 3)
    assert len(world.workers()) == 3
    assert not world.core.sizing.is_variable
