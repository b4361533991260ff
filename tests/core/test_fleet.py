"""Processes: imports in the zygote, generations of workers, failed starts and their pauses."""

import pytest
from core.simulated import Habits, LoadPlan, RunPlan
from core.told import Told, build, done, load_of, reply, run, thaw
from core.world import World
from onecopy.pool.core import events
from onecopy.pool.core.fleet import EARLY_DEATH_S, FIRST_PAUSE_S, LONGEST_PAUSE_S
from onecopy.pool.core.instructions import ForkChild, ReplaceZygote, Report, ToChild, ToZygote
from onecopy.protocol.messages import Adopt, Leave

NEVER = float("inf")


def adopt(generation, *modules):
    return ToZygote(Adopt(generation, list(modules), []))


def leave(child):
    return ToChild(child, Leave(), [], ())


def without_reports(out):
    return [one for one in out if not isinstance(one, Report)]


def frozen(core, name, *modules, caller="c"):
    return core.feed(events.ModelDeclared((caller, name), load_of(name, modules=modules)))


def test_a_worker_that_dies_is_replaced_at_once():
    core = Told(workers=2).start()
    core.now += EARLY_DEATH_S
    assert core.exited(1) == [ForkChild(3, "worker")]


def test_modules_are_imported_before_the_model_is_ready_and_older_workers_are_replaced():
    core = Told(workers=2).start()
    assert frozen(core, "m", "a", "b") == [adopt(1, "a", "b")]
    out = core.feed(events.ModulesAdopted(1, {}, 1))
    assert out == [done(("c", "m"), "loaded"), ForkChild(3, "worker")]
    assert core.forked(3) == [leave(1), ForkChild(4, "worker")]
    assert core.submit(1) == [thaw(3), run(3, 1, 1)]
    assert core.forked(4) == [leave(2)]


def test_the_only_worker_answers_until_its_successor_is_there_but_not_for_a_model_whose_modules_it_lacks():
    core = Told().start("m")
    frozen(core, "n", "a")
    assert core.feed(events.ModulesAdopted(1, {}, 1))[-1] == ForkChild(2, "worker")
    assert core.submit(3, "n") == []
    assert core.submit(1) == [thaw(1), run(1, 1, 1)]
    assert core.ended(1, 1, 1) == [reply(1)]
    assert core.submit(2) == [run(1, 2, 2)]
    assert core.forked(2) == []
    assert core.ended(1, 2, 2) == [reply(2), leave(1), thaw(2, 2, "n"), run(2, 3, 3, weight_set=2)]


def test_a_busy_worker_of_an_older_generation_is_replaced_when_it_is_idle():
    core = Told().start("m")
    core.submit(1)
    frozen(core, "n", "a")
    assert core.feed(events.ModulesAdopted(1, {}, 1)) == [done(("c", "n"), "loaded"), ForkChild(2, "worker")]
    assert core.forked(2) == []
    assert core.ended(1, 1, 1)[1:] == [leave(1)]


def test_a_busy_worker_holds_up_the_replacement_of_no_other():
    core = Told(workers=3).start("m")
    core.submit(1)
    frozen(core, "n", "a")
    core.feed(events.ModulesAdopted(1, {}, 1))
    assert core.forked(4) == [leave(1), ForkChild(5, "worker")]
    assert core.forked(5) == [leave(2), ForkChild(6, "worker")]
    assert core.forked(6) == []
    assert core.ended(3, 1, 1)[1:] == [leave(3)]


def test_modules_that_come_while_others_are_imported_are_imported_after_them():
    core = Told().start()
    frozen(core, "m", "a")
    assert frozen(core, "n", "b") == []
    out = core.feed(events.ModulesAdopted(1, {}, 1))
    assert out == [done(("c", "m"), "loaded"), adopt(2, "a", "b")]
    out = core.feed(events.ModulesAdopted(2, {}, 1))
    assert out[0] == done(("c", "n"), "loaded")


def test_nothing_is_imported_for_a_model_whose_modules_are_known():
    core = Told().start()
    frozen(core, "m", "a")
    core.feed(events.ModulesAdopted(1, {}, 1))
    assert frozen(core, "n", "a") == [done(("c", "n"), "loaded")]


