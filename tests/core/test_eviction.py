"""Weight sets leave memory when others need it, and come back when they are needed."""

import signal

import pytest
from core.simulated import LoadPlan, RunPlan
from core.world import MOVE_S, NO_MEMORY, World
from onecopy.pool.core.fleet import MAX_GPU_LOADERS
from onecopy.pool.core.ledger import CONTEXT_BYTES, Allowance
from onecopy.pool.core.mailboxes import Budget
from onecopy.pool.core.position import Position
from onecopy.pool.core.residents import LEAST_STAY_S

MB = 1 << 20
ONE = LoadPlan(wants=((100 * MB, b""),))


def world_of(*names, room_mb=0, workers=2, **options):
    """A pool in which these models are loaded, 100 MB each, with room for so many megabytes of weights."""
    world = World(workers, allowance=Allowance(1 << 40, room_mb * MB, 0), **options)
    world.measure(1 << 40)
    world.join()
    for name in names:
        load(world, name)
    world.pass_time(2.0)
    return world


def load(world, name, plan=ONE, **options):
    return world.load(name, frozen=True, workspace="private", plan=plan, **options)


def states(world):
    return {name: model.current.life.state for name, model in world.core.library.models.items()}


def run(world, name, **more):
    number = world.submit(name, plan=RunPlan(0.001), **more)
    world.pass_time_until(lambda: world.code(number))
    return world.code(number)


def test_the_least_used_set_leaves_for_one_that_is_loaded_and_comes_back_when_it_is_asked_for():
    world = world_of("a", "b", room_mb=250)
    for name in ("a", "a", "b"):
        assert run(world, name) == "reply"
    caller = load(world, "c")
    world.pass_time(1.0)
    assert world.outcome(caller) == "done"
    assert states(world) == {"a": "ready", "b": "evicted", "c": "ready"}
    assert len(world.disk) == 1
    assert run(world, "b") == "reply"
    assert states(world) == {"a": "ready", "b": "ready", "c": "evicted"}
    version = world.core.library.models["b"].current
    assert (version.evictions, version.returns) == (1, 1)


def test_all_that_waits_for_a_set_waits_for_one_return():
    world = world_of("a", "b", room_mb=150)
    first, second = ("a", "b") if states(world)["a"] == "evicted" else ("b", "a")
    numbers = [world.submit(first, plan=RunPlan(0.001)) for _ in range(20)]
    world.pass_time(1.0)
    assert {world.code(number) for number in numbers} == {"reply"}
    assert world.core.library.models[first].current.returns == 1
    assert states(world)[second] == "evicted"


def test_models_that_are_all_asked_for_take_turns_and_most_of_the_time_is_work():
    world = world_of("a", "b", "c", room_mb=150, workers=1)
    asked = [world.submit(name, plan=RunPlan(0.01)) for _ in range(200) for name in "abc"]
    began = world.now
    world.pass_time_until(lambda: all(world.code(number) for number in asked), 100.0)
    assert {world.code(number) for number in asked} == {"reply"}
    assert world.now - began < 1.7 * 200 * 3 * 0.01
    assert world.core.library.models["a"].current.returns < 20


def test_what_could_not_fit_at_all_is_refused_with_the_numbers():
    world = world_of("a", room_mb=250)
    world.pin("a")
    caller = load(world, "b", LoadPlan(wants=((200 * MB, b""),)))
    assert world.outcome(caller) == "out_of_budget"
    error = world.answers[caller].error
    assert error["details"]["needed"] == 200 * MB
    assert error["details"]["weights"] == 100 * MB
    assert "209.7 MB" in error["message"]
    assert "Eviction could free: nothing" in error["message"]
    assert states(world) == {"a": "ready"}


def test_a_loader_that_does_not_fit_fails_its_load_by_name_and_nobody_else_is_harmed():
    world = world_of("a", room_mb=150)
    caller = world.load("b", workspace="private", plan=LoadPlan(wants=((200 * MB, b""),)))
    world.pass_time(2.0)
    assert world.outcome(caller) == "out_of_budget"
    assert "loading b needs 209.7 MB" in world.answers[caller].error["message"]
    assert run(world, "a") == "reply"


def test_loads_that_hold_one_another_up_come_one_after_the_other():
    world = world_of(room_mb=250, workers=1)
    plan = LoadPlan(wants=((60 * MB, b""), (60 * MB, b"")))
    callers = [world.load(name, workspace="private", plan=plan) for name in "abcd"]
    world.pass_time(10.0)
    assert [world.outcome(caller) for caller in callers] == ["done"] * 4
    assert sorted(states(world).values()) == ["evicted", "evicted", "ready", "ready"]


