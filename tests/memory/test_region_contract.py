"""What every store of regions does, and what only one made of kernel memory can be asked."""

import fcntl
import mmap
import os

import pytest
from onecopy.pool.memory.base import RegionBusy, RegionRefused, RegionStore
from onecopy.pool.memory.fake import FakeStore
from onecopy.pool.memory.machine import FakeMachine
from onecopy.pool.memory.memfd import SEALS, MemfdStore


class OverMemfd:
    """Does to a memfd what another process would."""

    def __init__(self):
        self.store = MemfdStore()
        self.mapping = None

    def write(self, fd, data, offset_bytes=0):
        os.pwrite(fd, data, offset_bytes)

    def read(self, fd, size_bytes, offset_bytes=0):
        return os.pread(fd, size_bytes, offset_bytes)

    def map_writably(self, fd):
        self.mapping = mmap.mmap(fd, 4096, flags=mmap.MAP_SHARED)

    def unmap(self, fd):
        self.mapping.close()

    def open_fds(self):
        return frozenset(os.listdir("/proc/self/fd"))


class OverFake:
    def __init__(self):
        self.store = FakeStore()
        self.write, self.read = self.store.write, self.store.read
        self.map_writably, self.unmap = self.store.map_writably, self.store.unmap

    def open_fds(self):
        return self.store.open_fds


@pytest.fixture(params=[OverMemfd, OverFake], ids=["memfd", "fake"])
def world(request):
    world = request.param()
    before = world.open_fds()
    made = []
    create = world.store.create

    def keep(make):
        def kept(*arguments, **options):
            made.append(make(*arguments, **options))
            return made[-1]

        return kept

    world.store.create = keep(create)
    yield world
    for region in made:
        world.store.close(region)
    assert world.open_fds() == before, "a descriptor leaked"


@pytest.fixture
def store(world):
    store: RegionStore = world.store
    return store


def test_a_new_region_has_its_size_reads_as_zeros_and_takes_no_memory(world, store):
    region = store.create(10_000, "weights")
    assert (region.size_bytes, region.sealed, region.name, region.is_open) == (10_000, False, "weights", True)
    assert world.read(region.fd, 20_000) == bytes(10_000)
    assert store.allocated_bytes(region) == 0


def test_a_resizable_region_grows_and_keeps_what_is_in_it(world, store):
    region = store.create(4096, "slot", resizable=True)
    world.write(region.fd, b"abc")
    store.grow(region, 12_288)
    world.write(region.fd, b"xyz", 8192)
    assert region.size_bytes == 12_288
    assert world.read(region.fd, 3) == b"abc"
    assert world.read(region.fd, 20_000, 8192) == b"xyz" + bytes(4093)


def test_only_a_resizable_region_grows_and_only_to_a_larger_size(store):
    fixed, resizable = store.create(4096, "mailbox"), store.create(4096, "slot", resizable=True)
    with pytest.raises(PermissionError):
        store.grow(fixed, 8192)
    with pytest.raises(ValueError, match="4096 are no more"):
        store.grow(resizable, 4096)
    with pytest.raises(RegionRefused, match="'slot' needs"):
        store.grow(resizable, 1 << 50)
    assert (fixed.size_bytes, resizable.size_bytes) == (4096, 4096)


def test_emptying_gives_the_pages_behind_back_and_keeps_the_size(world, store):
    region = store.create(16_384, "slot", resizable=True)
    for offset_bytes in range(0, 16_384, 4096):
        world.write(region.fd, b"x", offset_bytes)
    store.empty(region, 5000)  # in the middle of the second page, which stays
    assert store.allocated_bytes(region) == 8192
    assert world.read(region.fd, 20_000) == (b"x" + bytes(4095)) * 2 + bytes(8192)
    store.empty(region, 16_384)
    assert store.allocated_bytes(region) == 8192
    store.empty(region, 0)
    assert (store.allocated_bytes(region), region.size_bytes) == (0, 16_384)


def test_what_is_sealed_cannot_be_emptied(world, store):
    region = store.create(4096, "weights")
    world.write(region.fd, b"x")
    store.seal(region)
    with pytest.raises(PermissionError):
        store.empty(region, 0)
    assert world.read(region.fd, 1) == b"x"


