"""Values of clients in pools on a GPU: they arrive as they were sent, and come back as they were made."""

import asyncio

import batch_models
import cuda_driver
import mailbox_models
import numpy as np
import pytest
import torch
from onecopy.pool import Model, Pool

ONE = {"cuda:0": {"budget": "1GiB", "reserve": 0}}
LARGE = 1_000_000  # numbers; far above what goes in one piece with its request


@pytest.fixture(scope="module", autouse=True)
def driver(tmp_path_factory):
    with cuda_driver.for_processes(tmp_path_factory.mktemp("driver")):
        yield


@pytest.fixture(scope="module")
def pool(driver):
    batched = batch_models.Batched()
    hooks = {"collate": "padded", "split": "unpadded"}
    models = {
        "arrays": mailbox_models.Arrays(),
        "batched": Model(batched, max_batch=32, max_wait_ms=200),
        "padded": Model(batched, method="longest", max_batch=8, max_wait_ms=200, **hooks),
        "layers": batch_models.Layers(),
    }
    with Pool(models, workers=1, devices=ONE) as pool:
        for name in models:
            pool.run(name, torch.ones(1, 1))
        yield pool


def method(pool, name, model="arrays"):
    return pool.model(model, method=name)


VALUES = {
    "tensor": torch.arange(float(LARGE)),
    "array": np.arange(float(LARGE)),
    "nested": {"a": [torch.ones(3), (np.ones(LARGE), None)], "b": "text"},
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_values_come_back_as_they_were(pool, value):
    result = pool.run("arrays", value)
    assert type(result) is type(value)
    assert np.array_equal(first(result), first(value))


def first(value):
    return value if not isinstance(value, dict) else value["a"][1][0]


def test_a_model_may_write_into_its_inputs(pool):
    for x in (torch.ones(LARGE), torch.ones(8)):
        for _ in range(3):
            assert method(pool, "overwrite")(x) == x.numel()
        assert float(x.sum()) == x.numel()


@pytest.mark.parametrize("make", [torch.full, np.full], ids=["tensor", "array"])
def test_a_model_may_keep_its_inputs(pool, make):
    already = len(method(pool, "sums_of_kept")())
    for number in range(4):
        method(pool, "keep")(make((LARGE,), float(number)))
        pool.run("arrays", torch.full((LARGE,), -1.0))
    assert method(pool, "sums_of_kept")()[already:] == [number * LARGE for number in range(4)]


def test_a_retry_after_a_death_sees_what_was_sent(tmp_path):
    with Pool({"arrays": mailbox_models.Arrays()}, workers=1, devices=ONE) as pool:
        x = torch.full((LARGE,), 3.0)
        assert method(pool, "sum_or_die")(x, str(tmp_path / "died")) == 3.0 * LARGE
        assert pool.status().retried == 1


def test_calls_are_batched(pool):
    method(pool, "seen", "batched")()
    xs = [torch.full((2, 30_000), float(number)) for number in range(16)]
    results = [future.result() for future in [pool.submit("batched", x) for x in xs]]
    assert all(torch.equal(result, x * 2) for result, x in zip(results, xs, strict=True))
    assert max(method(pool, "seen", "batched")()) > 2, "some calls were made together"


def test_methods_that_join_and_divide_are_called(pool):
    xs = [torch.ones(1, length) for length in (3, 50_000, 7)]
    results = [future.result() for future in [pool.submit("padded", x) for x in xs]]
    alone = [batch_models.Batched().longest(x) for x in xs]
    assert all(torch.equal(result, one) for result, one in zip(results, alone, strict=True))


def test_many_values_keep_their_order(pool):
    values = [torch.tensor([float(number), 1.0]) for number in range(3000)]
    for result, value in zip(pool.map("arrays", values), values, strict=True):
        assert torch.equal(result, value)


def test_items_of_a_stream_come(pool):
    items = list(method(pool, "tensors", "layers").stream(5, LARGE))
    assert [float(x[0]) for _, x in items] == [0, 1, 2, 3, 4]
    assert {x.numel() for _, x in items} == {LARGE}


def test_in_asyncio_too(pool):
    async def run():
        return await asyncio.gather(*(pool.arun("arrays", torch.full((LARGE,), float(one))) for one in range(4)))

    assert [float(x[0]) for x in asyncio.run(run())] == [0, 1, 2, 3]