@pytest.mark.parametrize("why", ["pinned", "warm", "attached", "session", "file"])
def test_what_is_in_use_or_wanted_there_stays(why):
    world = world_of(room_mb=150)
    plan = LoadPlan(wants=((100 * MB, b""),))
    load(world, "a", plan, warm=why == "warm")
    world.pass_time(3.0)
    if why == "pinned":
        world.pin("a")
    elif why == "attached":
        world.attach("a")
    elif why == "session":
        run(world, "a", session="s")
    elif why == "file":
        number = world.core.library.models["a"].current.regions[0]
        record = world.core.library.holdings.regions[number]
        record.is_file = record.is_elsewhere = True
        world.core.library.holdings.regions.resident_bytes -= 100 * MB
        world.measure(1 << 40, others_bytes=100 * MB)
    caller = world.evict("a")
    assert world.outcome(caller) == "invalid_request"
    assert "stays in memory" in world.answers[caller].error["message"]
    assert world.outcome(load(world, "b")) == "out_of_budget"
    assert states(world) == {"a": "ready"}


def test_one_may_be_evicted_by_hand_and_the_answer_comes_when_it_is_out():
    world = world_of("a")
    caller = world.evict("a")
    assert world.outcome(caller) == ""
    world.pass_time(1.0)
    assert world.outcome(caller) == "done"
    assert states(world) == {"a": "evicted"}
    assert world.core.library.holdings.regions.resident_bytes == 0
    assert world.outcome(world.evict("a")) == "done"
    assert world.outcome(world.evict("b")) == "model_not_found"


def test_a_pin_brings_a_set_back():
    world = world_of("a")
    world.evict("a")
    world.pass_time(1.0)
    world.pin("a")
    world.pass_time(1.0)
    assert states(world) == {"a": "ready"}


def test_requests_that_come_while_it_leaves_are_answered_when_it_is_back():
    world = world_of("a")
    run(world, "a")
    world.evict("a")
    assert states(world) == {"a": "evicting"}
    assert run(world, "a") == "reply"


def test_what_cannot_be_written_out_stays_and_is_not_tried_again_and_again():
    world = world_of("a", room_mb=150)
    world.habits.refused_uses = {"disk"}
    caller = load(world, "b")
    world.pass_time(1.0)
    assert world.outcome(caller) == "out_of_budget"
    assert states(world) == {"a": "ready"}
    assert any("a stays in memory: no memory" in text for text in world.reports)
    assert run(world, "a") == "reply"


def test_what_cannot_be_read_back_fails_what_waits_for_it_and_is_tried_again_for_the_next():
    world = world_of("a")
    world.evict("a")
    world.pass_time(1.0)
    world.habits.refused_uses = {"memory"}
    assert run(world, "a") == "out_of_budget"
    assert states(world) == {"a": "evicted"}
    world.habits.refused_uses = set()
    assert run(world, "a") == "reply"


def test_a_blob_that_others_lie_in_stays_and_leaves_with_the_last_of_them():
    shared = ((100 * MB, b"s" * 16), (10 * MB, b""))
    world = world_of()
    load(world, "a", LoadPlan(wants=shared))
    load(world, "b", LoadPlan(wants=shared))
    world.pass_time(2.0)
    regions = world.core.library.holdings.regions
    world.evict("a")
    world.pass_time(1.0)
    assert regions.resident_bytes == 110 * MB
    world.evict("b")
    world.pass_time(1.0)
    assert regions.resident_bytes == 0
    assert run(world, "a") == "reply"
    assert regions.resident_bytes == 110 * MB


def test_sets_that_share_everything_leave_together_when_that_is_the_only_way():
    shared = LoadPlan(wants=((100 * MB, b"s" * 16),))
    world = world_of(room_mb=150)
    load(world, "a", shared)
    load(world, "b", shared)
    world.pass_time(2.0)
    caller = load(world, "c")
    world.pass_time(2.0)
    assert world.outcome(caller) == "done"
    assert states(world) == {"a": "evicted", "b": "evicted", "c": "ready"}


def test_a_model_may_be_unloaded_at_any_stage():
    for moment_s in (0.0, 0.001, 0.01, 0.04, 0.1):
        for is_wanted in (False, True):
            world = world_of("a")
            run(world, "a")
            world.evict("a")
            world.pass_time(moment_s)
            if is_wanted:
                world.submit("a", plan=RunPlan(0.001))
                world.pass_time(moment_s)
            caller = world.unload("a")
            world.pass_time(5.0)
            assert world.outcome(caller) == "done"
            assert not world.store.open_fds


