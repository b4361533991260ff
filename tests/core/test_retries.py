"""Deaths of workers: who is blamed, who is tried again, and in which order."""

from core.books import body_of
from core.told import Told, codes, reply, run, thaw
from onecopy.pool.core.instructions import ForkChild, ToClient
from onecopy.protocol.messages import Run


def fast(workers=1):
    """A core whose model is known to be so fast that requests are handed ahead."""
    core = Told(workers).start("m")
    child = workers
    for number in (901, 902):
        core.submit(number)
        core.ended(child, core.core.attempts.count, number, seconds=0.0001)
    return core, child


def requests_handed_out(out):
    return [part[0] for one in out if isinstance(getattr(one, "message", None), Run) for part in one.message.parts]


def test_a_request_that_killed_its_worker_fails_with_the_cause():
    core = Told().start("m")
    core.submit(1)
    told, forks = core.exited(1, begun=1, cause="SIGSEGV")
    assert isinstance(told, ToClient)
    assert told.message.error["code"] == "worker_died"
    assert told.message.error["details"] == {"deaths": 1, "cause": "SIGSEGV"}
    assert forks == ForkChild(2, "worker")


def test_a_request_that_may_be_retried_runs_again_on_the_next_worker():
    core = Told().start("m")
    core.submit(1, retries=1)
    assert core.exited(1, begun=1) == [ForkChild(2, "worker")]
    assert core.forked(2) == [thaw(2), run(2, 2, 1)]
    assert core.core.attempts.retried == 1
    assert core.ended(2, 2, 1) == [reply(1)]


def test_a_request_is_retried_as_often_as_it_may_be_and_not_once_more():
    core = Told().start("m")
    core.submit(1, retries=2)
    for child, attempt in ((1, 1), (2, 2)):
        assert codes(core.exited(child, begun=attempt)) == {}
        core.forked(child + 1)
    assert codes(core.exited(3, begun=3)) == {1: "worker_died"}


def test_what_a_dead_worker_merely_held_goes_back_to_the_front_in_order_and_is_not_blamed():
    core, child = fast()
    for number in range(20):
        core.submit(number)  # eleven are handed over, the others wait
    out = core.exited(child, begun=3)
    assert codes(out) == {0: "worker_died"}
    handed = requests_handed_out(core.forked(child + 1))
    for number in range(1, 20):
        attempt = core.core.requests.find("ann", number).attempt
        handed += requests_handed_out(core.ended(child + 1, attempt, number, seconds=0.0001))
    assert handed == [body_of("ann", number) for number in range(1, 20)]
    assert core.core.attempts.retried == 0


def test_a_worker_that_had_begun_nothing_blames_nobody():
    core = Told().start("m")
    core.submit(1, retries=0)
    assert codes(core.exited(1, begun=0)) == {}
    core.wake(1.0)
    assert core.forked(2) == [thaw(2), run(2, 2, 1)]
    assert core.core.attempts.retried == 0


def test_a_death_after_the_answer_was_sent_blames_nobody():
    core, child = fast()
    core.submit(1)
    core.submit(2)
    core.ended(child, 3, 1)
    assert codes(core.exited(child, begun=3)) == {}


def test_a_retry_that_nobody_waits_for_any_more_does_not_happen():
    core = Told().start("m")
    core.submit(1, retries=5, timeout_s=0.5)
    core.wake(0.6)
    assert core.exited(1, begun=1) == [ForkChild(2, "worker")]
    assert core.forked(2) == []


def test_a_deadline_holds_for_all_attempts_together():
    core = Told().start("m")
    core.submit(1, retries=5, timeout_s=0.5)
    core.exited(1, begun=1)
    assert codes(core.wake(0.6)) == {1: "deadline_exceeded"}
    assert core.forked(2) == []


def test_a_retry_runs_on_the_version_that_is_current_then():
    core = Told(workers=2, slots=1).start("m")
    core.submit(1, retries=1)
    core.declare("m")
    assert core.exited(2, begun=1) == [ForkChild(3, "worker"), thaw(1, 2), run(1, 2, 1, weight_set=2)]
