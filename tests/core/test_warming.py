"""Warm weight sets: tried in a throwaway fork, thawed in the zygote, inherited by workers, let go of with them."""

import pytest
from core.simulated import NO, Habits, RunPlan
from core.told import Told, done, load_of, run, thaw
from core.world import World
from onecopy.pool.core import events
from onecopy.pool.core.instructions import (
    ForkChild,
    FreeRegions,
    ReplaceZygote,
    Report,
    SignalChild,
    ToChild,
    ToZygote,
)
from onecopy.pool.core.weights import MAX_THAW_DEATHS
from onecopy.pool.core.zygote import MAX_THAW_S
from onecopy.protocol.messages import Forget, Leave


def tried(core, child, weight_set=1, error=None):
    return core.feed(events.SetThawed(child, weight_set, 0, {}, error))


def adopted(core, weight_set=1, error=None):
    return core.feed(events.SetAdopted(weight_set, 7, {"a": "opaque"}, error))


def in_zygote(weight_set=1, name="m"):
    return ToZygote(thaw(0, weight_set, name, eager=True, warm=True).message)


def trial(child, weight_set=1, name="m"):
    return [ForkChild(child, "trial"), thaw(child, weight_set, name, eager=True, warm=True)]


def leave(child):
    return ToChild(child, Leave(), [], ())


def replace(core, by):
    """The one worker dies; returns what is done besides forking its successor."""
    core.now += 10.0
    [worker] = core.core.fleet.workers
    out = core.exited(worker.child)
    assert out.pop() == ForkChild(by, "worker")
    return out


def warm(workers=1, **options):
    """A core whose one warm model is in the zygote, and in every worker."""
    core = Told(workers=workers).start()
    assert core.declare("m", caller="c", warm=True, **options) == [done("c", "loaded"), *trial(workers + 1)]
    assert tried(core, workers + 1) == [in_zygote()]
    assert core.exited(workers + 1, cause="exit code 0") == []
    assert adopted(core) == [ForkChild(workers + 2, "worker")]
    for child in range(workers + 2, 2 * workers + 1):
        assert core.forked(child) == [leave(child - workers - 1), ForkChild(child + 1, "worker")]
    assert core.forked(2 * workers + 1) == [leave(workers)]
    for child in range(1, workers + 1):
        assert core.exited(child, cause="exit code 0") == []
    return core


def weight_set(core):
    return core.core.library.holdings.sets[1]


def test_a_warm_model_is_tried_then_thawed_in_the_zygote_and_found_by_workers_forked_after_that():
    core = warm(workers=3)
    assert weight_set(core).holders == weight_set(core).inheritors == {5, 6, 7}
    assert (weight_set(core).private_bytes, weight_set(core).opaque) == (7, {"a": "opaque"})
    assert core.submit(1) == [run(7, 1, 1)]


def test_a_model_runs_while_it_is_tried_in_a_worker_that_thaws_it_itself_and_is_replaced_then():
    core = Told().start()
    core.declare("m", warm=True)
    assert core.submit(1) == [thaw(1, warm=True), run(1, 1, 1)]
    core.ended(1, 1, 1)
    tried(core, 2)
    assert core.submit(2) == [run(1, 2, 2)]
    assert adopted(core) == [ForkChild(3, "worker")]
    assert core.forked(3) == []
    assert core.ended(1, 2, 2)[1:] == [leave(1)]
    assert core.submit(3) == [run(3, 3, 3)]


def test_nobody_is_forked_behind_a_thaw_and_who_died_meanwhile_is_replaced_after_it():
    core = Told(workers=2).start("n")
    core.now += 10.0
    core.declare("m", warm=True)
    tried(core, 3, weight_set=2)
    assert core.exited(1) == []
    assert core.declare("o", "factory") == []
    out = adopted(core, weight_set=2)
    assert [one for one in out if isinstance(one, ForkChild)] == [
        ForkChild(4, "loader"), ForkChild(5, "worker"), ForkChild(6, "worker"),
    ]  # fmt: skip
    assert core.forked(5) == []
    assert core.forked(6) == [leave(2)]


