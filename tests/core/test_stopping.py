"""The end: with what was accepted answered or not, in bounded time, and told once."""

import signal

from core.simulated import Habits, LoadPlan, RunPlan
from core.told import Told, codes, load_of, reply, run
from core.world import World
from onecopy.pool.core import events
from onecopy.pool.core.fleet import LEAVE_S, TERMINATE_S
from onecopy.pool.core.instructions import Finish, FreeRegions, SignalChild, ToChild
from onecopy.pool.core.ledger import Allowance
from onecopy.protocol.messages import Leave

NEVER = float("inf")


def leave(child):
    return ToChild(child, Leave(), [], ())


def test_an_idle_pool_lets_its_workers_go_and_finishes_when_they_are_gone():
    core = Told(workers=2).start("m")
    assert core.feed(events.StopAsked(drain=True)) == [leave(1), leave(2)]
    assert core.exited(1) == []
    assert core.exited(2) == [Finish()]


def test_a_pool_without_workers_finishes_at_once():
    assert Told().feed(events.StopAsked(drain=True)) == [Finish()]


def test_draining_answers_what_was_accepted_and_refuses_what_comes():
    core = Told().start("m")
    core.submit(1)
    core.submit(2)
    assert core.feed(events.StopAsked(drain=True)) == []
    assert codes(core.submit(3)) == {3: "supervisor_lost"}
    assert core.ended(1, 1, 1) == [reply(1), run(1, 2, 2)]
    assert core.ended(1, 2, 2) == [reply(2), leave(1)]
    assert core.exited(1) == [Finish()]


def test_draining_replaces_workers_that_die_and_loads_what_is_waited_for():
    world = World(workers=2)
    world.join()
    world.load("m", eager=False)
    numbers = [world.submit("m", retries=1, plan=RunPlan(kills=1)) for _ in range(4)]
    world.feed(events.StopAsked(drain=True))
    world.pass_time(30.0)
    assert {world.code(number) for number in numbers} == {"reply"}
    assert world.is_finished


def test_a_model_that_is_declared_while_the_pool_stops_is_refused_and_its_regions_are_freed():
    core = Told().start("m")
    core.submit(1)
    numbers = core.fill("c", 1)
    core.feed(events.StopAsked(drain=True))
    out = core.feed(events.ModelDeclared("c", load_of("n")._replace(regions=numbers)))
    assert out[0] == FreeRegions((1,))
    assert codes(out) == {"c": "supervisor_lost"}


def test_stopping_without_draining_cancels_everything_and_ends_who_is_busy():
    core = Told(workers=2).start("m")
    core.submit(1)
    core.submit(2)
    core.submit(3)
    out = core.feed(events.StopAsked(drain=False))
    assert codes(out) == {1: "cancelled", 2: "cancelled", 3: "cancelled"}
    assert out[3:] == [leave(1), SignalChild(1, signal.SIGTERM), leave(2), SignalChild(2, signal.SIGTERM)]
    assert core.exited(1, begun=2, cause="SIGTERM") == []
    assert core.ended(2, 1, 1) == [leave(2)]
    assert core.exited(2) == [Finish()]


def test_a_drain_can_be_cut_short():
    core = Told().start("m")
    core.submit(1)
    core.feed(events.StopAsked(drain=True))
    assert codes(core.feed(events.StopAsked(drain=False))) == {1: "cancelled"}
    assert core.exited(1, begun=1, cause="SIGTERM") == [Finish()]
    assert core.feed(events.StopAsked(drain=False)) == []


def test_a_worker_that_runs_what_nobody_waits_for_leaves_when_it_is_done_with_it():
    core = Told().start("m")
    core.submit(1)
    core.feed(events.Cancelled("ann", 1))
    assert core.feed(events.StopAsked(drain=True)) == []
    assert core.ended(1, 1, 1) == [leave(1)]


def test_who_does_not_leave_is_terminated_then_killed_and_then_left_to_the_kernel():
    core = Told().start("m")
    core.feed(events.StopAsked(drain=True))
    assert core.wake(LEAVE_S) == [SignalChild(1, signal.SIGTERM)]
    assert core.wake(TERMINATE_S) == [SignalChild(1, signal.SIGKILL)]
    assert core.wake(TERMINATE_S) == [Finish()]
    assert core.check_wake() == NEVER
    assert core.exited(1) == []


def test_no_worker_is_forked_any_more_once_they_are_dismissed():
    core = Told(workers=2).start("m")
    core.feed(events.StopAsked(drain=True))
    core.exited(1)
    core.wake(LEAVE_S)
    assert core.wake(TERMINATE_S) == [SignalChild(2, signal.SIGKILL)]
    assert core.exited(2) == [Finish()]


def test_a_worker_that_is_forked_when_all_are_dismissed_is_told_to_leave():
    core = Told()
    core.feed(events.ZygoteReady())
    assert core.feed(events.StopAsked(drain=True)) == []
    assert core.forked(1) == [leave(1)]
    assert core.exited(1) == [Finish()]


def test_a_zygote_that_dies_when_all_are_dismissed_is_not_replaced():
    core = Told().start()
    core.feed(events.StopAsked(drain=True))
    assert core.feed(events.ZygoteDied("exit code 0")) == []


def test_a_pool_stops_even_if_nothing_in_it_obeys():
    habits = Habits(stubborn={signal.SIGTERM, signal.SIGKILL})
    world = World(workers=2, habits=habits)
    world.join()
    world.load("m")
    world.submit("m", plan=RunPlan(seconds=1e6))
    world.pass_time(3.0)
    world.feed(events.StopAsked(drain=False))
    world.pass_time(LEAVE_S + 2 * TERMINATE_S + 0.1)
    assert world.is_finished


def test_a_pool_that_is_stopped_while_it_starts_finishes():
    world = World(workers=4)
    world.load("m")
    world.pass_time(0.51)
    world.feed(events.StopAsked(drain=True))
    world.pass_time(5.0)
    assert world.is_finished


def test_nothing_is_wanted_any_more_once_the_end_is_told():
    """What waited for memory would get what the last model leaves."""
    mb = 1 << 20
    world = World(1, allowance=Allowance(1 << 40, 150 * mb, 0))
    world.measure(1 << 40)
    world.join()
    large = LoadPlan(wants=((100 * mb, b""),))
    world.load("m", plan=large)
    world.pass_time(1.0)
    world.zygote_dies("SIGKILL")
    (worker,) = world.workers()
    worker.die("SIGKILL")
    world.pass_time(0.01)  # no worker is there, and no zygote yet that could fork one
    world.submit("m")
    world.unload("m")
    world.load("other", frozen=True, plan=large)
    assert world.core.library.waiting_fillers()
    world.feed(events.StopAsked(drain=False))
    assert type(world.instructions[-1]) is Finish
