"""Models: loaded once when first needed, replaced between two requests, unloaded when all is answered."""

import pytest
from core.simulated import LoadPlan, RunPlan
from core.told import Told, build, codes, done, load_of, reply, run, submit_of, thaw
from core.world import World
from onecopy.pool.core import events
from onecopy.pool.core.fleet import MAX_LOADERS
from onecopy.pool.core.instructions import ForkChild, FreeRegions, Interrupt, SignalChild, ToChild
from onecopy.protocol.errors import LoadFailed
from onecopy.protocol.messages import Forget, Leave

FAILED = LoadFailed("it raised").to_record()


def forget(child, weight_set):
    return ToChild(child, Forget(weight_set), [], ())


def test_a_model_is_loaded_when_it_is_first_needed_and_only_once():
    core = Told(workers=2).start()
    assert core.declare("m", "factory", caller="c", eager=False) == [done("c", "declared")]
    assert core.submit(1) == build(3)
    assert core.submit(2) == []
    assert core.built(3) == [
        thaw(2, is_built=True), run(2, 1, 1), thaw(1, is_built=True), run(1, 2, 2, seat=1),
    ]  # fmt: skip


def test_an_eager_load_is_answered_when_it_is_done():
    core = Told().start()
    assert core.declare("m", "factory", caller="c") == build(2)
    assert core.built(2) == [done("c", "loaded")]


def test_a_load_before_the_zygote_is_up_waits_for_it_and_its_order_does_too():
    core = Told()
    assert core.declare("m", "factory", caller="c") == []
    assert core.feed(events.ZygoteReady()) == [*build(1), ForkChild(2, "worker")]


def test_models_load_beside_one_another_but_not_too_many_at_once():
    core = Told().start()
    outs = [core.declare(f"m{number}", "factory") for number in range(MAX_LOADERS + 2)]
    assert [bool(out) for out in outs] == [True] * MAX_LOADERS + [False] * 2
    core.built(2)
    assert core.exited(2) == build(2 + MAX_LOADERS, f"m{MAX_LOADERS}")


def test_requests_go_to_the_old_version_until_the_new_one_takes_over_and_the_old_is_freed_after_its_holder():
    core = Told().start()
    core.declare("m", "factory")
    core.built(2, regions=1)
    core.submit(1)
    core.submit(2)
    assert core.declare("m", "factory", caller="c") == build(3)
    core.ended(1, 1, 1)
    assert core.built(3, regions=1) == [forget(1, 1), done("c", "loaded")]
    out = core.ended(1, 2, 2)
    assert out == [reply(2)]
    assert core.submit(3)[1] == run(1, 3, 3, weight_set=2)
    assert core.feed(events.SetForgotten(1, 1, unmapped=True)) == [FreeRegions((1,))]


def test_a_version_that_nobody_holds_is_freed_as_soon_as_it_is_replaced():
    core = Told().start()
    core.declare("m", "factory")
    core.built(2, regions=1)
    core.declare("m", "factory", caller="c")
    assert core.built(3) == [FreeRegions((1,)), done("c", "loaded")]


def test_a_failed_replacement_leaves_the_old_version_where_it_is():
    core = Told().start("m")
    core.declare("m", "factory", caller="c")
    assert codes(core.feed(events.BuildFailed(2, FAILED))) == {"c": "load_failed"}
    assert core.submit(1) == [thaw(1), run(1, 1, 1)]
    assert core.declare("m", "factory", caller="d") == build(3)


def test_a_replacement_is_not_confused_with_the_load_that_it_overtakes():
    core = Told().start()
    core.declare("m", "factory", caller="first")
    core.declare("m", "factory", caller="second")
    assert core.built(2) == [done("first", "loaded")]
    assert core.built(3) == [done("second", "loaded")]


def test_a_load_that_is_overtaken_by_its_replacement_is_given_up_and_its_caller_told():
    core = Told().start()
    core.declare("m", "factory", caller="first")
    core.declare("m", "factory", caller="second")
    assert core.built(3) == [
        SignalChild(2, 9), done("first", "replaced by a newer version"), done("second", "loaded"),
    ]  # fmt: skip
    assert core.feed(events.RegionsNeeded(2, [(4096, b"")])) == []


def test_when_the_first_load_fails_its_requests_wait_for_the_replacement_that_is_on_its_way():
    core = Told().start()
    core.declare("m", "factory", caller="first")
    core.declare("m", "factory", caller="second")
    assert core.submit(1) == []
    assert codes(core.feed(events.BuildFailed(2, FAILED))) == {"first": "load_failed"}
    assert core.submit(2) == []
    assert core.built(3)[-1] == run(1, 1, 1, weight_set=2)


def test_when_the_replacement_fails_too_the_requests_fail():
    core = Told().start()
    core.declare("m", "factory", caller="first")
    core.declare("m", "factory", caller="second")
    core.submit(1)
    core.feed(events.BuildFailed(2, FAILED))
    assert codes(core.feed(events.BuildFailed(3, FAILED))) == {"second": "load_failed", 1: "load_failed"}


def test_when_the_replacement_of_a_model_that_was_never_loaded_fails_it_is_loaded_for_those_who_wait():
    core = Told().start()
    core.declare("m", "factory", eager=False)
    core.declare("m", "factory", caller="c")
    assert core.submit(1) == []
    out = core.feed(events.BuildFailed(2, FAILED))
    assert codes(out) == {"c": "load_failed"}
    assert out[1:] == build(3)


