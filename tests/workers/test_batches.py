"""Batches and packs in a real worker: nobody notices that his call was made together with others."""

import batch_models
import numpy as np
import pytest
import torch
from driven import MIB, call, pack
from onecopy.protocol.errors import InvalidRequest, ModelError, WorkspaceOverflow
from onecopy.protocol.values import encode

TEXTS = ["one", "twenty two", "a b c"]


@pytest.fixture
def held(worker):
    return worker.hold(batch_models.Batched(), max_batch=32)


@pytest.fixture
def seen(worker, held):
    """What the model was called with since that was asked last: so many rows, call by call."""
    return lambda: worker.run(held, "seen", call())[0]


# --- rows ----------------------------------------------------------------------------------------------------


def test_calls_alike_are_made_as_one_and_each_gets_its_rows(worker, held, seen):
    inputs = [torch.randn(rows, 3) for rows in (1, 2, 1, 5)]
    for given, result in zip(inputs, worker.run(held, "__call__", *map(call, inputs)), strict=True):
        assert torch.equal(result, given * 2)
    assert seen() == [9]


def test_shapes_and_types_that_differ_make_groups(worker, held, seen):
    inputs = [
        torch.ones(2, 3), torch.ones(1, 4), np.ones((3, 3), np.float32), torch.ones(1, 3).double(),
        torch.ones(4, 4), np.ones((1, 3), np.float32), torch.ones(1, 3), np.ones((1, 3), np.float64),
    ]  # fmt: skip
    for given, result in zip(inputs, worker.run(held, "__call__", *map(call, inputs)), strict=True):
        assert type(result) is type(given)
        assert result.dtype == given.dtype
        assert result.tolist() == (given * 2).tolist()
    assert sorted(seen()) == [1, 1, 3, 4, 5]


def test_settings_must_be_equal_and_structures_are_looked_into(worker, held, seen):
    def nested(rows, scale, bias):
        return call(torch.ones(rows, 2), scale=scale, more={"bias": torch.full((rows, 1), bias)})

    results = worker.run(
        held, "nested", nested(1, 2, 1.0), nested(3, 2, 2.0), nested(2, 5, 3.0), call(torch.ones(2, 2), scale=2)
    )
    assert sorted(seen()) == [2, 2, 4]
    for result, rows, value in zip(results, (1, 3, 2, 2), (3.0, 4.0, 8.0, 2.0), strict=True):
        y, (second, (third,)), none, named = result.values()
        assert torch.equal(y, torch.full((rows, 2), value))
        assert torch.equal(second, y + 1)
        assert torch.equal(third, y + 2)
        assert none is None
        assert torch.equal(named[1], y)


def test_mappings_and_dataclasses_are_cut_too(worker, held, seen):
    first, second = worker.run(held, "record", call(torch.ones(1, 2)), call(torch.ones(2, 2)))
    assert seen() == [3]
    assert first["inner"]["length"].tolist() == [3]
    assert second["inner"]["double"].tolist() == [[2, 2], [2, 2]]


def test_texts_become_a_list_and_each_gets_what_it_gets_alone(worker, held, seen):
    alone = [worker.run(held, "encode", call(text))[0] for text in TEXTS]
    seen()
    results = worker.run(held, "encode", *(call(text, upper=True) for text in TEXTS), call(TEXTS), call(["x"]))
    assert seen() == [3, 4]
    for result, single in zip(results, alone, strict=False):
        assert result.shape == single.shape == (2,)
        assert result[0] == single[0]
    assert results[3][:, 0].tolist() == [3, 10, 5]
    assert results[4].shape == (1, 2)
    found = worker.run(held, "words", *(call(text) for text in TEXTS))
    assert found == [{"words": text.split()} for text in TEXTS]
    assert seen() == [3]