def test_a_module_that_cannot_be_imported_is_reported_and_the_model_is_ready_without():
    core = Told().start()
    frozen(core, "m", "a")
    out = core.feed(events.ModulesAdopted(1, {"a": "no such module"}, 1))
    assert out[:2] == [
        Report("workers import a each on their own: no such module"), done(("c", "m"), "loaded"),
    ]  # fmt: skip
    assert core.core.fleet.zygote.refused == {"a": "no such module"}


def test_a_zygote_in_which_a_module_started_a_thread_is_replaced_by_one_that_does_without():
    core = Told().start()
    frozen(core, "m", "good", "threads")
    out = core.feed(events.ModulesAdopted(1, {"threads": "starts a thread"}, 2))
    assert without_reports(out) == [ReplaceZygote()]
    assert core.feed(events.ZygoteReady()) == [adopt(1, "good")]
    assert done(("c", "m"), "loaded") in core.feed(events.ModulesAdopted(1, {}, 1))


def test_no_loader_is_forked_behind_an_import_that_may_leave_a_thread():
    core = Told().start()
    frozen(core, "m", "threads")
    assert core.declare("n", "factory") == []
    out = core.feed(events.ModulesAdopted(1, {"threads": "starts a thread"}, 2))
    assert without_reports(out) == [ReplaceZygote()]
    assert core.feed(events.ZygoteReady()) == [*build(2, "n"), adopt(1)]


def test_a_loader_is_forked_before_the_next_import_begins():
    core = Told().start()
    frozen(core, "m", "a")
    frozen(core, "n", "b")
    core.declare("o", "factory")
    out = core.feed(events.ModulesAdopted(1, {}, 1))
    assert out == [done(("c", "m"), "loaded"), *build(2, "o"), adopt(2, "a", "b")]


def test_a_model_all_of_whose_modules_are_refused_is_ready_all_the_same():
    core = Told().start()
    frozen(core, "m", "threads")
    core.feed(events.ModulesAdopted(1, {"threads": "starts a thread"}, 2))
    assert core.feed(events.ZygoteReady()) == [adopt(1)]
    assert done(("c", "m"), "loaded") in core.feed(events.ModulesAdopted(1, {}, 1))


def test_a_thread_that_no_module_is_caught_with_ends_in_a_zygote_without_any_and_not_in_one_after_another():
    core = Told().start()
    frozen(core, "m", "a", "b")
    assert without_reports(core.feed(events.ModulesAdopted(1, {}, 2))) == [ReplaceZygote()]
    assert core.feed(events.ZygoteReady()) == [adopt(1)]
    out = core.feed(events.ModulesAdopted(1, {}, 2))
    assert done(("c", "m"), "loaded") in out
    assert ReplaceZygote() not in out


def test_a_zygote_that_dies_while_it_imports_is_replaced_and_the_second_time_does_without_the_modules():
    core = Told().start("m")
    core.now += EARLY_DEATH_S
    frozen(core, "n", "deadly")
    assert without_reports(core.feed(events.ZygoteDied("SIGSEGV"))) == [ReplaceZygote()]
    assert core.feed(events.ZygoteReady()) == [adopt(1, "deadly")]
    core.feed(events.ZygoteDied("SIGSEGV"))
    assert core.core.fleet.zygote.refused == {"deadly": "the zygote died (SIGSEGV) when it imported this"}
    assert core.wake(1.0) == [ReplaceZygote()]
    assert core.feed(events.ZygoteReady()) == [adopt(1)]
    assert done(("c", "n"), "loaded") in core.feed(events.ModulesAdopted(1, {}, 1))


def test_only_modules_that_were_being_imported_are_blamed_for_the_death_of_the_zygote():
    core = Told().start()
    frozen(core, "m", "good")
    frozen(core, "n", "deadly")  # wanted while the other is imported
    core.feed(events.ModulesAdopted(1, {}, 1))
    for _ in range(2):
        core.feed(events.ZygoteDied("SIGSEGV"))
        core.wake(1.0)
        core.feed(events.ZygoteReady())
    assert core.core.fleet.zygote.refused.keys() == {"deadly"}


def test_the_workers_go_on_while_there_is_no_zygote():
    core = Told().start("m")
    core.feed(events.ZygoteDied("SIGKILL"))
    assert core.submit(1) == [thaw(1), run(1, 1, 1)]


def test_a_worker_that_was_never_forked_is_ordered_from_the_next_zygote_and_not_from_the_dead_one():
    core = Told()
    core.feed(events.ZygoteReady())
    assert core.feed(events.ChildExited(1, "unknown", 0, was_forked=False)) == []
    core.feed(events.ZygoteDied("SIGKILL"))
    core.wake(1.0)
    assert core.feed(events.ZygoteReady()) == [ForkChild(2, "worker")]


