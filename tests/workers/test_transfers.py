"""Values on their way to a GPU and back: each kind arrives, and nobody else's memory is written into."""

from __future__ import annotations

import collections
import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import on_a_card
import pytest
import torch
from card import DEVICE, Card, OnCard
from driven import call
from gpu_bench import Bench, Gpu, Model, assert_equal
from onecopy.protocol.arrays import bytes_of
from onecopy.protocol.errors import InvalidRequest
from onecopy.protocol.values import decode, encode
from onecopy.workers.cuda_errors import LOST
from onecopy.workers.nested import copied
from onecopy.workers.transfers import Transfers, transfers_of

# --- what a model is called with -----------------------------------------------------------------------------

TENSORS = [
    torch.arange(6.0).reshape(2, 3), torch.tensor(3), torch.zeros(0, 4), torch.tensor([True, False]),
    torch.ones(3, dtype=torch.bfloat16), torch.ones(2, dtype=torch.complex64), torch.arange(5000.0),
    torch.ones(2).to(torch.float8_e4m3fn), torch.arange(20_000, dtype=torch.int16),
]  # fmt: skip


def test_tensors_are_there_however_deep_they_are_nested(bench):
    model = Model()
    nested = {"a": [TENSORS[0], (TENSORS[1], {"b": TENSORS[2:]})], "n": 3, "text": "t"}
    (result,) = bench.run(model, call(nested, named=TENSORS))
    ((args, kwargs),) = model.given
    assert set(map(type, kwargs["named"])) == {OnCard}
    assert type(args[0]["a"][1][0]) is OnCard
    assert args[0]["n"] == 3
    assert args[0]["text"] == "t"
    assert_equal(result, nested)


def test_numpy_arrays_stay_what_they_are(bench):
    model = Model()
    large = np.arange(5000.0)
    (result,) = bench.run(model, call({"large": large, "small": np.float32(2), "list": [np.ones(3)]}))
    (given,) = model.given[0][0]
    assert type(given["large"]) is np.ndarray
    assert result["large"].tolist() == large.tolist()
    assert type(result["small"]) is np.float32


def test_inputs_are_plain_tensors_of_which_gradients_can_be_asked(bench):
    def slope(x):
        with torch.inference_mode(False), torch.enable_grad():
            y = x.requires_grad_()
            assert not y.is_inference()
            return y.detach()

    (result,) = bench.run(SimpleNamespace(slope=slope), call(torch.ones(3)), method="slope")
    assert result.tolist() == [1, 1, 1]


@pytest.mark.parametrize("value", [np.arange(5000.0), torch.arange(5000.0)], ids=["numpy", "torch"])
@pytest.mark.parametrize("device", [DEVICE, torch.device("cpu")], ids=["card", "cpu"])
def test_whatever_a_model_writes_into_its_inputs_a_retry_sees_what_was_sent(device, value):
    """Also where the GPU's memory is the processor's, so that nothing has to be moved."""

    def spoil(x):
        y = x + 1
        x -= x
        return y

    with Card(), Bench(Transfers(Gpu(device), None)) as bench:
        part = bench.in_mailbox(value)
        before = bench.mailbox(40_000)
        for _ in range(2):
            (result,) = bench.run(SimpleNamespace(spoil=spoil), part, method="spoil")
            assert result.tolist() == (value + 1).tolist()
            assert bench.mailbox(40_000) == before


def test_lists_are_made_anew_whatever_they_hold():
    values = [[1, 2, 3], [torch.ones(1)], {"a": [0]}, (["text"],)]
    for value, copy in zip(values, copied(values), strict=True):
        assert copy == value
        assert copy is not value


def test_arguments_that_are_nested_too_deeply_are_refused(gpu):
    endless = []
    endless.append(endless)
    with pytest.raises(InvalidRequest, match="the arguments are nested too deeply"):
        Transfers(gpu, None).sent(endless)


def test_as_deep_as_values_can_travel_they_are_moved(bench):
    deep = torch.ones(1)
    for _ in range(200):
        deep = [{"x": (deep,)}] if deep is None else [deep]
    (result,) = bench.run(Model(), call(deep))
    assert_equal(result, deep)