def test_a_text_by_keyword_is_a_setting(worker, held, seen):
    results = worker.run(held, "encode", *(call(text, language="en") for text in TEXTS))
    assert [result[0] for result in results] == [3, 10, 5]
    assert seen() == [3]
    results = worker.run(held, "encode", *(call(texts=text) for text in TEXTS))
    assert [result[0] for result in results] == [3, 10, 5]
    assert seen() == [3]


def test_a_tuple_is_structure(worker, held, seen):
    pairs = [(torch.ones(rows, 2), torch.full((rows, 2), float(rows))) for rows in (1, 2, 3)]
    for pair, result in zip(pairs, worker.run(held, "in_pairs", *map(call, pairs)), strict=True):
        assert torch.equal(result, pair[0] + pair[1])
    assert seen() == [6]


def test_what_has_no_rows_or_not_everywhere_as_many_is_called_alone(worker, held, seen):
    results = worker.run(held, "scalar", call(1), call(1), call(torch.tensor(5)), call(torch.tensor(5)))
    assert results == [2, 2, 6, 6]
    assert len(seen()) == 4
    results = worker.run(held, "in_pairs", *[call((torch.ones(1, 2), torch.ones(3, 2)))] * 2)
    assert [result.shape for result in results] == [(3, 2), (3, 2)]
    assert seen() == [1, 1]


def test_a_batch_is_never_larger_than_the_model_allows(worker):
    held = worker.hold(batch_models.Batched(), max_batch=4)
    assert len(worker.run(held, "__call__", *[call(torch.ones(1))] * 10)) == 10
    assert worker.run(held, "seen", call()) == [[4, 4, 2]]
    assert len(worker.run(held, "__call__", pack([torch.ones(1)] * 6), call(torch.ones(1)))[0]) == 6
    assert worker.run(held, "seen", call()) == [[4, 3]]


# --- what fails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, 13, 31])
def test_of_a_batch_only_the_call_fails_that_fails_alone(worker, held, seen, bad):
    inputs = [torch.full((1, 2), -7.0 if index == bad else float(index)) for index in range(32)]
    results = worker.run(held, "picky", *map(call, inputs))
    assert isinstance(results[bad], ModelError)
    assert results[bad].message == "m: ValueError: negative: -7.0"
    assert "batches.py" not in results[bad].details["traceback"]
    for index in {*range(32)} - {bad}:
        assert torch.equal(results[index], inputs[index] * 2)
    assert len(seen()) == 11, "each half once, down to two single calls: log2(32) times two, and the first"


def test_a_call_that_is_tried_again_sees_what_was_sent(worker, held):
    lists = [[torch.zeros(2), torch.zeros(2)], [torch.zeros(2)]]
    errors = worker.run(held, "spoiling", *map(call, lists), call([torch.zeros(2)]))
    assert isinstance(errors[0], ModelError)
    assert errors[1:] == [[2.0], [2.0]]


def test_calls_that_fail_only_together_are_told_of_once(worker, held):
    for _ in range(2):
        assert worker.run(held, "spoiling", *[call([torch.zeros(2)])] * 2) == [[2.0]] * 2
    assert worker.output.read_text().count("m, spoiling: calls that succeed alone fail as a batch") == 1
    assert "RuntimeError: one at a time" in worker.output.read_text()


def test_a_result_that_cannot_be_cut_is_computed_call_by_call_which_is_told_once(worker, held, seen):
    inputs = [torch.full((rows, 2), float(rows)) for rows in (1, 2, 3)]
    for _ in range(2):
        for given, result in zip(inputs, worker.run(held, "mean", *map(call, inputs)), strict=True):
            assert float(result["mean"]) == len(given)
            assert torch.equal(result["x"], given)
    assert seen() == [6, 1, 2, 3, 1, 2, 3]
    printed = worker.output.read_text()
    assert printed.count("m, mean: the result of a batch cannot be cut into those of its calls") == 1
    assert "the result['mean'] is an array of shape [], not of 6 rows" in printed