def test_a_loader_that_was_never_forked_is_ordered_from_the_next_zygote():
    core = Told().start()
    core.declare("m", "factory", caller="c")
    assert core.feed(events.ChildExited(2, "unknown", 0, was_forked=False)) == []
    core.feed(events.ZygoteDied("SIGKILL"))
    core.wake(1.0)
    assert core.feed(events.ZygoteReady("there are no slots here")) == [*build(3), ForkChild(4, "worker")]
    assert core.built(3) == [done("c", "loaded")]


def test_a_loader_outlives_the_zygote_that_forked_it():
    core = Told().start()
    core.declare("m", "factory", caller="c")
    core.forked(2)
    core.feed(events.ZygoteDied("SIGKILL"))
    assert core.built(2) == [done("c", "loaded")]


def test_workers_that_die_as_soon_as_they_start_are_forked_after_growing_pauses():
    core = Told().start()
    pauses = []
    for child in range(1, 12):
        assert core.exited(child) == []
        pauses.append(core.check_wake() - core.now)
        assert core.wake(pauses[-1] + 0.001) == [ForkChild(child + 1, "worker")]
        assert core.check_wake() == NEVER
        core.forked(child + 1)
    assert pauses[0] == pytest.approx(FIRST_PAUSE_S)
    assert pauses[1] == pytest.approx(2 * FIRST_PAUSE_S)
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE_S)


def test_a_pause_ends_however_late_the_core_is_woken():
    core = Told().start()
    core.exited(1)
    core.now += 100.0
    core.feed(events.ClientJoined("bob"))
    assert core.core.wake_at() <= core.now
    assert core.wake(0.0) == [ForkChild(2, "worker")]


def test_a_worker_that_dies_young_with_work_that_it_had_not_begun_is_a_failed_start_too():
    core = Told().start("m")
    core.submit(1)
    assert core.exited(1, begun=0) == []
    assert core.check_wake() < NEVER


def test_a_worker_that_worked_ends_the_growth_of_the_pauses():
    core = Told().start("m")
    for child in (1, 2, 3):
        core.exited(child)
        core.wake(5.0)
        core.forked(child + 1)
    core.submit(1)
    core.ended(4, 1, 1)
    assert core.exited(4) == [ForkChild(5, "worker")]
    core.forked(5)
    core.exited(5)
    assert core.check_wake() == pytest.approx(core.now + FIRST_PAUSE_S)


def test_a_thousand_workers_that_die_at_once_make_one_pause():
    core = Told(workers=1024).start()
    for child in range(1, 1025):
        core.exited(child)
    assert core.check_wake() == pytest.approx(core.now + FIRST_PAUSE_S)
    assert len(core.wake(1.0)) == 1024


def test_a_zygote_that_never_comes_up_is_tried_again_after_growing_pauses():
    world = World(habits=Habits(zygote_fails=10))
    world.pass_time(20.0)
    assert 4 < world.zygotes < 12
    world.pass_time(60.0)
    assert len(world.workers()) == 1


def test_there_are_never_more_than_twice_the_wanted_workers_even_if_old_ones_do_not_leave():
    core = Told(workers=2).start()
    for generation in (1, 2, 3):
        frozen(core, f"m{generation}", f"module{generation}")
        out = core.feed(events.ModulesAdopted(generation, {}, 1))
        while isinstance(out[-1], ForkChild):
            out = [leave(0), *core.forked(out[-1].child)]
    assert len(core.core.fleet.workers) == 4
    assert core.exited(1) == [ForkChild(5, "worker")]


def test_everything_that_can_go_wrong_with_modules_leaves_all_models_running():
    habits = Habits(modules={"threads": "thread", "deadly": "dies", "broken": "raises"})
    world = World(workers=2, habits=habits)
    world.join()
    names = ["good", "threads", "deadly", "broken"]
    callers = [world.load(name, plan=LoadPlan(modules=(name, "shared"))) for name in names]
    numbers = [world.submit(name, plan=RunPlan()) for name in names]
    world.pass_time(30.0)
    assert [world.outcome(caller) for caller in callers] == ["done"] * 4
    assert [world.code(number) for number in numbers] == ["reply"] * 4
    assert world.core.fleet.zygote.refused.keys() == {"threads", "deadly", "broken"}