def test_a_worker_that_cannot_let_go_is_replaced_and_another_set_leaves_meanwhile():
    world = world_of("a", "b", room_mb=250, workers=1)
    run(world, "a")
    world.submit("a", plan=RunPlan(8.0))  # its worker reads nothing meanwhile
    world.pass_time(LEAST_STAY_S + 1.0)
    world.core.library.models["b"].heat.add(1000, world.now)  # so that the other is the first to leave
    caller = load(world, "c")
    world.pass_time(0.5)
    assert states(world)["a"] == "evicting"
    world.pass_time(2.0)
    assert states(world)["b"] == "evicted"
    assert world.outcome(caller) == "done"
    world.pass_time(10.0)
    assert world.core.requests.unanswered == 0


def test_less_memory_than_before_ends_in_evictions():
    world = world_of("a", "b", "c")
    world.measure(1 << 40, available_bytes=-150 * MB)
    world.pass_time(1.0)
    assert sorted(states(world).values()) == ["evicted", "evicted", "ready"]


def test_what_a_loader_has_built_for_itself_is_not_counted_again_when_it_lies_in_regions():
    world = world_of(room_mb=300)
    caller = world.load("a", workspace="private", plan=LoadPlan(seconds=1.0, wants=((100 * MB, b""),) * 2))
    world.pass_time(0.5)
    (loader,) = world.loaders()
    world.measure(1 << 40, loaders={loader.number: 210 * MB})
    assert world.core.ledger.used_bytes == 210 * MB
    world.pass_time(1.0)
    assert world.core.ledger.used_bytes == 264 * MB  # two regions, and what a loader needs besides
    world.pass_time(2.0)
    assert world.outcome(caller) == "done"
    assert world.core.ledger.accounts()["weights"] == 200 * MB
    assert world.core.ledger.used_bytes == 200 * MB


def test_a_worker_that_takes_too_much_is_replaced_between_its_runs():
    world = world_of("a", max_private_bytes=50 * MB, workers=2)
    first, second = world.workers()
    number = world.submit("a", plan=RunPlan(1.0))
    world.pass_time(0.1)
    world.measure(1 << 40, workers={first.number: 60 * MB, second.number: 10 * MB})
    world.pass_time(3.0)
    assert world.code(number) == "reply"
    assert second in world.workers()
    assert first not in world.workers()
    assert len(world.workers()) == 2
    assert sum("is replaced: its private memory has" in text for text in world.reports) == 1


def test_no_mailbox_is_made_for_which_there_is_no_room():
    world = world_of(room_mb=100, mailboxes=Budget(1 << 30, 1 << 30))
    world.measure(1 << 40, others_bytes=100 * MB - 8192)
    world.mailing.want("ann", 8192)
    assert world.mailing.granted
    world.measure(1 << 40, others_bytes=100 * MB - 4096)
    refused = world.core.mailboxes.refused
    world.mailing.want("ann", 8192)
    assert world.core.mailboxes.refused == refused + 1
    assert any("4,096 bytes are free of the 104,857,600" in text for text in world.reports)


def test_equal_contents_of_a_load_each_count_while_what_they_equal_is_out_of_memory():
    content = (100 * MB, b"c" * 16)
    world = world_of(room_mb=150)
    load(world, "a", plan=LoadPlan(wants=(content,)))
    world.pass_time(1.0)
    world.evict("a")
    world.pass_time(1.0)
    loaded = world.load("b", workspace="private", plan=LoadPlan(wants=(content, content)))
    world.pass_time(5.0)
    assert world.outcome(loaded) == "out_of_budget"  # the checks of the world would tell if both were handed out


# --- on a GPU -----------------------------------------------------------------------------------------------


def on_gpu(*names, room_mb=350):
    world = world_of(room_mb=room_mb, position=Position("cuda:0", gpu=0))
    for name in names:
        world.load(name, workspace="private", plan=ONE)
        world.pass_time(3.0)
    return world


def test_what_leaves_a_gpu_comes_back_as_it_was():
    world = on_gpu("a", "b", room_mb=150)
    version = world.core.library.models["a"].current
    regions = version.regions
    assert states(world) == {"a": "evicted", "b": "ready"}
    for name in ("b", "a", "b", "a"):
        assert run(world, name) == "reply"
    assert version.evictions == version.returns == 2
    assert version.return_s == MOVE_S
    assert version.regions == regions, "no loader has built it again"
    assert states(world) == {"a": "ready", "b": "evicted"}
    holdings = world.core.library.holdings
    assert (holdings.regions.resident_bytes, holdings.regions.cached_bytes) == (100 * MB, 0)


