"""Calls that are recorded and replayed: which are, with what inputs, and what comes of them."""

from __future__ import annotations

import collections
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from driven import call
from gpu_bench import Bench, Gpu, assert_equal
from onecopy.protocol.errors import ModelError
from onecopy.workers.cuda_errors import ContextLost
from onecopy.workers.graphs import MOST_KINDS, Graphs, refusal
from onecopy.workers.transfers import Transfers
from torch.utils._python_dispatch import TorchDispatchMode

#: What only finds a place for values, and computes none.
_PLACES = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty")


class Tape(TorchDispatchMode):
    """A recorder of what the processor computes, which does it again with the same tensors when it is replayed."""

    def __init__(self):
        super().__init__()
        self.recorded = self.replayed = 0
        self.device = torch.device("cpu")
        self.error = self.gone = None
        self._operations = []

    def __torch_dispatch__(self, operation, _types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if operation._schema.name not in _PLACES:
            self._operations.append((operation, args, kwargs or {}, result))
        return result

    def record(self, work):
        self.recorded += 1
        self._operations = operations = []
        try:
            with self:
                work()
                if self.error is not None:
                    raise self.error
        except Exception as error:
            raise RuntimeError("nothing was recorded") from error

        def replay():
            if self.gone is not None:
                raise self.gone
            self.replayed += 1
            for operation, args, kwargs, result in operations:
                again = operation(*args, **kwargs)
                if isinstance(result, torch.Tensor):
                    result.copy_(again)

        return replay


@pytest.fixture
def tape():
    return Tape()


@pytest.fixture
def graphs(tape):
    return Graphs("m", tape)


def times(function, graphs, *calls):
    """Return what a function returns, with graphs, for each of some arguments."""
    around = graphs.around("f", function)
    results = []
    with torch.inference_mode():
        for args in calls:
            result = around(*args)
            results.append(result.clone() if isinstance(result, torch.Tensor) else result)
    return results


def ones(*shape):
    return torch.ones(*shape)


# --- what is computed ----------------------------------------------------------------------------------------


def test_the_first_call_is_made_the_second_recorded_and_all_others_replayed(tape, graphs):
    made = []

    def double(x):
        made.append(x)
        return x * 2 + 1

    results = times(double, graphs, *((torch.full((3,), float(n)),) for n in range(6)))
    assert [float(one[0]) for one in results] == [1, 3, 5, 7, 9, 11]
    assert (len(made), tape.recorded, tape.replayed) == (2, 1, 5)


def test_a_network_computes_the_same_however_it_is_called(tape, graphs):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))
    inputs = [torch.randn(2, 8) for _ in range(5)]
    results = times(model, graphs, *((x,) for x in inputs))
    with torch.inference_mode():
        for x, result in zip(inputs, results, strict=True):
            assert torch.equal(result, model(x))
    assert tape.replayed == 4


def test_values_are_nested_as_they_are_without(graphs):
    def swap(pair, *, by):
        return {"sum": pair[0] + by["x"], "both": [pair[1] * 2, (by["x"] - 1, "text", None)]}

    around = graphs.around("f", swap)
    with torch.inference_mode():
        for n in range(4):
            pair = (torch.full((2,), float(n)), torch.full((3,), 2.0 * n))
            result = around(pair, by={"x": torch.full((2,), 10.0 + n)})
            assert_equal(result["sum"].clone(), torch.full((2,), 10.0 + 2 * n))
            first, (second, text, nothing) = result["both"]
            assert (first.tolist(), second.tolist()) == ([4.0 * n] * 3, [9.0 + n] * 2)
            assert (text, nothing) == ("text", None)


def test_a_cache_that_a_model_writes_into_is_written_by_replays_too(graphs):
    cache = torch.zeros(1)

    def total(x):
        cache.add_(x)
        return cache * 1

    times(total, graphs, [ones(1)], [ones(1)])
    cache.zero_()  # a tape computes while it records, as no GPU does
    results = times(total, graphs, *([torch.full((1,), n)] for n in (1.0, 2.0, 3.0)))
    assert [float(one) for one in results] == [1, 3, 6]