def test_only_written_pages_are_allocated(world, store):
    region = store.create(10 * 4096, "weights")
    world.write(region.fd, b"x", 3 * 4096 + 5)
    assert store.allocated_bytes(region) == 4096
    world.write(region.fd, b"xy", 5 * 4096 - 1)
    assert store.allocated_bytes(region) == 3 * 4096


def test_what_was_written_stays_readable_after_sealing(world, store):
    region = store.create(4096, "weights")
    world.write(region.fd, b"content", 100)
    store.seal(region)
    assert region.sealed
    assert world.read(region.fd, 7, 100) == b"content"


def test_a_sealed_region_refuses_writing(world, store):
    region = store.create(4096, "weights")
    store.seal(region)
    with pytest.raises(PermissionError):
        world.write(region.fd, b"x")
    assert world.read(region.fd, 1) == b"\0"


def test_sealing_again_does_nothing(store):
    region = store.create(4096, "weights")
    store.seal(region)
    store.seal(region)
    assert region.sealed


def test_a_writable_mapping_holds_sealing_off_until_it_is_gone(world, store):
    region = store.create(4096, "weights")
    world.map_writably(region.fd)
    with pytest.raises(RegionBusy, match="'weights' cannot be sealed"):
        store.seal(region)
    assert not region.sealed
    world.unmap(region.fd)
    store.seal(region)
    assert region.sealed


def test_a_region_larger_than_memory_is_refused_with_the_numbers(store):
    with pytest.raises(RegionRefused, match=r"'huge' needs 1,152,921,504,606,846,976 bytes") as caught:
        store.create(1 << 60, "huge")
    assert caught.value.needed_bytes == 1 << 60
    assert 0 < caught.value.available_bytes < 1 << 60


@pytest.mark.parametrize("size_bytes", [0, -1])
def test_a_region_without_a_size_is_an_error(world, store, size_bytes):
    with pytest.raises(ValueError, match="at least one"):
        store.create(size_bytes, "nothing")


def test_closing_gives_the_descriptor_back_and_again_does_nothing(world, store):
    before = world.open_fds()
    region = store.create(4096, "weights")
    store.close(region)
    store.close(region)
    assert not region.is_open
    assert world.open_fds() == before


@pytest.mark.parametrize("action", ["seal", "allocated_bytes"])
def test_a_closed_region_can_do_nothing(store, action):
    region = store.create(4096, "weights")
    store.close(region)
    with pytest.raises(ValueError, match="'weights' is closed"):
        getattr(store, action)(region)


def test_memfd_never_changes_its_size_not_even_before_it_is_sealed():
    region = MemfdStore().create(4096, "weights")
    for size_bytes in (0, 8192):
        with pytest.raises(PermissionError):
            os.ftruncate(region.fd, size_bytes)
    MemfdStore().close(region)


def test_memfd_carries_all_seals_and_is_not_inherited():
    store = MemfdStore()
    region = store.create(4096, "weights")
    store.seal(region)
    assert fcntl.fcntl(region.fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    assert not os.get_inheritable(region.fd)
    store.close(region)


def test_memfd_takes_no_more_than_its_machine_has_available():
    store = MemfdStore(FakeMachine(memory_bytes=10_000, used_bytes=4000))
    region = store.create(6000, "slot", resizable=True)
    with pytest.raises(RegionRefused, match="7,000 bytes, and 6,000 are available"):
        store.create(7000, "weights")
    with pytest.raises(RegionRefused, match="6,001 bytes, and 6,000 are available"):
        store.grow(region, 12_001)
    store.close(region)


def test_fake_memory_in_use_is_no_longer_available():
    store = FakeStore(capacity_bytes=3 * 4096)
    region = store.create(2 * 4096, "first")
    store.write(region.fd, bytes(2 * 4096))
    with pytest.raises(RegionRefused, match="4,096 are available"):
        store.create(2 * 4096, "second")
    assert repr(store) == "<FakeStore, 1 regions, 4,096 bytes available>"
    store.close(region)
    store.close(store.create(3 * 4096, "third"))
