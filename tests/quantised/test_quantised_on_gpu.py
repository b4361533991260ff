"""Quantised weights on a stand-in for a GPU, with the processor's memory: there once, and computing the same."""

import cuda_driver
import pytest
import torch
from onecopy.pool import Model, Pool
from quantised_models import INPUT, INT8_BYTES, SHARED, run_plain

#: Torch's own kind computes on processors only.
KINDS = [kind for kind in SHARED if kind != "torch qint8"]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="compares with the processor, bit for bit")


def weights_on_gpu(pool):
    return next(one for one in pool.memory().devices if one.name == "cuda:0").accounts["weights"]


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_weights_are_there_once_for_all_workers_and_models_and_compute_the_same(kind, tmp_path):
    make, weight_bytes = SHARED[kind]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = run_plain(make())
    torch.set_num_threads(before)
    gpus = {"cuda:0": {"budget": "2GiB", "reserve": 0}}
    with (
        cuda_driver.for_processes(tmp_path),
        Pool({"m": Model(make)}, workers=2, devices=gpus, threads=1) as pool,
    ):
        for name in ("m", "again"):
            for future in [pool.submit(name, INPUT) for _ in range(6)]:
                assert torch.equal(future.result(), expected)
            if name == "m":
                one_bytes = weights_on_gpu(pool)
                pool.load("again", Model(make))
        if not kind.startswith("torchao"):  # torch moves those, which on a stand-in leaves them where they are
            assert one_bytes >= INT8_BYTES * weight_bytes
        assert weights_on_gpu(pool) - one_bytes < INT8_BYTES * weight_bytes / 2
