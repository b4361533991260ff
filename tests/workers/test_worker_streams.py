"""Streams in a real worker: items come as they are asked for, in order, and it ends cleanly whoever ends it."""

import batch_models
import pytest
import torch
from driven import MIB, call, pack
from leftovers import wait_until
from onecopy.protocol.errors import InvalidRequest, ModelError, RequestCancelled
from onecopy.protocol.messages import Forget, Forgot, Ran, Yielded


@pytest.fixture
def held(worker):
    return worker.hold(batch_models.Layers())


def cleaned(worker, held):
    return worker.run(held, "seen", call())[0]


def items(worker, attempt, count):
    return [worker.item(attempt) for _ in range(count)]


def test_items_come_in_order_and_then_the_end(worker, held):
    attempt = worker.order(held, "count", call(5), credit=100)
    assert items(worker, attempt, 5) == [0, 1, 2, 3, 4]
    assert worker.ended(attempt) == [None]
    assert cleaned(worker, held) == ["closed"]


def test_a_stream_of_nothing_ends(worker, held):
    assert worker.ended(worker.order(held, "count", call(0), credit=1)) == [None]


def test_no_more_items_come_than_there_is_credit_for(worker, held):
    attempt = worker.order(held, "count", call(6), credit=2)
    follower = worker.order(held, "__call__", call("meanwhile"))
    assert items(worker, attempt, 2) == [0, 1]
    worker.channel.send(Forget(7))  # left for later, as the run is
    for expected in ([2], [3, 4, 5]):
        worker.more(attempt - 1, 9)  # for a stream that is over
        worker.more(attempt, len(expected))
        assert items(worker, attempt, len(expected)) == expected
    assert worker.ended(attempt) == [None]
    assert worker.ended(follower) == ["meanwhile"]
    assert worker.receive(Forgot).message == Forgot(7, True)


def test_an_error_comes_after_the_items_before_it(worker, held):
    attempt = worker.order(held, "count", call(5, fail_at=2), credit=100)
    assert items(worker, attempt, 2) == [0, 1]
    (error,) = worker.ended(attempt)
    assert isinstance(error, ModelError)
    assert error.message == "m: KeyError: 'at 2'"


def test_an_item_that_cannot_travel_ends_the_stream(worker, held):
    attempt = worker.order(held, "unsendable", call(), credit=100)
    assert items(worker, attempt, 1) == [1]
    (error,) = worker.ended(attempt)
    assert isinstance(error, InvalidRequest)
    assert "the item cannot travel: a _thread.lock" in error.message


def test_what_does_not_yield_is_no_stream(worker, held):
    (error,) = worker.ended(worker.order(held, "a_list", call(), credit=1))
    assert (
        error.message == "m: stream needs a method that yields; m.a_list returned a list: call it without stream"
    )
    (error,) = worker.ended(worker.order(held, "__call__", call(None), credit=1))
    assert error.message.endswith("m returned a NoneType: call it without stream")


def test_what_yields_asks_to_be_streamed(worker, held):
    (error,) = worker.run(held, "count", call(3))
    assert isinstance(error, InvalidRequest)
    assert "which yields one item after the other: ask for it with pool.stream" in error.message
    ((first, second),) = worker.run(held, "count", pack([2, 3]))
    assert "pool.stream" in first.message
    assert "pool.stream" in second.message


def test_each_step_is_in_inference_mode_unless_the_model_wants_gradients(worker, held):
    with_grad = worker.hold(batch_models.Layers(), grad=True)
    for weight_set, expected in ((held, True), (with_grad, False)):
        attempt = worker.order(weight_set, "modes", call(), credit=9)
        assert items(worker, attempt, 3) == [expected] * 3
        assert worker.ended(attempt) == [None]


# --- in slots ------------------------------------------------------------------------------------------------


def test_items_are_computed_in_the_slot_and_what_came_stays_right(worker, held):
    worker.map_slot()
    attempt = worker.order(held, "tensors", call(20, 500_000), credit=3, slot_bytes=64 * MIB)
    for number in range(20):
        is_in_slot, x = worker.item(attempt)
        assert is_in_slot
        assert torch.equal(x, torch.full((500_000,), float(number)))
        worker.more(attempt, 1)
    assert worker.ended(attempt) == [None]
    (used,) = worker.used
    assert used.signature == "tensors(int 20, int 500000)"
    assert used.footprint_bytes < 10 * MIB
    assert used.escaped_bytes == 0


def test_a_second_thread_of_the_model_computes_in_the_slot_too(worker, held):
    worker.map_slot()
    attempt = worker.order(held, "from_thread", call(10), credit=100, slot_bytes=64 * MIB)
    for number in range(10):
        is_in_slot, x = worker.item(attempt)
        assert is_in_slot
        assert float(x.min()) == float(x.max()) == number + 1
    assert worker.ended(attempt) == [None]


# --- given up ------------------------------------------------------------------------------------------------


def test_a_stream_that_waits_for_credit_ends_when_it_is_given_up(worker, held, tmp_path):
    path = tmp_path / "second"
    attempt = worker.order(held, "count", call(10**9, path=str(path)), credit=1)
    assert items(worker, attempt, 1) == [0]
    assert wait_until(path.exists)
    worker.interrupt(attempt)
    assert isinstance(worker.ended(attempt)[0], RequestCancelled)
    assert cleaned(worker, held) == ["closed"], "its finally ran, modules and all, and what it raised is dropped"


def test_a_stream_that_yields_on_and_on_ends_when_it_is_given_up(worker, held):
    attempt = worker.order(held, "count", call(10**9), credit=10**9)
    items(worker, attempt, 10)
    worker.interrupt(attempt)
    while isinstance(message := worker.channel.receive().message, Yielded):
        pass
    assert isinstance(message, Ran)
    assert message.answers[0]["code"] == "cancelled"
    assert cleaned(worker, held) == ["closed"]


def test_a_stream_that_computes_ends_at_its_next_module(worker, held, tmp_path):
    begun = tmp_path / "begun"
    attempt = worker.order(held, "busy", call(str(begun)), credit=9)
    assert items(worker, attempt, 1) == ["first"]
    assert wait_until(begun.exists)
    worker.interrupt(attempt)
    assert isinstance(worker.ended(attempt)[0], RequestCancelled)
    assert cleaned(worker, held) == ["closed"]