def test_what_cannot_be_written_out_from_a_gpu_is_given_up_and_built_anew():
    world = on_gpu("a", "b", room_mb=350)
    version = world.core.library.models["a"].current
    regions = version.regions
    world.habits.refused_uses = {"disk"}
    for _ in range(2):
        world.evict("a")
        world.pass_time(1.0)
        assert states(world) == {"a": "evicted", "b": "ready"}
        assert world.core.library.holdings.regions.resident_bytes == 100 * MB
        assert run(world, "a") == "reply"
    assert version.evictions == version.returns == 2
    assert version.return_s > MOVE_S
    assert not set(version.regions) & set(regions)
    assert [text for text in world.reports if "built anew when it is needed again" in text] == world.reports
    assert len(world.reports) == 1, "it is said once"


def test_by_hand_too():
    world = on_gpu("a")
    caller = world.evict("a")
    world.pass_time(1.0)
    assert world.outcome(caller) == "done"
    assert states(world) == {"a": "evicted"}
    assert world.core.library.holdings.regions.resident_bytes == 0
    run(world, "a")
    assert states(world) == {"a": "ready"}


def test_what_was_handed_over_to_a_gpu_leaves_and_stays_only_if_it_cannot_be_written_out():
    world = on_gpu()
    load(world, "m")
    world.pass_time(3.0)
    caller = world.evict("m")
    world.pass_time(1.0)
    assert world.outcome(caller) == "done"
    assert run(world, "m") == "reply"
    world.habits.refused_uses = {"disk"}
    caller = world.evict("m")
    world.pass_time(1.0)
    assert world.answers[caller].error == NO_MEMORY
    caller = world.evict("m")
    assert "it could not be written out" in world.answers[caller].error["message"]
    assert run(world, "m") == "reply"


def test_a_model_that_left_a_gpu_may_be_unloaded_at_any_stage():
    for moment_s in (0.0, 0.001, 0.01, 0.04, 0.1, 0.5):
        world = on_gpu("a")
        run(world, "a")
        world.evict("a")
        world.pass_time(moment_s)
        world.submit("a", plan=RunPlan(0.001))
        world.pass_time(moment_s)
        caller = world.unload("a")
        world.pass_time(5.0)
        assert world.outcome(caller) == "done"
        assert not world.store.open_fds


def test_loaders_of_a_gpu_have_contexts_of_which_there_are_few_at_once():
    world = World(2, allowance=Allowance(80 << 30, 0, 0), position=Position("cuda:0", gpu=0))
    world.join()
    plan = LoadPlan(seconds=1.0, wants=((100 * MB, b""),))
    callers = [world.load(f"m{number}", workspace="private", plan=plan) for number in range(5)]
    world.pass_time(0.7)
    assert len([one for one in world.children.values() if one.role == "loader"]) == MAX_GPU_LOADERS
    assert world.core.ledger.accounts()["loading"] == MAX_GPU_LOADERS * CONTEXT_BYTES
    world.pass_time(10.0)
    assert {world.outcome(caller) for caller in callers} == {"done"}
    assert world.core.ledger.accounts()["loading"] == 0


def test_loaders_that_do_not_die_keep_no_others_from_loading():
    world = on_gpu(room_mb=150)
    world.habits.stubborn = {signal.SIGKILL}
    too_large = LoadPlan(wants=((200 * MB, b""),))
    refused = [world.load(name, workspace="private", plan=too_large) for name in "ab"]
    loaded = world.load("c", workspace="private", plan=ONE)
    world.pass_time(5.0)
    assert [world.outcome(caller) for caller in (*refused, loaded)] == ["out_of_budget", "out_of_budget", "done"]
    alive = [one for one in world.children.values() if one.role == "loader" and one.is_alive]
    assert len(alive) >= MAX_GPU_LOADERS


def test_a_context_that_is_only_expected_keeps_nobody_out_of_a_small_gpu():
    world = on_gpu("a", room_mb=200)
    assert states(world) == {"a": "ready"}


def test_what_an_older_version_would_have_to_answer_fails_if_it_cannot_return_either():
    """Also where nothing else happens that would bring it up again: the loader is killed, and does not die."""
    world = on_gpu("a", room_mb=150)
    world.evict("a")
    world.pass_time(1.0)
    world.load("b", workspace="private", plan=ONE, pin=True)
    world.pass_time(1.0)
    world.habits.stubborn = {signal.SIGKILL}
    too_large = LoadPlan(seconds=0.05, wants=((200 * MB, b""),))
    caller = world.load("a", workspace="private", plan=too_large)
    number = world.submit("a")
    world.pass_time(60.0)
    assert world.outcome(caller) == "out_of_budget"
    assert world.code(number) == "out_of_budget"
    assert states(world) == {"a": "evicted", "b": "ready"}
