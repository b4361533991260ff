"""The slots of a worker on a GPU: what of a run's memory is told, and when a run is in none.

Torch is not asked for anything here; `CachingPool` stands in its place, on memory that is mapped as a GPU's is.
"""

import gc
import os
import weakref

import pytest
import torch
from caching_pool import MIB, CachingPool
from cuda_driver import load
from onecopy.protocol import cuda
from onecopy.protocol.errors import WorkspaceOverflow
from onecopy.protocol.gpu import Gpu
from onecopy.protocol.messages import MapSlot, Run, UnmapSlot, Used
from onecopy.workers import device_pool, device_segments, device_slot
from onecopy.workers.arena import built
from onecopy.workers.slot import Workspace

SLOT_BYTES = 64 * MIB


@pytest.fixture(scope="module", autouse=True)
def driver(tmp_path_factory):
    if built().path is None:
        pytest.skip(built().reason)
    load(tmp_path_factory.mktemp("driver"))


class Worker:
    """A workspace, and what it told."""

    def __init__(self):
        self.told = []
        self.trimmed = 0
        self.workspace = Workspace([], self.told.append, Gpu(0, torch.device("cpu")))
        self.workspace._has_own_memory = True  # the driver of tests says that the processor can use it as well

    def pool(self, slot=1):
        return self.workspace._slots[slot]._pools[0]

    def trim(self, _device):
        self.trimmed += 1

    def map(self, number=1):
        fd = cuda.create(SLOT_BYTES, 0)
        self.workspace.map(MapSlot(number, SLOT_BYTES), [fd])
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.close(fd)

    def run(self, *sizes_bytes, weight_set=1, slot=1, is_strict=False, keeps=None):
        """Let blocks of these sizes live at once; return whether that was in a slot."""
        order = Run(1, weight_set, "", [], 0, 0, slot, SLOT_BYTES if slot else 0, 0)

        def call(stay):
            if stay.is_outside:
                return False
            blocks = []
            try:
                for size_bytes in sizes_bytes:
                    blocks.append(self.pool(slot).take(size_bytes))  # noqa: PERF401 - the next may be refused
                stay.sign("", [torch.zeros(3)], {})
            except torch.OutOfMemoryError as error:
                raise stay.cause_of(error) from error
            finally:
                for block in blocks[1:] if keeps is not None else blocks:
                    self.pool(slot).give(block)
                if keeps is not None:
                    keeps.append(blocks[0])
            return True

        return self.workspace.run(order, call, is_strict=is_strict)


@pytest.fixture
def worker(monkeypatch):
    one = Worker()
    device_segments.spill_to(None, None)
    monkeypatch.setattr(device_slot, "TorchPool", lambda _device: CachingPool())
    monkeypatch.setattr(device_pool, "trim", one.trim)
    return one


def mapped_bytes():
    """How much of the memory of the stand-in's device is mapped."""
    gc.collect()
    with open("/proc/self/maps", encoding="ascii") as maps:
        ranges = [line.split()[0].split("-") for line in maps if "stand-in-device" in line]
    return sum(int(end, 16) - int(begin, 16) for begin, end in ranges)


def test_the_first_run_of_a_model_is_in_no_slot_and_what_it_took_goes_back(worker):
    worker.map()
    assert [worker.run(weight_set=1), worker.run(weight_set=1), worker.run(weight_set=2)] == [False, True, False]
    assert worker.trimmed == 2
    worker.workspace.forget(1)
    assert worker.trimmed == 3
    assert [worker.run(weight_set=1), worker.run(weight_set=2)] == [False, True]
    worker.workspace.unmap(UnmapSlot(1))


def test_where_a_run_has_no_slot_nothing_is_given_back_each_time(worker):
    assert not worker.run(slot=0)
    assert worker.trimmed == 0


def test_what_a_run_took_is_told_when_it_is_more_than_before(worker):
    worker.map()
    worker.run()
    worker.run(10 * MIB)
    worker.run(9 * MIB)
    worker.run(20 * MIB)
    assert [one.footprint_bytes for one in worker.told] == [10 * MIB * 9 // 8, 20 * MIB * 9 // 8]
    assert {one.spilled_bytes for one in worker.told} == {0}
    assert worker.told[0].signature
    worker.workspace.unmap(UnmapSlot(1))


def test_a_strict_run_says_what_it_needed(worker):
    worker.map()
    worker.run()
    with pytest.raises(WorkspaceOverflow, match="needs at least 121,634,816 bytes, and its slot has 67,108,864"):
        worker.run(50 * MIB, 52 * MIB, is_strict=True)
    assert worker.run(50 * MIB, is_strict=True)
    worker.workspace.unmap(UnmapSlot(1))


def test_a_slot_in_which_something_lives_stays_and_runs_after_that_are_in_none(worker):
    worker.map()
    worker.run()
    kept, pool = [], worker.pool()
    assert worker.run(3 * MIB, 5 * MIB, keeps=kept)
    [escaped] = kept
    escaped.write(5)
    assert worker.told == [Used(1, worker.told[0].signature, 9 * MIB, 0, 3 * MIB)]
    assert not worker.run()
    worker.workspace.unmap(UnmapSlot(1))  # the supervisor does so when nobody sits there any more
    worker.map(2)
    assert worker.run(40 * MIB, slot=2)
    assert escaped.holds(5)
    worker.workspace.unmap(UnmapSlot(2))
    worker.workspace.forget(2)
    assert mapped_bytes() == SLOT_BYTES
    pool.give(escaped)
    del pool
    worker.workspace.forget(1)
    assert mapped_bytes() == 0


def test_what_only_a_cycle_holds_does_not_cost_the_slot(worker):
    worker.map()
    worker.run()
    pool = weakref.proxy(worker.pool())

    class Cycle:
        def __init__(self, block):
            self.block, self.myself = block, self

        def __del__(self):
            pool.give(self.block)

    kept = []
    order = Run(1, 1, "", [], 0, 0, 1, SLOT_BYTES, 0)
    gc.disable()
    try:
        worker.workspace.run(
            order, lambda stay: kept.append(Cycle(pool.take(3 * MIB))) or kept.clear(), is_strict=False
        )
    finally:
        gc.enable()
    assert worker.run(3 * MIB)
    worker.workspace.unmap(UnmapSlot(1))


def test_a_slot_that_cannot_be_used_is_said_and_runs_go_without(worker, capfd, monkeypatch):
    class Empty(CachingPool):
        def prime(self, small_bytes, large_bytes):
            pass

    monkeypatch.setattr(device_slot, "TorchPool", lambda _device: Empty())
    worker.map()
    assert "runs without a slot: torch took 0 bytes" in capfd.readouterr().err
    assert not worker.run()
    worker.workspace.unmap(UnmapSlot(1))


def test_the_memory_of_a_slot_goes_back_when_it_is_unmapped(worker):
    worker.map()
    worker.run()
    worker.run(10 * MIB)
    assert mapped_bytes() == SLOT_BYTES
    worker.workspace.unmap(UnmapSlot(1))
    assert mapped_bytes() == 0