def test_what_a_throwaway_fork_refuses_every_worker_thaws_at_once_and_so_do_those_forked_later():
    core = Told(workers=2).start()
    core.declare("m", warm=True)
    said = "each worker thaws it on its own, as soon as it starts: no"
    assert tried(core, 3, error=NO) == [
        Report(f"m: {said}"), thaw(1, eager=True, warm=True), thaw(2, eager=True, warm=True),
    ]  # fmt: skip
    assert core.core.library.warming.refused == {1: said}
    core.exited(3, cause="exit code 0")
    core.now += 10.0
    assert core.exited(1) == [ForkChild(4, "worker")]
    assert core.forked(4) == [thaw(4, eager=True, warm=True)]


def test_what_kills_two_throwaway_forks_is_thawed_when_it_is_run():
    core = Told().start()
    core.declare("m", warm=True)
    assert core.exited(2) == trial(3)
    said = "each worker thaws it on its own, when it is first run there: 2 processes that tried it died (SIGSEGV)"
    assert core.exited(3) == [Report(f"m: {said}")]
    assert core.submit(1) == [thaw(1, warm=True), run(1, 1, 1)]


def test_what_hangs_in_a_throwaway_fork_is_ended_and_the_next_is_tried():
    core = Told().start()
    core.declare("m", warm=True)
    core.declare("n", caller="d", warm=True)
    assert core.check_wake() == core.now + MAX_THAW_S
    out = core.wake(MAX_THAW_S)
    assert "it took longer than 5 s" in out[0].text
    assert out[1:] == [SignalChild(2, 9)]
    assert core.exited(2, cause="SIGKILL") == trial(3, 2, "n")


def test_a_throwaway_fork_that_never_was_is_forked_from_the_next_zygote():
    core = Told().start()
    core.declare("m", warm=True)
    core.feed(events.ChildExited(2, "unknown", 0, was_forked=False))
    core.feed(events.ZygoteDied("SIGKILL"))
    core.wake(1.0)
    assert core.feed(events.ZygoteReady()) == [ForkChild(3, "worker"), *trial(4)]


def test_a_zygote_that_cannot_thaw_what_could_be_thawed_is_replaced_and_does_without():
    core = Told().start()
    core.declare("m", warm=True)
    tried(core, 2)
    out = adopted(core, error=NO)
    assert out[1:] == [thaw(1, eager=True, warm=True), ReplaceZygote()]
    assert core.feed(events.ZygoteReady()) == []


def test_a_zygote_that_hangs_is_replaced():
    core = Told().start()
    core.declare("m", warm=True)
    tried(core, 2)
    core.exited(2, cause="exit code 0")
    out = core.wake(MAX_THAW_S)
    assert "it took longer than 5 s" in out[0].text
    assert out[1:] == [ReplaceZygote()]


def test_a_zygote_that_dies_twice_over_one_model_does_without_it_and_keeps_the_others():
    world = World(workers=2, habits=Habits(thaws={"bad": "zygote: dies"}))
    world.join()
    world.load("good", warm=True)
    world.load("bad", warm=True)
    world.pass_time(20.0)
    assert any("bad: each worker" in text and "the zygote died" in text for text in world.reports)
    assert [one.load.name for one in world.core.fleet.zygote.has.values()] == ["good"]
    assert [sorted(worker.mapped) for worker in world.workers()] == [[1], [1]]


def test_a_model_that_two_zygotes_thawed_is_not_blamed_for_the_deaths_of_two_others():
    core = warm()
    for _ in range(MAX_THAW_DEATHS + 1):
        core.feed(events.ZygoteDied("SIGKILL"))
        core.wake(10.0)
        assert core.feed(events.ZygoteReady()) == [in_zygote()]
        core.feed(events.ZygoteDied("SIGKILL"))
        core.wake(10.0)
        assert core.feed(events.ZygoteReady()) == [in_zygote()]
        adopted(core)
    assert core.core.library.warming.refused == {}


def test_when_two_workers_in_a_row_die_over_a_model_it_is_thawed_when_it_is_run():
    core = Told().start()
    core.declare("m", warm=True)
    assert thaw(1, eager=True, warm=True) in tried(core, 2, error=NO)
    core.exited(2, cause="exit code 0")
    tried(core, 1)
    for child, thaws in enumerate((False, True, False), start=3):
        assert replace(core, by=child) == []
        assert core.forked(child) == [thaw(child, eager=True, warm=True)]
        if thaws:
            tried(core, child)
    assert replace(core, by=6) == []
    core.forked(6)
    [report] = replace(core, by=7)
    assert "m is not kept warm: 2 workers died when they were to thaw it" in report.text
    assert core.forked(7) == []


