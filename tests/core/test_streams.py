"""Streams: items in order, as many as the reader is ready for, and an end whatever happens."""

from core.books import body_of, item_of
from core.simulated import RunPlan
from core.told import Told, codes
from core.world import World
from onecopy.pool.core import events
from onecopy.pool.core.instructions import ForkChild, Interrupt, ToChild, ToClient
from onecopy.pool.core.stalls import STALL_S
from onecopy.protocol.limits import MAX_CREDIT
from onecopy.protocol.messages import ContinueRun, Item, Run


def yielded(core, number=1, item=1, attempt=1, child=1):
    return core.feed(events.ItemYielded(child, attempt, item_of(body_of("ann", number), item), []))


def started(credit=2, retries=1):
    core = Told().start("m")
    out = core.submit(1, credit=credit, retries=retries)
    [run] = [one.message for one in out if isinstance(one.message, Run)]
    assert run.credit == credit
    return core


def test_items_go_to_whoever_asked():
    core = started()
    assert yielded(core) == [ToClient("ann", Item(1, item_of(body_of("ann", 1), 1)), [])]


def test_a_reader_that_is_ready_for_more_has_the_worker_go_on():
    core = started()
    assert core.feed(events.Continued("ann", 1, 5)) == [ToChild(1, ContinueRun(1, 5), [], ())]
    assert core.feed(events.Continued("ann", 7, 5)) == []


def test_what_a_reader_is_ready_for_before_it_runs_goes_along():
    core = Told()
    core.declare("m")
    core.submit(1, credit=2)
    core.feed(events.Continued("ann", 1, 5))
    core.feed(events.ZygoteReady())
    [run] = [one.message for one in core.forked(1) if isinstance(one.message, Run)]
    assert run.credit == 7


def test_nobody_is_ready_for_absurdly_many():
    core = started()
    out = core.feed(events.Continued("ann", 1, MAX_CREDIT))
    assert codes(out) == {1: "invalid_request"}
    assert out[-1] == Interrupt(1, 1, kill=False)
    assert codes(started().feed(events.Continued("ann", 1, -1))) == {1: "invalid_request"}


def test_nothing_is_handed_behind_a_stream():
    core = Told().start("m")
    for number in (901, 902):
        core.submit(number)
        core.ended(1, core.core.attempts.count, number, seconds=0.0)
    core.submit(1, credit=2)
    assert core.submit(2) == []


def test_a_stream_is_not_begun_again_after_its_first_item():
    core = started(retries=5)
    yielded(core)
    out = core.exited(1, begun=1)
    assert codes(out) == {1: "worker_died"}
    assert "had sent 1 items" in out[0].message.error["message"]


def test_before_its_first_item_it_is():
    core = started()
    assert core.exited(1, begun=1) == [ForkChild(2, "worker")]
    [run] = [one.message for one in core.forked(2) if isinstance(one.message, Run)]
    assert run.credit == 2


def test_a_stream_that_nobody_reads_ends_after_a_while_and_frees_its_worker():
    core = started(credit=1)
    yielded(core)
    assert core.core.wake_at() == core.now + STALL_S
    out = core.wake(STALL_S)
    assert codes(out) == {1: "deadline_exceeded"}
    assert out[-1] == Interrupt(1, 1, kill=False)


def test_a_reader_that_comes_back_in_time_keeps_it():
    core = started(credit=1)
    yielded(core)
    core.wake(STALL_S - 1)
    core.feed(events.Continued("ann", 1, 1))
    assert codes(core.wake(2)) == {}
    assert core.core.wake_at() == float("inf")


def test_what_comes_after_it_was_closed_is_dropped():
    core = started()
    out = core.feed(events.Cancelled("ann", 1))
    assert out[-1] == Interrupt(1, 1, kill=False)
    assert yielded(core) == []
    assert core.ended(1, 1, 1) == []


def test_nobody_gets_items_of_another_attempt_or_worker():
    core = started()
    core.submit(2)
    assert yielded(core, attempt=99) == []
    assert yielded(core, child=99) == []


def test_a_deadline_is_for_the_whole_stream():
    world = World(1, 1)
    world.join()
    world.load("m")
    world.pass_time(3.0)
    number = world.submit("m", plan=RunPlan(0.1, items=100), credit=1000, timeout_s=1.0)
    world.pass_time(2.0)
    assert world.code(number) == "deadline_exceeded"
    assert 8 <= len(world.items["ann", number]) <= 10
    other = world.submit("m")
    world.pass_time(0.5)
    assert world.code(other) == "reply", "the worker is free again"


def test_a_client_that_dies_frees_the_worker_of_its_stream():
    core = started()
    assert core.feed(events.ClientLeft("ann")) == [Interrupt(1, 1, kill=False)]