# --- which calls are of one kind -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((ones(3),), (ones(4),)),
        ((ones(3),), (ones(3).double(),)),
        ((ones(2, 3),), (ones(3, 2).T,)),
        ((ones(3), 1), (ones(3), 2)),
        ((ones(3), 1), (ones(3), True)),
        ((ones(3), 0.0), (ones(3), -0.0)),
        ((ones(3), "a"), (ones(3), "b")),
        ((ones(3), None), (ones(3),)),
        (([ones(3)],), ((ones(3),),)),
        (({"a": ones(3)},), ({"b": ones(3)},)),
        ((ones(3), ones(3)), ([ones(3), ones(3)],)),
    ],
)  # fmt: skip
def test_calls_that_differ_in_more_than_what_is_in_tensors_have_graphs_of_their_own(tape, graphs, one, other):
    made = []
    around = graphs.around("f", lambda *args: made.append(args))
    for _ in range(3):
        around(*one)
        around(*other)
    assert (len(made), tape.recorded, tape.replayed) == (4, 2, 4)


def test_methods_have_graphs_of_their_own(tape, graphs):
    for _ in range(2):
        for method in ("f", "g"):
            graphs.around(method, lambda x: x + 1)(ones(3))
    assert tape.recorded == 2


@pytest.mark.parametrize(
    "args",
    [
        (np.ones(3),),
        (ones(3), {"deep": [np.float32(1)]}),
        (ones(3), object()),
        (ones(3).to_sparse(),),
        (collections.UserDict(x=ones(3)),),
        ({1, 2},),
    ],
)
def test_with_what_stays_on_the_host_calls_are_made_as_they_are(tape, graphs, args):
    made = []
    around = graphs.around("f", lambda *args: made.append(args))
    for _ in range(4):
        around(*args)
    assert (len(made), tape.recorded) == (4, 0)


def test_what_is_nested_too_deeply_is_called_as_it_is(tape, graphs):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    around = graphs.around("f", lambda _: 1)
    assert [around(deep) for _ in range(3)] == [1, 1, 1]
    assert tape.recorded == 0
    while deep:  # or its end would need a deep stack too
        deep = deep.pop()


def test_a_method_that_yields_is_called_as_it_is(tape, graphs):
    def items(x):
        yield from (x, x + 1)

    around = graphs.around("f", items)
    assert [[float(one) for one in around(torch.tensor(3.0))] for _ in range(3)] == [[3, 4]] * 3
    assert tape.recorded == 0


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    shape: tuple = ()


class Listed(list):
    pass


@pytest.mark.parametrize(
    ("made", "is_recorded"),
    [
        (lambda x: (x * 2, 3), True),
        (lambda x: Output(x * 2, tuple(x.shape)), True),
        (lambda x: collections.OrderedDict(logits=[x * 2]), True),
        (lambda x: x.topk(2), False),
        (lambda x: Listed([x * 2]), False),
        (lambda x: Output(Listed([x * 2])), False),
        (lambda x: {"x": object()}, False),
        (lambda x: torch.ones(1, device="meta"), False),
    ],
)
def test_a_call_is_recorded_if_all_that_it_returns_is_read_before_the_next(tape, graphs, made, is_recorded):
    around = graphs.around("f", made)
    results = [around(torch.full((3,), float(n))) for n in range(3)]
    assert [type(one) for one in results] == [type(made(ones(3)))] * 3
    assert tape.recorded == is_recorded


def test_kinds_that_came_once_make_room(tape, graphs):
    made = []
    around = graphs.around("f", lambda x, number: made.append(number))
    for number in range(3 * MOST_KINDS):
        around(ones(1), number)
    for _ in range(3):
        around(ones(2), -1)
    assert (tape.recorded, tape.replayed) == (1, 2)


def test_so_many_kinds_are_told_apart_and_others_called_as_they_are(tape, graphs):
    made = []
    around = graphs.around("f", lambda x: made.append(x))
    for size in range(MOST_KINDS + 5):
        for _ in range(3):
            around(ones(size))
    assert tape.recorded == MOST_KINDS
    assert len(made) == 2 * MOST_KINDS + 3 * 5


# --- what cannot be recorded ---------------------------------------------------------------------------------