def test_workers_that_outlive_their_zygote_are_replaced_one_by_one_once_the_next_one_has_thawed():
    core = warm(workers=2)
    core.now += 10.0
    core.exited(4)  # its successor is ordered, and lost
    core.feed(events.ChildExited(6, "unknown", 0, was_forked=False))
    core.feed(events.ZygoteDied("SIGKILL"))
    assert core.feed(events.ZygoteReady()) == [ForkChild(7, "worker"), in_zygote()]
    core.forked(7)
    assert adopted(core) == [ForkChild(8, "worker")]
    assert core.forked(8) == [leave(5), ForkChild(9, "worker")]
    assert core.forked(9) == [leave(7)]
    core.exited(5, cause="exit code 0")
    core.exited(7, cause="exit code 0")
    assert weight_set(core).inheritors == {8, 9}


def test_unloading_ends_the_zygote_and_frees_the_memory_when_the_last_worker_that_has_inherited_it_is_gone():
    core = Told(workers=2).start()
    load = load_of("m", warm=True)._replace(regions=core.fill("c", 1))
    core.feed(events.ModelDeclared("c", load))
    core.feed(events.SetThawed(3, 1, 0, {}, None))
    core.exited(3, cause="exit code 0")
    adopted(core)
    core.forked(4)
    core.forked(5)
    core.exited(1)
    core.exited(2)
    assert core.feed(events.ModelRemoved("d", "m")) == [ReplaceZygote()]
    assert core.declare("n", caller="e") == [done("e", "loaded")]
    assert core.submit(1, "n") == [thaw(5, 2, "n"), run(5, 1, 1, weight_set=2)]
    core.ended(5, 1, 1)
    assert core.feed(events.ZygoteReady()) == [ForkChild(6, "worker")]
    assert core.forked(6) == [leave(4), ForkChild(7, "worker")]
    assert core.forked(7) == [leave(5)]
    assert core.exited(4, cause="exit code 0") == []
    assert core.exited(5, cause="exit code 0") == [FreeRegions((1,)), done("d", "unloaded")]


def test_who_has_thawed_it_for_himself_forgets_it_and_who_has_inherited_it_goes():
    core = warm()
    assert core.declare("n", caller="d") == [done("d", "loaded")]
    core.submit(1, "n")
    core.ended(3, 1, 1)
    assert core.feed(events.ModelRemoved("e", "n")) == [ToChild(3, Forget(2), [], ())]
    assert core.feed(events.ModelRemoved("f", "m")) == [ReplaceZygote()]


def test_a_model_that_is_unloaded_while_it_is_tried_is_freed_with_the_fork_that_tried_it():
    core = Told().start()
    core.declare("m", warm=True)
    assert core.feed(events.ModelRemoved("c", "m")) == [SignalChild(2, 9)]
    assert tried(core, 2) == []
    assert core.exited(2, cause="SIGKILL") == [done("c", "unloaded")]


def test_a_fork_that_tries_another_is_ended_when_what_it_has_inherited_is_unloaded_and_tries_again():
    core = warm()
    assert core.declare("n", caller="d", warm=True)[1:] == trial(4, 2, "n")
    assert core.feed(events.ModelRemoved("e", "m")) == [SignalChild(4, 9), ReplaceZygote()]
    core.exited(4, cause="SIGKILL")
    assert core.feed(events.ZygoteReady()) == [ForkChild(5, "worker"), *trial(6, 2, "n")]


@pytest.mark.parametrize("habit", ["thread", "hangs", "zygote: thread", "zygote: hangs", "zygote: dies"])
def test_whatever_a_model_does_when_it_is_thawed_the_others_are_warm_and_all_are_answered(habit):
    world = World(workers=3, habits=Habits(thaws={"bad": habit}))
    world.join()
    world.load("bad", warm=True)
    world.load("good", warm=True)
    numbers = [world.submit(name, plan=RunPlan(), retries=0) for name in ("good", "bad") * 5]
    world.pass_time(30.0)
    assert {world.code(number) for number in numbers} == {"reply"}
    good = next(one.number for one in world.core.library.holdings.sets.values() if one.load.name == "good")
    assert world.core.fleet.zygote.has.keys() == {good}
    assert all(good in worker.mapped for worker in world.workers())
    assert [name for name in world.reports if name.startswith("bad: ")]