def test_a_failed_load_fails_what_waited_for_it_and_is_tried_again_when_needed_again():
    core = Told().start()
    core.declare("m", "factory", eager=False)
    core.submit(1)
    core.submit(2)
    assert codes(core.feed(events.BuildFailed(2, FAILED))) == {1: "load_failed", 2: "load_failed"}
    assert len(core.core.library.models["m"].queue) == 0
    assert core.submit(3) == build(3)


def test_a_loader_that_dies_is_a_failed_load_with_its_cause():
    core = Told().start()
    core.declare("m", "factory", caller="c")
    (told,) = core.exited(2, cause="SIGKILL")
    assert told.message.error["message"] == "the loader died (SIGKILL) while it built the model"


def test_a_second_replacement_is_refused_while_one_is_under_way():
    core = Told().start("m")
    core.declare("m", "factory")
    load = load_of("m")._replace(regions=core.fill("c", 1))
    refused = core.feed(events.ModelDeclared("c", load))
    assert codes(refused) == {"c": "invalid_request"}
    assert refused[0] == FreeRegions((1,))


def test_unloading_waits_for_what_was_submitted_and_refuses_what_comes_after():
    core = Told().start()
    core.declare("m", "factory")
    core.built(2, regions=1)
    core.submit(1)
    core.submit(2)
    assert core.feed(events.ModelRemoved("c", "m")) == []
    assert codes(core.submit(3)) == {3: "model_not_found"}
    assert codes(core.feed(events.ModelRemoved("d", "m"))) == {"d": "model_not_found"}
    assert codes(core.declare("m", "factory", caller="e")) == {"e": "invalid_request"}
    assert core.ended(1, 1, 1) == [reply(1), run(1, 2, 2)]
    assert core.ended(1, 2, 2) == [reply(2), forget(1, 1)]
    out = core.feed(events.SetForgotten(1, 1, unmapped=True))
    assert out == [FreeRegions((1,)), done("c", "unloaded")]


def test_unloading_waits_for_requests_that_still_run_on_the_version_before():
    core = Told(workers=2).start("m")
    core.submit(1, retries=1)
    core.declare("m")
    core.feed(events.ModelRemoved("c", "m"))
    assert "m" in core.core.library.models
    assert core.exited(2, begun=1)[-1] == run(1, 2, 1, weight_set=2)
    assert core.ended(1, 2, 1)[0] == reply(1)
    assert "m" not in core.core.library.models


def test_unloading_a_model_that_is_being_built_ends_the_loader():
    core = Told().start()
    core.declare("m", "factory", caller="load")
    out = core.feed(events.ModelRemoved("unload", "m"))
    assert codes(out) == {"load": "model_not_found"}
    assert [out[0], out[2]] == [SignalChild(2, 9), done("unload", "unloaded")]


def test_unloading_a_model_whose_loader_was_never_forked_forks_none():
    core = Told()
    core.declare("m", "factory")
    core.feed(events.ModelRemoved("c", "m"))
    assert core.feed(events.ZygoteReady()) == [ForkChild(2, "worker")]


def test_unloading_frees_a_frozen_model_while_its_modules_are_being_imported():
    core = Told().start()
    load = load_of("m", modules=("slow",))._replace(regions=core.fill("c", 1))
    assert len(core.feed(events.ModelDeclared("c", load))) == 1
    out = core.feed(events.ModelRemoved("d", "m"))
    assert out[1:] == [FreeRegions((1,)), done("d", "unloaded")]
    assert core.feed(events.ModulesAdopted(1, {}, 1)) == [ForkChild(2, "worker")]


def test_a_request_of_a_client_that_left_does_not_keep_a_model_from_leaving():
    core = Told().start("m")
    core.submit(1)
    core.feed(events.ModelRemoved("c", "m"))
    assert core.feed(events.ClientLeft("ann")) == [forget(1, 1), Interrupt(1, 1, kill=False)]


def test_a_worker_in_which_something_holds_on_to_freed_weights_is_replaced():
    core = Told().start("m")
    core.submit(1)
    core.ended(1, 1, 1)
    core.feed(events.ModelRemoved("c", "m"))
    out = core.feed(events.SetForgotten(1, 1, unmapped=False))
    assert out == [ForkChild(2, "worker")]
    assert core.forked(2) == [ToChild(1, Leave(), [], ())]
    assert core.exited(1) == [done("c", "unloaded")]


@pytest.mark.parametrize("outcome", ["fails", "dies", "refused"])
def test_whatever_ends_a_load_leaves_no_region_behind(outcome):
    world = World()
    caller = world.load("m", plan=LoadPlan(outcome))
    world.pass_time(3.0)
    assert world.outcome(caller) == ("out_of_budget" if outcome == "refused" else "load_failed")
    assert not world.store.open_fds


def test_replacing_a_model_under_load_loses_no_request_and_leaves_one_copy():
    world = World(workers=3)
    world.join()
    world.load("m")
    world.pass_time(1.0)
    numbers = []
    for _ in range(5):
        caller = world.load("m")
        while not world.outcome(caller):
            numbers += [world.submit("m", plan=RunPlan(0.005)) for _ in range(3)]
            world.pass_time(0.004)
    world.pass_time(5.0)
    assert {world.code(number) for number in numbers} == {"reply"}
    assert [one.name for one in world.regions.values()].count("weights") == len(LoadPlan().wants)


def test_methods_come_from_the_request_or_else_from_the_model():
    core = Told().start()
    core.declare("m", method="encode")
    core.submit(1)
    submit = submit_of(2, method="decode")
    core.feed(events.Submitted("ann", submit, []))
    core.ended(1, 1, 1)
    assert core.books.held[1].keys() == {2}