def test_what_cannot_be_recorded_is_made_as_it_is_and_said_once(tape, graphs, capsys):
    tape.error = RuntimeError("operation not permitted when stream is capturing")
    results = times(lambda x: x + 1, graphs, *([torch.full((1,), float(n))] for n in range(4)))
    assert [float(one) for one in results] == [1, 2, 3, 4]
    assert (tape.recorded, tape.replayed) == (1, 0)
    said = capsys.readouterr().err
    assert (
        said.count("m: calls with such inputs are made without a CUDA graph from now on: nothing was recorded")
        == 1
    )


def test_what_was_recorded_with_a_tensor_that_is_gone_is_made_as_it_is(tape, graphs, capsys):
    around = graphs.around("f", lambda x: x + 1)
    for n in range(3):
        assert float(around(torch.tensor(float(n)))) == n + 1
    tape.gone = RuntimeError("CUDA graph replay detected 1 dead tensor(s).\n  where it was made")
    for n in range(3):
        assert float(around(torch.tensor(float(n)))) == n + 1
    assert tape.replayed == 2
    said = capsys.readouterr().err
    assert said.count("from now on: CUDA graph replay detected 1 dead tensor(s).\n") == 1


def test_a_call_that_fails_either_way_may_be_recorded_later(tape, graphs):
    around = graphs.around("f", lambda x: x.view(2, 2) if tape.error is None else x.view(3))
    around(ones(4))
    tape.error = RuntimeError("not recorded")
    with pytest.raises(RuntimeError, match="invalid for input"):
        around(ones(4))
    tape.error = None
    for _ in range(2):
        assert around(ones(4)).shape == (2, 2)
    assert tape.replayed == 2


def test_what_the_model_raises_while_it_is_recorded_is_raised(tape, graphs):
    wrong = []

    def picky(x):
        if wrong:
            raise ValueError(wrong.pop())
        return x * 1

    around = graphs.around("f", picky)
    around(ones(3))
    wrong.append("three")
    with pytest.raises(ValueError, match="three"):
        around(ones(3))
    assert torch.equal(around(ones(3)), ones(3))
    assert (tape.recorded, tape.replayed) == (2, 1)


def test_an_older_torch_records_nothing(monkeypatch):
    assert not refusal()
    monkeypatch.setattr(torch.cuda, "graph", lambda cuda_graph, pool=None: None)
    assert refusal() == f"recording takes torch 2.13, and this is {torch.__version__}"


def test_an_error_of_the_gpu_is_no_reason_to_go_on(tape, graphs):
    lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    lost.error_code = 700
    tape.error = lost
    around = graphs.around("f", lambda x: x)
    around(ones(3))
    with pytest.raises(RuntimeError):
        around(ones(3))


def test_a_run_that_is_given_up_while_it_is_recorded_ends_so(graphs):
    def given_up(x):
        if graphs._kinds:
            raise ContextLost
        return x

    around = graphs.around("f", given_up)
    around(ones(3))
    with pytest.raises(ContextLost):
        around(ones(3))


# --- in a run ------------------------------------------------------------------------------------------------


@pytest.fixture
def bench():
    with Bench(Transfers(Gpu(torch.device("cpu")), None)) as bench:
        yield bench


def test_runs_have_their_own_results_though_graphs_have_one_place_for_all(bench, graphs, tape):
    model = SimpleNamespace(f=lambda x: x * 2)
    for n in range(5):
        (result,) = bench.run(model, call(torch.full((4,), float(n))), method="f", graphs=graphs)
        assert_equal(result, torch.full((4,), 2.0 * n))
    assert tape.replayed == 4


def test_calls_that_are_made_one_by_one_keep_theirs_too(bench, graphs, tape):
    parts = [call(torch.full((4,), float(n))) for n in range(6)]
    results = bench.run(SimpleNamespace(f=lambda x: x * 2), *parts, method="f", graphs=graphs)
    assert [one.tolist() for one in results] == [[2.0 * n] * 4 for n in range(6)]
    assert tape.replayed == 5


def test_one_of_several_that_fails_does_so_alone(bench, graphs):
    wrong = ["the first alone"]

    def picky(x):
        if wrong:
            raise ValueError(wrong.pop())
        return x * 2

    parts = [call(torch.full((4,), float(n))) for n in range(4)]
    first, *others = bench.run(SimpleNamespace(f=picky), *parts, method="f", graphs=graphs)
    assert isinstance(first, ModelError)
    assert [one.tolist() for one in others] == [[2.0 * n] * 4 for n in range(1, 4)]
