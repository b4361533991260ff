"""Slots of a GPU: on memory of the driver's, or of a strict stand-in for it, that this process has really mapped.

The pool is one that keeps to what torch's sources say, so what is tried here is all but torch on a card.
"""

import ctypes
import gc
import mmap
import os
import random

import pytest
import torch
from caching_pool import MIB, CachingPool
from cuda_driver import load
from onecopy.protocol import cuda
from onecopy.protocol.gpu import Gpu
from onecopy.workers import device_segments
from onecopy.workers.arena import built
from onecopy.workers.device_slot import DeviceSlot

GRAIN = 2 * MIB


@pytest.fixture(scope="module", autouse=True)
def driver(tmp_path_factory):
    if built().path is None:
        pytest.skip(built().reason)
    load(tmp_path_factory.mktemp("driver"))


class Outside:
    """Where segments come from that do not fit."""

    def __init__(self):
        self.mapped = {}
        self.most_bytes = 1 << 40
        allocate = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_ulonglong), ctypes.c_size_t)
        free = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_ulonglong)
        self.functions = allocate(self._allocate), free(self._free)

    @property
    def held_bytes(self):
        return sum(len(one) for one in self.mapped.values())

    def _allocate(self, place, size_bytes):
        if self.held_bytes + size_bytes > self.most_bytes:
            return 2
        mapping = mmap.mmap(-1, size_bytes)
        place[0] = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        self.mapped[place[0]] = mapping
        return 0

    def _free(self, place):
        del self.mapped[place]
        return 0


@pytest.fixture(scope="module")
def all_outside():
    outside = Outside()
    yield outside
    device_segments.spill_to(None, None)


@pytest.fixture
def outside(all_outside):
    all_outside.most_bytes = 1 << 40
    device_segments.spill_to(*all_outside.functions)
    yield all_outside
    assert not all_outside.mapped


class Mapped:
    """A slot, its pool, and the region below, which somebody else can look into."""

    def __init__(self, size_bytes):
        self.gpu = Gpu(0, torch.device("cpu"))
        self.fd = cuda.create(size_bytes, 0)
        self.slot = DeviceSlot(self.gpu, self.fd, size_bytes, CachingPool)

    @property
    def pool(self):
        return self.slot._pools[0]

    def run(self, *sizes_bytes, limit_bytes=0, is_strict=False):
        """Let blocks of these sizes live at once; return what that used."""
        self.slot.enter(limit_bytes, is_strict=is_strict)
        self.write(*sizes_bytes)
        return self.slot.leave()

    def write(self, *sizes_bytes):
        blocks = []
        try:
            for at, size_bytes in enumerate(sizes_bytes):
                blocks.append(self.pool.take(size_bytes))
                blocks[-1].write(at + 1)
            assert all(one.holds(at + 1) for at, one in enumerate(blocks))
        finally:
            for one in blocks:
                self.pool.give(one)

    def detach(self):
        self.slot.detach()


@pytest.fixture
def mapped(outside):
    made = []

    def make(size_bytes):
        made.append(Mapped(size_bytes))
        return made[-1]

    yield make
    for one in made:
        os.close(one.fd)


def region(fd, offset_bytes, size_bytes):
    """What another process would see there."""
    with mmap.mmap(fd, offset_bytes + size_bytes, access=mmap.ACCESS_READ) as pages:
        return pages[offset_bytes:]


def test_a_run_takes_its_memory_out_of_the_region_and_asks_for_no_segment(mapped, outside):
    one = mapped(64 * MIB)
    assert sum(segment.size_bytes for segment in one.pool.segments) == 64 * MIB
    before = list(one.pool.segments)
    one.slot.enter(64 * MIB)
    large, small = one.pool.take(8 * MIB), one.pool.take(1000)
    large.write(7)
    small.write(9)
    assert region(one.fd, 4 * MIB, 8 * MIB) == bytes([7]) * (8 * MIB)  # behind what is for small blocks
    assert region(one.fd, 0, 4 * MIB).count(9) == 1024
    assert one.slot.peak_bytes == 8 * MIB + 1024
    one.pool.give(large)
    one.pool.give(small)
    assert one.slot.try_leave()
    usage = one.slot.usage()
    assert usage == (8 * MIB + 1024, int((8 * MIB + 1024) * 1.125), 0, 0, 0, 0)
    assert one.slot.peak_bytes == usage.peak_bytes
    assert one.pool.segments == before
    assert not outside.mapped
    one.detach()


