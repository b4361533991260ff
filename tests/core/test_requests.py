"""Requests: accepted or refused, in time or late, wanted or not; whoever asks gets one answer."""

from core.told import Told, codes, reply, run, submit_of, thaw
from onecopy.pool.core import events
from onecopy.pool.core import requests as requests_module
from onecopy.pool.core.instructions import Interrupt
from onecopy.protocol.errors import ModelError
from onecopy.protocol.messages import Failed


def test_a_request_is_handed_to_a_worker_and_its_result_to_the_client():
    core = Told().start("m")
    assert core.submit(7) == [thaw(1), run(1, 1, 7)]
    assert core.ended(1, 1, 7) == [reply(7)]
    assert core.submit(8) == [run(1, 2, 8)]


def test_what_the_model_raised_is_told_and_the_worker_goes_on():
    core = Told().start("m")
    core.submit(1)
    assert codes(core.ended(1, 1, 1, error=ModelError("no"))) == {1: "model_error"}
    assert core.submit(2) == [run(1, 2, 2)]
    model = core.core.library.models["m"]
    assert (model.answered, model.failed) == (0, 1)


def test_a_request_for_no_model_is_refused_and_the_models_are_named():
    core = Told().start("b", "a")
    (told,) = core.submit(1, "m")
    assert isinstance(told.message, Failed)
    assert told.message.error["message"] == "no model 'm' here; there are: a, b"


def test_a_client_that_did_not_say_hello_is_refused():
    assert codes(Told().start("m").submit(1, client="eve")) == {1: "invalid_request"}


def test_a_number_that_is_in_use_is_refused_and_the_first_request_stays():
    core = Told().start("m")
    core.submit(1)
    assert codes(core.submit(1)) == {1: "invalid_request"}
    assert core.ended(1, 1, 1) == [reply(1)]
    assert core.submit(1) == [run(1, 2, 1)]


def test_two_clients_may_use_one_number():
    core = Told(workers=2).start("m")
    core.feed(events.ClientJoined("bob"))
    core.submit(1)
    assert core.submit(1, client="bob") == [thaw(1), run(1, 2, 1, client="bob", seat=1)]
    assert core.ended(2, 1, 1) == [reply(1)]


def test_timeouts_and_retries_that_cannot_be_are_refused():
    core = Told().start("m")
    for timeout_s in (-1.0, float("nan"), float("inf")):
        assert codes(core.submit(1, timeout_s=timeout_s)) == {1: "invalid_request"}
    for retries in (-1, 101):
        assert codes(core.submit(1, retries=retries)) == {1: "invalid_request"}


def test_a_deadline_that_passes_in_the_queue_ends_the_request_before_it_runs():
    core = Told().start("m")
    core.submit(1)
    core.submit(2, timeout_s=0.5)
    assert core.core.wake_at() == core.now + 0.5
    (told,) = core.wake(0.5)
    assert told.message.error == {
        "code": "deadline_exceeded",
        "message": "m: no answer within 0.5 s (waiting for a worker)",
        "details": {},
    }
    assert core.check_wake() == float("inf")
    assert core.ended(1, 1, 1) == [reply(1)]


def test_a_deadline_that_passes_in_a_run_is_told_at_once_and_the_late_result_only_frees_the_worker():
    core = Told().start("m")
    core.submit(1, timeout_s=0.5)
    core.submit(2)
    assert codes(core.wake(0.5)) == {1: "deadline_exceeded"}
    assert core.ended(1, 1, 1) == [run(1, 2, 2)]


def test_many_late_requests_are_told_at_one_waking():
    core = Told().start("m")
    for number in range(10):
        core.submit(number, timeout_s=0.1 + number / 100)
    assert len(codes(core.wake(0.15))) == 6
    assert len(codes(core.wake(5.0))) == 4


def test_deadlines_of_answered_requests_do_not_pile_up_behind_one_that_is_far_off():
    core = Told(workers=2).start("m")
    core.submit(0, timeout_s=3600)
    for number in range(1, 1000):
        core.submit(number, timeout_s=7200)
        core.ended(1, number + 1, number)
    assert len(core.core.requests._deadlines) < 100


def test_a_cancelled_request_is_answered_and_never_runs():
    core = Told().start("m")
    core.submit(1)
    core.submit(2)
    core.submit(3)
    assert codes(core.feed(events.Cancelled("ann", 2))) == {2: "cancelled"}
    assert core.feed(events.Cancelled("ann", 2)) == []
    assert core.ended(1, 1, 1) == [reply(1), run(1, 2, 3)]


def test_the_result_of_a_cancelled_run_is_dropped():
    core = Told().start("m")
    core.submit(1)
    assert codes(core.feed(events.Cancelled("ann", 1))) == {1: "cancelled"}
    assert core.ended(1, 1, 1) == []


def test_the_results_for_a_client_that_left_are_dropped_and_its_queue_is_forgotten():
    core = Told().start("m")
    core.submit(1)
    core.submit(2)
    assert core.feed(events.ClientLeft("ann")) == [Interrupt(1, 1, kill=False)]
    assert core.ended(1, 1, 1) == []
    core.feed(events.ClientJoined("ann"))
    assert core.submit(1) == [run(1, 2, 1)]


def test_what_waits_and_was_cancelled_takes_no_memory():
    core = Told().start("m")
    core.submit(0)
    for number in range(1, 200):
        core.submit(number)
        core.feed(events.Cancelled("ann", number))
    assert len(core.core.library.models["m"].queue) == 0


def test_a_client_may_have_so_many_requests_waiting_and_no_more(monkeypatch):
    monkeypatch.setattr(requests_module, "MAX_REQUESTS_PER_CLIENT", 3)
    core = Told().start("m")
    core.feed(events.ClientJoined("bob"))
    for number in (1, 2, 3):
        core.submit(number)
    assert codes(core.submit(4)) == {4: "pool_busy"}
    assert codes(core.submit(4, client="bob")) == {}
    core.ended(1, 1, 1)
    assert codes(core.submit(4)) == {}


def test_a_client_may_have_so_many_bytes_waiting_but_always_one_request(monkeypatch):
    monkeypatch.setattr(requests_module, "MAX_QUEUED_BYTES", 1000)
    core = Told().start("m")

    def submit(number, size_bytes):
        submit = submit_of(number)
        return codes(core.feed(events.Submitted("ann", submit, [bytes(size_bytes)])))

    assert submit(1, 5000) == {}
    assert submit(2, 1) == {2: "pool_busy"}
    core.ended(1, 1, 1)
    assert submit(3, 500) == {}
    assert submit(4, 400) == {}
    assert submit(5, 100) == {5: "pool_busy"}


def test_whose_output_it_is_can_be_told_while_an_attempt_runs():
    core = Told().start("m")
    core.submit(7)
    assert core.core.attempts.running_on(1) == (7, "m")
    core.ended(1, 1, 7)
    assert core.core.attempts.running_on(1) == (0, "")