def test_a_list_of_one_item_per_row_is_cut_wherever_it_is(worker, held, seen):
    first, second = worker.run(held, "labels", call(torch.tensor([[2], [3]])), call(torch.tensor([[4]])))
    assert (first["labels"], second["labels"]) == (["even", "odd"], ["even"])
    assert seen() == [3]


def test_what_cannot_travel_or_be_read_fails_alone(worker, held):
    wire, _ = call(torch.ones(1))
    broken = ([b"\xc1", *wire[1:]], [])
    good, error, locked = worker.run(held, "locked", call(torch.ones(1)), broken, call(3))
    assert torch.equal(good, torch.ones(1))
    assert isinstance(error, InvalidRequest)
    assert "the result cannot travel: a _thread.lock" in locked.message


def test_what_is_no_call_or_nested_absurdly_harms_no_other(worker, held):
    deep: object = 1
    for _ in range(505):
        deep = {"in": deep}
    body, _ = encode([1, 2, 3])
    error, good, result = worker.run(held, "locked", ([body, [], [], 0, 0], []), call(torch.ones(1)), call(deep))
    assert isinstance(error, InvalidRequest)
    assert "must be [args, kwargs]" in error.message
    assert torch.equal(good, torch.ones(1))
    for _ in range(505):
        result = result["in"]
    assert result == 1


def test_results_that_no_message_can_hold_are_refused_and_the_worker_goes_on(worker, held):
    errors = worker.run(held, "long", call(40 * MIB), call(40 * MIB))
    assert all("let max_batch be lower" in error.message for error in errors)
    assert worker.run(held, "long", call(3)) == ["xxx"]


def test_a_method_that_is_not_there_is_told_to_each(worker, held):
    errors = worker.run(held, "absent", call(1), call(2))
    assert ["has no method 'absent'" in error.message for error in errors] == [True, True]


# --- hooks ---------------------------------------------------------------------------------------------------


def batched(worker, **options):
    return worker.hold(batch_models.Batched(), max_batch=8, **options)


ROWS = [torch.ones(2), torch.ones(4), torch.ones(3)]


def test_a_model_may_join_and_divide_by_itself(worker):
    held = batched(worker, collate="padded", split="unpadded")
    results = worker.run(held, "longest", *map(call, ROWS))
    assert all(torch.equal(result, given) for result, given in zip(results, ROWS, strict=True))
    assert worker.run(held, "seen", call()) == [[3]]


def test_a_model_may_do_only_one_of_both(worker):
    held = batched(worker, collate="padded")
    calls = [call(torch.ones(1)), call(torch.ones(1))]
    assert [result.tolist() for result in worker.run(held, "longest", *calls)] == [[[1.0]], [[1.0]]]
    assert all(map(torch.equal, worker.run(held, "longest", *map(call, ROWS)), ROWS)), "one by one"
    assert "is an array of shape [3, 4], not of 9 rows" in worker.output.read_text()
    held = batched(worker, split="unpadded")
    assert [result.tolist() for result in worker.run(held, "longest", *calls)] == [[1.0], [1.0]]


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"split": "too_few"}, "m: too_few was asked for the results of 3 calls, in a list, and returned 2"),
        (
            {"split": "no_list"},
            "m: no_list was asked for the results of 3 calls, in a list, and returned a Tensor",
        ),
        (
            {"collate": "no_call"},
            "m: no_call was called with the arguments of 3 calls and must return .* not list",
        ),
        ({"split": "absent"}, "m .Batched. has no method 'absent', which its Model names for batches"),
        ({"collate": "absent"}, "has no method 'absent', which its Model names for batches"),
    ],
)
def test_a_hook_that_does_something_else_is_named_and_no_call_of_the_batch_succeeds(worker, hooks, message):
    held = batched(worker, **hooks)
    inputs = [torch.ones(2)] * 3
    for error in worker.run(held, "longest", *map(call, inputs)):
        assert isinstance(error, ModelError)
        with pytest.raises(ModelError, match=message):
            raise error
    assert torch.equal(worker.run(held, "longest", call(ROWS[0]))[0], ROWS[0]), "a call alone needs no hook"


