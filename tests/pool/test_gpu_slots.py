"""Slots of pools on a GPU: made with one size, replaced by another, and counted from the beginning.

The GPU is a stand-in whose memory is the processor's, where models compute on the CPU.
"""

import os
import signal

import cuda_driver
import pytest
import torch
from leftovers import wait_until
from onecopy.pool import Model, Pool
from slot_models import MIB, Slotted, place_of

UUID = "GPU-00000000-0000-4000-8000-000000000001"
ONE = {"cuda:0": {"budget": "1GiB", "reserve": 0}}
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="asks the kernel where memory is")


class OnGpu(Slotted):
    """Tells where what it computes with lies."""

    def where(self, _x):
        return os.getpid(), place_of(torch.ones(MIB))


@pytest.fixture(scope="module", autouse=True)
def driver(tmp_path_factory):
    with cuda_driver.for_processes(tmp_path_factory.mktemp("driver")):
        yield


def device(pool):
    return next(one for one in pool.memory().devices if one.name == "cuda:0")


def slots_bytes(pool):
    return device(pool).accounts["slots"]


def ring(pool):
    return pool.status().rings[0]


def test_a_run_is_in_memory_of_the_gpu_all_of_which_counts():
    with Pool({"m": Model(OnGpu)}, workers=2, devices=ONE) as pool:
        assert pool.model("m", method="where")(0)[1] == "/memfd:stand-in-device (deleted)"
        assert slots_bytes(pool) == 2 * 64 * MIB
        assert ring(pool).slots == 2


def test_what_does_not_fit_is_spilled_once_and_then_the_slots_are_others():
    with Pool({"m": Model(OnGpu)}, workers=2, devices=ONE) as pool:
        use = pool.model("m", method="use")
        assert use(100 * MIB) == 14
        assert ring(pool).spills == 1
        assert [use(100 * MIB) for _ in range(5)] == [14] * 5
        for future in [use.submit(100 * MIB) for _ in range(10)]:
            assert future.result() == 14
        assert (ring(pool).spills, ring(pool).spilled_bytes) == (1, 0)
        assert ring(pool).size_bytes == 192 * MIB  # 125 MiB more, in steps
        assert wait_until(lambda: slots_bytes(pool) == 2 * 192 * MIB)


def test_slots_become_smaller_when_the_model_that_needed_them_is_gone():
    with Pool({"m": Model(OnGpu), "large": Model(OnGpu)}, workers=1, devices=ONE) as pool:
        assert pool.model("large", method="use")(300 * MIB) == 14
        assert pool.model("large", method="use")(300 * MIB) == 14
        assert slots_bytes(pool) == 448 * MIB
        pool.unload("large")
        assert pool.model("m", method="use")(10 * MIB) == 14
        assert wait_until(lambda: slots_bytes(pool) == 64 * MIB)


def test_what_a_model_keeps_stays_what_it_was_and_the_slot_is_replaced():
    with Pool({"m": Model(OnGpu)}, workers=1, devices=ONE) as pool:
        keep, kept_values = pool.model("m", method="keep"), pool.model("m", method="kept_values")
        for value in range(3):
            keep(value)
            assert pool.model("m", method="use")(40 * MIB) == 14
        assert kept_values()[1] == [0.0, 1.0, 2.0]
        assert ring(pool).stateful == ["m"]
        assert slots_bytes(pool) <= 3 * 64 * MIB


def test_the_slot_of_a_killed_worker_is_replaced():
    with Pool({"m": Model(OnGpu)}, workers=1, devices=ONE) as pool:
        where = pool.model("m", method="where")
        pid, _ = where(0)
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: where(0)[0] != pid)
        assert where(0)[1] == "/memfd:stand-in-device (deleted)"
        assert slots_bytes(pool) == 64 * MIB


def test_slots_that_find_no_memory_are_made_once_something_is_unloaded(tmp_path, monkeypatch):
    told = tmp_path / "gpus"

    def leave_free(free_bytes):
        told.write_text(f"gpu {UUID} {8 << 30} {(8 << 30) - free_bytes} a stand-in\n")

    monkeypatch.setenv("STAND_IN_GPUS", str(told))
    leave_free(40 * MIB)
    with Pool({"m": Model(OnGpu), "other": Model(OnGpu)}, workers=1, devices={"cuda:0": {"reserve": 0}}) as pool:
        where = pool.model("m", method="where")
        assert "stand-in-device" not in where(0)[1]
        assert slots_bytes(pool) == 0
        assert any("where slots do not suffice" in text for text in pool.status().fallbacks)
        leave_free(8 << 30)
        assert wait_until(lambda: device(pool).free_bytes > 4 << 30)  # or it would evict what is left
        pool.unload("other")
        assert wait_until(lambda: "stand-in-device" in where(0)[1])
        assert slots_bytes(pool) == 64 * MIB
        assert not any("where slots do not suffice" in text for text in pool.status().fallbacks)
