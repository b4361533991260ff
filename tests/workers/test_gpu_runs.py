"""Runs on a GPU: how much is transferred for them, and what becomes of them if it fails."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from card import DEVICE, OnCard
from driven import call, pack
from gpu_bench import Model, assert_equal
from onecopy.protocol.errors import ModelError
from onecopy.protocol.values import decode
from onecopy.workers.cuda_errors import ContextLost

# --- how many transfers --------------------------------------------------------------------------------------


def test_calls_that_are_made_as_one_are_one_transfer_each_way(bench, gpu):
    model = Model()
    results = bench.run(model, *(call(torch.full((2, 3), float(number))) for number in range(32)), max_batch=32)
    assert len(model.given) == 1
    assert (gpu.sent, gpu.fetched) == (1, 1)
    for number, result in enumerate(results):
        assert_equal(result, torch.full((2, 3), float(number)))


def test_many_small_calls_are_waited_for_together(bench, gpu):
    values = [torch.tensor([float(number)]) for number in range(200)]
    ((*results,),) = bench.run(Model(), pack(values))
    assert (gpu.sent, gpu.fetched, gpu.waits) == (200, 200, 1)
    assert_equal(results, values)


def test_one_of_many_that_fails_does_so_alone(bench):
    def picky(x):
        if float(x.cpu()) == 3:
            raise ValueError("three")
        return x * 2

    ((*results,),) = bench.run(
        SimpleNamespace(f=picky), pack([torch.tensor(float(one)) for one in range(6)]), method="f"
    )
    assert isinstance(results.pop(3), ModelError)
    assert [float(one) for one in results] == [0, 2, 4, 8, 10]


def test_hooks_of_batches_see_the_host_and_may_write_there(bench):
    class Hooked:
        def collate(self, calls):
            xs = [args[0] for args, _ in calls]
            together = torch.nn.utils.rnn.pad_sequence(xs, batch_first=True)
            for x in xs:
                x.zero_()
            return [together], {}

        def __call__(self, x):
            assert type(x) is OnCard
            return {"sums": x.sum(1)}

        def split(self, result, count):
            assert result["sums"].device.type == "cpu"
            return [float(one) for one in result["sums"]]

    first = bench.in_mailbox(torch.arange(5000.0))
    before = bench.mailbox(20_000)
    options = {"max_batch": 8, "collate": "collate", "split": "split"}
    for _ in range(2):
        assert bench.run(Hooked(), first, call(torch.ones(7)), **options) == [4999 * 2500, 7]
    assert bench.mailbox(20_000) == before


def test_a_hook_may_join_what_it_has_on_the_gpu(bench, capsys):
    class Hooked:
        def __init__(self):
            self.table = torch.zeros(2, 3, device=DEVICE)

        def collate(self, calls):
            for row, ((x,), _) in zip(self.table, calls, strict=True):
                row.copy_(x[0])
            return [self.table], {}

        def __call__(self, x):
            assert type(x) is OnCard
            return x.mul_(2)

    hooked = Hooked()
    parts = [call(torch.full((1, 3), float(n))) for n in (1, 2)]
    results = bench.run(hooked, *parts, max_batch=8, collate="collate")
    assert [one.tolist() for one in results] == [[[2.0] * 3], [[4.0] * 3]]
    assert hooked.table.cpu().tolist() == [[1.0] * 3, [2.0] * 3], "the model has a copy of it"
    assert capsys.readouterr().err == "", "they were made as one"


def test_items_of_a_stream_come_one_by_one(bench, gpu):
    def double(x):
        for factor in range(3):
            yield {"x": x * factor}

    assert bench.run(SimpleNamespace(f=double), call(torch.ones(2)), method="f", credit=9) == [None]
    items = [bench.supervisor.receive() for _ in range(3)]
    values = [decode(one.message.body, one.buffers)["x"].tolist() for one in items]
    assert values == [[0, 0], [1, 1], [2, 2]]
    assert gpu.waits == 4


# --- what fails on the GPU -----------------------------------------------------------------------------------


def broken():
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    error.error_code = 700
    return error


def test_an_error_of_the_model_is_told_when_the_gpu_has_done_its_work(bench, gpu):
    (error,) = bench.run(SimpleNamespace(), call(torch.ones(1)), method="__init__")
    assert isinstance(error, ModelError)
    assert gpu.waits == 1


@pytest.mark.parametrize(
    ("parts", "options", "calls"),
    [
        ([call(torch.ones(1))], {}, 1),
        ([call(torch.ones(1)) for _ in range(8)], {"max_batch": 8}, 1),
        ([call(torch.ones(1)) for _ in range(8)], {}, 1),
        ([pack([torch.ones(1) for _ in range(5)])], {}, 5),
    ],
    ids=["one", "batch", "several", "pack"],
)
@pytest.mark.parametrize("raises", [False, True], ids=["unnoticed", "noticed"])
def test_what_fails_on_the_gpu_ends_the_run_at_once(bench, gpu, parts, options, calls, raises):
    seen = []

    def write(x):
        seen.append(x)
        gpu.error = broken()
        if raises:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")
        return x

    with pytest.raises(ContextLost) as raised:
        bench.run(SimpleNamespace(f=write), *parts, method="f", **options)
    assert raised.value.__cause__ is gpu.error
    assert len(seen) == (1 if raises else calls)


def test_a_stream_ends_at_the_item_that_fails(bench, gpu):
    def items(x):
        yield x
        gpu.error = broken()
        yield x

    with pytest.raises(ContextLost):
        bench.run(SimpleNamespace(f=items), call(torch.ones(1)), method="f", credit=9)
    assert bench.supervisor.receive().message.attempt == 1


def test_a_run_that_is_given_up_is_waited_for(bench, gpu):
    def slow():
        bench.interrupts._inbox.given_up.add(1)
        bench.interrupts.check()

    (answer,) = bench.run(SimpleNamespace(f=slow), call(), method="f")
    assert answer.code == "cancelled"
    assert gpu.waits == 1
    gpu.error = broken()
    bench.interrupts._inbox.given_up.clear()
    with pytest.raises(ContextLost):
        bench.run(SimpleNamespace(f=slow), call(), method="f")