# --- packs ---------------------------------------------------------------------------------------------------


def test_many_calls_travel_as_one_and_each_is_made_alone(worker):
    held = worker.hold(batch_models.Batched())
    assert worker.run(held, "scalar", pack([1, 2.5, 3])) == [[2, 3.5, 4]]
    assert worker.run(held, "seen", call()) == [[None] * 3]
    inputs = [torch.full((2,), float(number)) for number in range(20)]
    (results,) = worker.run(held, "__call__", pack(inputs))
    assert all(torch.equal(result, given * 2) for result, given in zip(results, inputs, strict=True))


def test_of_many_calls_only_those_fail_that_raise_or_cannot_travel(worker):
    held = worker.hold(batch_models.Batched())
    (results,) = worker.run(held, "dividing", pack([1, 0, 3, "x", 4]))
    assert (results[0], results[2], results[4]) == (12, 4, 3)
    assert results[1].message == "m: ZeroDivisionError: division by zero"
    assert "TypeError" in results[3].message
    (results,) = worker.run(held, "locked", pack([1, 3, 4]))
    assert (results[0], results[2]) == (1, 4)
    assert isinstance(results[1], InvalidRequest)
    assert results[1].message.startswith("the result cannot travel: a _thread.lock")


def test_many_calls_are_batched_where_the_model_allows(worker, held, seen):
    (results,) = worker.run(held, "__call__", pack([torch.full((2, 2), float(number)) for number in range(40)]))
    assert [float(result[1, 1]) for result in results] == [2.0 * number for number in range(40)]
    assert seen() == [64, 16]


def test_many_calls_that_are_something_else_fail_as_one(worker, held):
    wire, _ = pack([1, 2])
    (error, result) = worker.run(held, "scalar", ([*wire[:3], 3, 0], []), pack([5]))
    assert "3 calls were announced" in error.message
    assert result == [6]


# --- memory --------------------------------------------------------------------------------------------------


def test_a_batch_runs_in_its_slot_and_is_signed_with_what_the_model_was_called_with(worker, held):
    worker.map_slot()
    inputs = [torch.full((100_000, 1), float(number)) for number in range(4)]
    for given, result in zip(
        inputs, worker.run(held, "__call__", *map(call, inputs), slot_bytes=64 * MIB), strict=True
    ):
        assert torch.equal(result, given * 2)
    (used,) = worker.used
    assert used.signature == "__call__(F32 [400000, 1])"
    assert used.escaped_bytes == used.spilled_bytes == 0
    assert 2 * 4 * 400_000 <= used.footprint_bytes <= 4 * 4 * 400_000


def test_a_batch_that_a_slot_cannot_hold_is_halved(worker):
    held = worker.hold(batch_models.Batched(), max_batch=8, on_overflow="error")
    worker.map_slot()
    inputs = [torch.ones(200_000)] * 4 + [torch.ones(4_000_000), torch.zeros(200_000)]
    results = worker.run(held, "__call__", *map(call, inputs), slot_bytes=8 * MIB)
    assert isinstance(results[4], WorkspaceOverflow)
    assert [len(result) for index, result in enumerate(results) if index != 4] == [200_000] * 5


def test_an_error_is_not_taken_for_a_refusal_that_came_before_it(worker):
    held = worker.hold(batch_models.Batched(), max_batch=8, on_overflow="error")
    worker.map_slot()
    inputs = [torch.ones(500_000), torch.ones(500_000), torch.full((500_000,), -1.0)]
    results = worker.run(held, "picky", *map(call, inputs), slot_bytes=4 * MIB)
    assert [type(result) for result in results] == [torch.Tensor, torch.Tensor, ModelError]