def test_what_is_freed_is_whole_again(mapped):
    one = mapped(64 * MIB)
    chance = random.Random(1)
    for _ in range(20):
        sizes = [chance.choice([100, 5000, MIB // 2, 2 * MIB, 3 * MIB]) for _ in range(12)]
        assert one.run(*sizes).spilled_bytes == 0
    assert one.run(60 * MIB).spilled_bytes == 0
    one.detach()


def test_what_does_not_fit_is_outside_until_the_slot_is_left(mapped, outside):
    one = mapped(64 * MIB)
    one.slot.enter(64 * MIB)
    made = CachingPool.made
    blocks = [one.pool.take(30 * MIB) for _ in range(3)]
    assert outside.held_bytes == 30 * MIB
    for at, block in enumerate(blocks):
        block.write(at + 1)
    assert [block.holds(at + 1) for at, block in enumerate(blocks)] == [True, True, True]
    for block in blocks:
        one.pool.give(block)
    usage = one.slot.leave()
    assert (usage.peak_bytes, usage.footprint_bytes, usage.spilled_bytes) == (90 * MIB, 64 * MIB, 30 * MIB)
    assert usage.live_blocks == 0
    assert CachingPool.made == made + 1
    assert not outside.mapped  # it went with the pool
    assert one.run(30 * MIB, 30 * MIB).spilled_bytes == 0
    one.detach()


def test_small_blocks_that_find_no_place_are_given_more_of_the_slot(mapped, outside):
    one = mapped(64 * MIB)
    sizes = [MIB // 2] * 24
    assert one.run(*sizes) == (12 * MIB, 12 * MIB * 9 // 8, 0, 0, 0, 0)  # a larger slot is not what they need
    made = CachingPool.made
    for _ in range(3):
        assert one.run(*sizes).spilled_bytes == 0
    assert CachingPool.made == made
    assert one.run(48 * MIB).spilled_bytes == 0
    assert one.run(*sizes, 50 * MIB).spilled_bytes > 0  # but together they need one
    assert not outside.mapped
    one.detach()


def test_a_strict_run_is_refused_what_does_not_fit(mapped, outside):
    one = mapped(64 * MIB)
    one.slot.enter(64 * MIB, is_strict=True)
    block = one.pool.take(50 * MIB)
    with pytest.raises(torch.OutOfMemoryError):
        one.pool.take(50 * MIB)
    assert one.slot.take_refusal() == (64 + 50) * MIB
    assert one.slot.take_refusal() == 0
    one.pool.give(block)
    assert one.slot.leave().spilled_bytes == 0
    assert not outside.mapped
    assert one.run(60 * MIB, is_strict=True).spilled_bytes == 0
    one.detach()


def test_where_the_gpu_has_nothing_outside_either_torch_is_refused_it(mapped, outside):
    one = mapped(64 * MIB)
    outside.most_bytes = 0
    one.slot.enter(64 * MIB)
    with pytest.raises(torch.OutOfMemoryError):
        one.write(50 * MIB, 50 * MIB)
    assert one.slot.try_leave()
    assert one.slot.usage().spilled_bytes == 0
    one.detach()


def test_a_slot_in_which_something_lives_is_not_left_and_then_kept_for_good(mapped, outside):
    one = mapped(64 * MIB)
    one.slot.enter(64 * MIB)
    escaped = one.pool.take(3 * MIB)
    escaped.write(5)
    assert not one.slot.try_leave()
    assert one.slot.leave()[3:5] == (1, 3 * MIB)
    assert not one.slot.is_empty
    one.slot.keep()
    with pytest.raises(RuntimeError, match="something lives in it"):
        one.slot.enter(64 * MIB)
    other = mapped(64 * MIB)
    other.run(50 * MIB)
    assert escaped.holds(5)
    other.detach()
    one.pool.give(escaped)
    one.detach()


def test_what_is_dropped_after_a_look_lets_the_slot_be_left(mapped, outside):
    one = mapped(64 * MIB)
    one.slot.enter(64 * MIB)
    blocks = [one.pool.take(50 * MIB), one.pool.take(30 * MIB)]
    assert one.slot.leave().live_blocks == 2
    assert outside.held_bytes == 30 * MIB
    for block in blocks:
        one.pool.give(block)
    usage = one.slot.leave()
    assert (usage.live_blocks, usage.spilled_bytes) == (0, 30 * MIB)
    assert not outside.mapped
    one.run(50 * MIB)
    one.detach()


def test_one_slot_is_entered_at_a_time(mapped):
    one, other = mapped(64 * MIB), mapped(32 * MIB)
    one.slot.enter(64 * MIB)
    with pytest.raises(RuntimeError, match="another is entered"):
        other.slot.enter(32 * MIB)
    assert one.slot.try_leave()
    with pytest.raises(ValueError, match="were to be used"):
        other.slot.enter(64 * MIB)
    other.run(20 * MIB, limit_bytes=32 * MIB)
    other.detach()
    one.detach()


def test_a_slot_that_is_unmapped_gives_everything_back(mapped):
    before = set(os.listdir("/proc/self/fd"))
    one = mapped(64 * MIB)
    one.run(10 * MIB)
    one.detach()
    gc.collect()
    with open("/proc/self/maps", encoding="ascii") as maps:
        assert "stand-in-device" not in maps.read()
    assert set(os.listdir("/proc/self/fd")) - before == {str(one.fd)}


def test_a_slot_that_torch_still_has_segments_of_is_not_unmapped(mapped):
    one = mapped(64 * MIB)
    one.slot.enter(64 * MIB)
    escaped = one.pool.take(MIB)
    one.slot.leave()
    pool = one.pool
    with pytest.raises(RuntimeError, match="bytes yet of a slot"):
        one.detach()
    pool.give(escaped)
    del pool
    one.detach()


@pytest.mark.parametrize("size_bytes", [GRAIN, 3 * GRAIN, 5 * GRAIN])
def test_a_slot_too_small_for_torchs_way_of_asking_works_with_what_is_outside(mapped, outside, size_bytes):
    one = mapped(size_bytes)
    assert one.run(MIB // 2).spilled_bytes == 0
    assert one.run(3 * MIB).spilled_bytes == 20 * MIB
    assert not outside.mapped
    one.detach()


@pytest.mark.parametrize("seed", range(3))
def test_whatever_runs_do_blocks_are_their_own_and_nothing_is_left(mapped, outside, seed):
    chance = random.Random(seed)
    slots = [mapped(64 * MIB), mapped(24 * MIB)]
    for _ in range(10):
        one, is_strict = chance.choice(slots), chance.random() < 0.3
        one.slot.enter(0, is_strict=is_strict)
        living = []
        for byte in range(1, 25):
            if living and chance.random() < 0.4:
                block, written = living.pop(chance.randrange(len(living)))
                assert block.holds(written)
                one.pool.give(block)
            try:
                block = one.pool.take(chance.choice([700, 40_000, MIB, MIB + 1, 3 * MIB, 11 * MIB]))
            except torch.OutOfMemoryError:
                assert is_strict
                assert one.slot.take_refusal() > sum(segment.size_bytes for segment in one.pool.segments)
                continue
            block.write(byte)
            living.append((block, byte))
        assert all(block.holds(written) for block, written in living)
        assert not (is_strict and outside.mapped)
        assert one.slot.leave().live_blocks == len(living)
        for block, _ in living:
            one.pool.give(block)
        usage = one.slot.leave()
        assert usage.live_blocks == 0
        assert usage.footprint_bytes <= one.slot._size_bytes
        assert not (is_strict and usage.spilled_bytes)
        assert not outside.mapped
    for one in slots:
        one.detach()


class Stubborn(CachingPool):
    """Torch, if it asked for memory in another way."""

    def prime(self, small_bytes, large_bytes):
        super().prime(small_bytes, 0)


def test_a_pool_that_does_not_take_the_slot_as_it_should_is_found_out_at_once(outside):
    fd = cuda.create(64 * MIB, 0)
    try:
        with pytest.raises(RuntimeError, match="torch took 4,194,304 bytes"):
            DeviceSlot(Gpu(0, torch.device("cpu")), fd, 64 * MIB, Stubborn)
    finally:
        os.close(fd)


def test_a_pool_that_cannot_be_made_anew_as_it_was_is_used_as_it_is_and_that_is_said(mapped, outside, capfd):
    one = mapped(64 * MIB)
    one.slot.enter(64 * MIB)
    for block in [one.pool.take(50 * MIB), one.pool.take(50 * MIB)]:
        one.pool.give(block)
    one.slot._make_pool = Stubborn
    assert one.slot.try_leave()
    assert "a slot of the GPU is not used wholly" in capfd.readouterr().err
    assert one.run(50 * MIB).spilled_bytes == 0
    one.detach()
