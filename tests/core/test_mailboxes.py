"""Mailboxes in the core: budgets, whose they are, and who may touch what lies in them, for how long."""

import re

import pytest
from core.mailing import BUDGET
from core.simulated import RunPlan
from core.told import Told, codes, submit_of
from core.world import World
from onecopy.pool.core import events
from onecopy.pool.core.instructions import FreeRegions, MakeRegion, Report, ToCaller, ToChild, ToClient
from onecopy.pool.core.mailboxes import MAX_MAILBOXES, Budget
from onecopy.protocol.errors import ModelError
from onecopy.protocol.messages import (
    Failed,
    MailboxGranted,
    MapMailbox,
    Refused,
    Released,
    Reply,
    Run,
    UnmapMailbox,
)

PAGE = 4096


class Mailed(Told):
    """A core that knows ann by her lease, and gives what is asked for."""

    def __init__(self, budget: Budget = BUDGET, workers: int = 1) -> None:
        super().__init__(workers, mailboxes=budget)
        self.feed(events.ClientJoined("ann", "ann's lease"))

    def want(self, size_bytes: int = PAGE, caller: str = "ann's lease"):
        """Ask for a mailbox; return its number, or the error that refuses it."""
        out = self.feed(events.MailboxWanted(caller, size_bytes))
        for one in out:
            if isinstance(one, MakeRegion):
                out = self.feed(events.RegionMade(one.region, one.size_bytes))
        [answer] = [one for one in out if isinstance(one, ToCaller)]
        if isinstance(answer.message, Refused):
            return answer.message.error
        assert answer.regions == (answer.message.mailbox,)
        assert answer.message.size_bytes == -(-size_bytes // PAGE) * PAGE
        return answer.message.mailbox

    def send(self, number: int, places=(), reply=(), *, client="ann", buffers=(), retries=0, timeout_s=0.0):
        fields = {"places": list(places), "reply": list(reply), "retries": retries, "timeout_s": timeout_s}
        submit = submit_of(number, client=client, **fields)
        return self.feed(events.Submitted(client, submit, list(buffers)))


def told(out):
    return [type(one.message) for one in out if isinstance(one, ToClient)]


def to_children(out):
    return [one.message for one in out if isinstance(one, ToChild) and not isinstance(one.message, Run)]


@pytest.fixture
def core():
    return Mailed().start("m")


# --- asking --------------------------------------------------------------------------------------------------


def test_a_mailbox_is_made_and_then_granted(core):
    [make] = core.feed(events.MailboxWanted("ann's lease", 5000))
    assert make == MakeRegion(make.region, 2 * PAGE, "mailbox")
    granted = ToCaller("ann's lease", MailboxGranted(make.region, 2 * PAGE), (make.region,))
    assert core.feed(events.RegionMade(make.region, 2 * PAGE)) == [granted]


@pytest.mark.parametrize("size_bytes", [0, -1])
def test_a_mailbox_without_a_size_is_refused(core, size_bytes):
    assert core.want(size_bytes)["code"] == "invalid_request"


def test_a_client_has_a_budget_and_the_log_tells_once(core):
    assert isinstance(core.want(BUDGET.client_bytes), int)
    report, refused = core.feed(events.MailboxWanted("ann's lease", 1))
    assert isinstance(report, Report)
    assert refused.message.error["code"] == "out_of_budget"
    expected = "a mailbox of 4,096 bytes: this client has 65,536, and may have 65,536"
    assert refused.message.error["message"] == expected
    assert len(core.feed(events.MailboxWanted("ann's lease", 1))) == 1
    assert core.core.mailboxes.refused == 2


def test_all_clients_have_one_together(core):
    core.want(BUDGET.client_bytes)
    core.feed(events.ClientJoined("bob", "bob's lease"))
    assert (
        "all clients have 65,536, and may have 98,304" in core.want(BUDGET.client_bytes, "bob's lease")["message"]
    )
    assert isinstance(core.want(BUDGET.client_bytes // 2, "bob's lease"), int)
    core.feed(events.CallerLeft("ann's lease"))
    assert isinstance(core.want(BUDGET.client_bytes // 2, "bob's lease"), int)


def test_a_client_may_have_so_many():
    core = Mailed(Budget(1 << 30, 1 << 30)).start("m")
    assert all(isinstance(core.want(), int) for _ in range(MAX_MAILBOXES))
    assert "this client has 64 mailboxes, and may have 64" in core.want()["message"]


def test_a_pool_without_mailboxes_says_so_and_logs_nothing():
    core = Mailed(Budget(0, 1 << 30)).start("m")
    [refused] = core.feed(events.MailboxWanted("ann's lease", 1))
    assert "this pool has no mailboxes (mailbox = 0)" in refused.message.error["message"]


def test_memory_that_cannot_be_had_is_refused_and_not_counted(core):
    [make] = core.feed(events.MailboxWanted("ann's lease", PAGE))
    error = {"code": "out_of_budget", "message": "no memory", "details": {}}
    out = core.feed(events.RegionFailed(make.region, error))
    assert ToCaller("ann's lease", Refused(error)) in out
    assert core.core.mailboxes.granted_bytes == 0


def test_a_client_that_goes_while_a_mailbox_is_made_gets_none(core):
    [make] = core.feed(events.MailboxWanted("ann's lease", PAGE))
    assert core.feed(events.CallerLeft("ann's lease")) == [FreeRegions((make.region,))]
    assert core.feed(events.RegionMade(make.region, PAGE)) == []


def test_numbers_are_never_used_twice(core):
    numbers = [core.want() for _ in range(3)]
    for number in numbers:
        core.feed(events.MailboxReturned("ann's lease", number))
    assert not {core.want() for _ in range(3)} & set(numbers)


def test_what_is_not_ones_own_cannot_be_given_back():
    core = Mailed(Budget(1 << 20, 1 << 20)).start("m")
    number = core.want()
    for caller, one in (("bob's lease", number), ("ann's lease", number + 1)):
        [answer] = core.core.handle(events.MailboxReturned(caller, one), core.now)
        assert answer.caller == caller
        assert answer.message.error["message"] == f"mailbox {one} is not yours to give back"
    assert core.core.mailboxes.granted_bytes == PAGE


# --- places --------------------------------------------------------------------------------------------------


def test_a_run_is_told_the_places_and_the_worker_gets_the_mailbox_once(core):
    number = core.want()
    places, reply = [[number, 0, 100], []], [number, 128, 100]
    mapped, run = [one for one in core.send(1, places, reply, buffers=[b"x" * 20]) if isinstance(one, ToChild)][
        -2:
    ]
    assert mapped == ToChild(1, MapMailbox(number, PAGE), [], (number,))
    assert run.message.parts == [[b"ann/1", places, reply, 0, 1]]
    assert run.buffers == [b"x" * 20]
    core.ended(1, 1, 1)
    assert to_children(core.send(2, [[number, 0, 100]])) == []


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ([99, 0, 64], "mailbox 99 is not yours"),
        (["own", 0, PAGE + 1], "does not lie inside mailbox"),
        (["own", PAGE, 1], "does not lie inside mailbox"),
        (["own", 1 << 62, 1 << 62], "does not lie inside mailbox"),
        (["own", -64, 64], "neither offset nor size may be negative"),
        (["own", 0, -1], "neither offset nor size may be negative"),
        (["own", 32, 1], "must be a multiple of 64"),
        (["own", 0], r"must be \[mailbox, offset, size\]"),
        (["own", 0, 1.5], r"must be \[mailbox, offset, size\]"),
        (["bob", 0, 64], "is not yours"),
        (["returned", 0, 64], "is not yours"),
    ],
)
@pytest.mark.parametrize("where", ["places", "reply"])
def test_a_place_that_cannot_be_is_refused_by_name(core, where, place, why):
    returned = core.want()
    core.feed(events.MailboxReturned("ann's lease", returned))
    core.feed(events.ClientJoined("bob", "bob's lease"))
    numbers = {"own": core.want(), "bob": core.want(caller="bob's lease"), "returned": returned}
    wire = [numbers.get(place[0], place[0]), *place[1:]]
    out = core.send(1, [wire] if where == "places" else [], wire if where == "reply" else [])
    assert told(out) == [Failed, Released]
    assert out[0].message.error["code"] == "invalid_request"
    assert re.search(why, out[0].message.error["message"])


def test_the_number_of_buffers_that_follow_is_checked(core):
    number = core.want()
    out = core.send(1, [[number, 0, 64], []])
    assert codes(out) == {1: "invalid_request"}
    assert told(out) == [Failed, Released]


def test_a_client_over_tcp_has_no_places(core):
    number = core.want()
    core.feed(events.ClientJoined("far"))
    assert codes(core.send(1, [[number, 0, 64]], client="far")) == {1: "invalid_request"}


def test_whoever_is_refused_for_another_reason_gets_the_places_back_too(core):
    number = core.want()
    submit = submit_of(1, "nobody", reply=[number, 0, 64])
    assert told(core.feed(events.Submitted("ann", submit, []))) == [Failed, Released]


def test_arrays_in_sockets_are_counted_for_local_clients(core):
    core.send(1, buffers=[b"x"])
    core.send(2)
    core.feed(events.ClientJoined("far"))
    core.send(1, buffers=[b"x"], client="far")
    assert core.core.mailboxes.inline == 1


# --- how long they are lent ----------------------------------------------------------------------------------


def test_a_reply_gives_the_places_back_by_itself(core):
    number = core.want()
    core.send(1, [[number, 0, 64]], [number, 64, 64])
    out = core.ended(1, 1, 1)
    assert told(out) == [Reply]
    assert core.feed(events.MailboxReturned("ann's lease", number))[-1] == FreeRegions((number,))


def test_what_waits_is_released_as_soon_as_it_is_cancelled(core):
    number = core.want()
    core.send(1)
    core.send(2, [[number, 0, 64]])
    assert told(core.feed(events.Cancelled("ann", 2))) == [Failed, Released]


def test_what_runs_is_released_when_it_has_ended(core):
    number = core.want()
    core.send(1, [[number, 0, 64]])
    assert told(core.feed(events.Cancelled("ann", 1))) == [Failed]
    assert core.feed(events.MailboxReturned("ann's lease", number)) == []
    out = core.ended(1, 1, 1)
    assert told(out) == [Released]
    assert FreeRegions((number,)) in out


def test_a_deadline_releases_it_when_the_run_has_ended(core):
    number = core.want()
    core.send(1, [], [number, 0, 64], timeout_s=1.0)
    assert told(core.wake(2.0)) == [Failed]
    assert told(core.ended(1, 1, 1)) == [Released]


def test_a_failed_run_releases_at_once(core):
    number = core.want()
    core.send(1, [[number, 0, 64]])
    assert told(core.ended(1, 1, 1, error=ModelError("no"))) == [Failed, Released]


def test_a_death_ends_what_was_given_up_and_hands_on_what_was_not():
    core = Mailed(workers=1).start("m")
    number = core.want()
    core.send(1, [[number, 0, 64]])
    core.feed(events.Cancelled("ann", 1))
    assert told(core.exited(1, begun=1)) == [Released]
    core.send(2, [[number, 0, 64]], retries=1)
    core.forked(2)
    assert told(core.exited(2, begun=2)) == []
    out = core.forked(3)
    assert MapMailbox(number, PAGE) in to_children(out)
    [run] = [one.message for one in out if isinstance(one, ToChild) and isinstance(one.message, Run)]
    assert run.parts[0][1] == [[number, 0, 64]]


def test_a_client_that_dies_gives_all_back_as_soon_as_no_worker_uses_it(core):
    running, idle = core.want(), core.want()
    core.send(1, [[running, 0, 64]])
    core.feed(events.ClientLeft("ann"))
    assert core.feed(events.CallerLeft("ann's lease")) == [FreeRegions((idle,))]
    out = core.ended(1, 1, 1)
    assert told(out) == []
    assert to_children(out) == [UnmapMailbox(running)]
    assert out[-1] == FreeRegions((running,))
    assert core.core.mailboxes.granted_bytes == 0


def test_what_was_shut_down_is_released_too():
    world = World(1, 1, mailboxes=BUDGET)
    world.join()
    world.load("m")
    world.mailing.want("ann", PAGE)
    world.pass_time(1.0)
    world.submit("m", plan=RunPlan(1.0), has_arrays=True)
    world.feed(events.StopAsked(drain=False))
    world.pass_time(5.0)
    assert world.is_finished
    assert not world.mailing.lent