# --- what it returns -----------------------------------------------------------------------------------------


class Pair(NamedTuple):
    first: object
    second: object


@dataclasses.dataclass(frozen=True)
class Record:
    x: object
    y: object = 3


class Output(collections.OrderedDict):
    """As transformers has it: an item is an attribute, too."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


@dataclasses.dataclass(slots=True)
class Slots:
    x: object


KINDS = {
    "tensor": lambda x: x,
    "tuple": lambda x: (x, [x * 2], {"a": x}),
    "namedtuple": lambda x: Pair(x, Pair(x, None)),
    "dataclass": lambda x: Record(x, Slots(x)),
    "mapping": lambda x: Output(logits=x, more=collections.UserDict(x=x)),
    "default": lambda x: collections.defaultdict(list, x=x),
    "transposed": lambda x: x.t(),
    "expanded": lambda x: x[0].expand(100, 3),
    "slice": lambda x: x[:, 1:2],
    "conjugate": lambda x: torch.complex(x, x).conj(),
    "negative": lambda x: torch.complex(x, x).conj().imag,
    "empty": lambda x: x[:0],
    "large": lambda x: x.repeat(2000, 3),
    "wanting": lambda x: torch.nn.Parameter(x * 1),
    "on the host": lambda x: [x, torch.ones(3)],
    "none": lambda x: None,
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_a_result_comes_back(bench, kind):
    x = torch.arange(6.0).reshape(2, 3)
    for with_grad in (False, True):
        (result,) = bench.run(SimpleNamespace(f=KINDS[kind]), call(x), method="f", grad=with_grad)
        assert_equal(result, decode(*encode(KINDS[kind](x))))


def test_what_the_model_keeps_stays_on_the_gpu(bench):
    class Keeping:
        def __init__(self):
            self.kept = {"state": [torch.ones(3).to(DEVICE)]}

        def get(self):
            return self.kept

    model = Keeping()
    bench.run(model, call(), method="get")
    assert type(model.kept["state"][0]) is OnCard


def test_what_cannot_travel_is_named_as_ever(bench):
    (error,) = bench.run(SimpleNamespace(f=lambda x: Record([x, {1}])), call(torch.ones(1)), method="f")
    assert isinstance(error, InvalidRequest)
    assert "the result.x[1] cannot travel: a set has no order" in error.message


def test_a_result_that_contains_itself_is_refused(bench):
    endless = []
    endless.append(endless)
    (error,) = bench.run(SimpleNamespace(f=lambda: endless), call(), method="f")
    assert "it is nested too deeply, or contains itself" in error.message


def test_a_client_may_send_what_is_on_a_gpu():
    x = torch.arange(12.0).reshape(3, 4)
    kinds = (x, x.t(), x[1:, ::2], x[0].expand(5, 4), torch.complex(x, x).conj(), x[:0], x[2, 3])
    with Card():
        for one in kinds:
            assert torch.equal(bytes_of(one.to(DEVICE)).cpu(), bytes_of(one))


# --- without -------------------------------------------------------------------------------------------------


def test_without_pinned_memory_all_is_copied_as_it_is(gpu):
    with Card(), Bench(Transfers(gpu, None)) as bench:
        model = Model()
        (result,) = bench.run(model, call(TENSORS))
    assert set(map(type, model.given[0][0][0])) == {OnCard}
    assert_equal(result, TENSORS)


def test_without_a_gpu_nothing_is_moved():
    assert transfers_of(None) is None
    host = transfers_of(Gpu(torch.device("cpu")))
    x = torch.ones(2)
    assert host.fetched([x])[0] is x


# --- on a card -----------------------------------------------------------------------------------------------


def test_what_is_tried_on_a_card_holds_without_one(bench):
    on_a_card.check_bytes(bench.transfers, (0, 1, 4095, 4096, 4097, 50_001))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_card_all_arrives_and_its_loss_is_noticed():
    script = str(Path(on_a_card.__file__))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{LOST[710]}\n"), done.stderr
    assert "copied more slowly" not in done.stderr
