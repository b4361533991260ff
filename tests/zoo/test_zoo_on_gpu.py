"""A sample of the zoo on a GPU, or on a stand-in for one, where it computes what it computes in this process."""

from __future__ import annotations

import cuda_driver
import pytest
import torch
from onecopy.pool import Model, Pool
from zoo.table import SPECIMENS, differences, show

pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # what the models say of themselves
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes other last bits than the processor"),
]

#: Each of them is loaded by a process of its own.
EVERY = 10


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_pool_on_a_gpu_serves_them(tmp_path):
    shown = {specimen.name: show(specimen) for specimen in SPECIMENS[::EVERY]}
    models = {name: Model(one.exhibit, repoint=False) for name, one in shown.items()}
    with (
        cuda_driver.for_processes(tmp_path),
        Pool(models, workers=2, slots=2, threads=1, devices={"cuda:0": {}}) as pool,
    ):
        futures = {name: pool.submit(name, one.inputs) for name, one in shown.items()}
        failed = {name: differences(futures[name].result(), one.expected) for name, one in shown.items()}
        assert {name: said for name, said in failed.items() if said} == {}
        again = {name: pool.run(name, one.inputs) for name, one in shown.items()}
        failed = {name: differences(again[name], one.expected) for name, one in shown.items()}
        assert {name: said for name, said in failed.items() if said} == {}
