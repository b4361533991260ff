"""Mappings are private, storages lie in them, and nobody copies."""

import faulthandler
import gc
import mmap
import os
import signal
import weakref

import pytest
import torch
from onecopy.protocol.mapping import buffer_in, map_region, map_shared, storage_in


@pytest.fixture
def region():
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4 * 4096)
    os.pwrite(fd, bytes(range(256)) * 64, 0)
    yield fd
    os.close(fd)


def address_of(mapping):
    return torch.frombuffer(mapping, dtype=torch.uint8).data_ptr()


def as_tensor(storage, dtype=torch.uint8):
    return torch.empty(0, dtype=dtype).set_(storage)


def test_a_storage_lies_in_the_mapping_at_its_offset(region):
    mapping = map_region(region, 4 * 4096)
    storage = storage_in(mapping, 4096 + 64, 100)
    assert storage.nbytes() == 100
    assert storage.data_ptr() == address_of(mapping) + 4096 + 64
    assert bytes(as_tensor(storage).numpy()) == bytes(range(64, 164))


def test_an_empty_storage_refers_to_nothing(region):
    mapping = map_region(region, 4096)
    alive = weakref.ref(mapping)
    storage = storage_in(mapping, 4096, 0)
    del mapping
    assert storage.nbytes() == 0
    assert alive() is None


def test_a_storage_keeps_the_mapping_alive(region):
    mapping = map_region(region, 4096)
    alive = weakref.ref(mapping)
    tensor = as_tensor(storage_in(mapping, 64, 64))
    del mapping
    gc.collect()
    assert alive() is not None
    assert tensor[0] == 64
    del tensor
    gc.collect()
    assert alive() is None


def test_a_write_is_seen_by_no_other_mapping_and_not_by_the_region(region):
    ours, theirs = (map_region(region, 4 * 4096) for _ in range(2))
    as_tensor(storage_in(ours, 0, 4096)).fill_(255)
    assert ours[:4096] == b"\xff" * 4096
    assert theirs[:4] == os.pread(region, 4, 0) == bytes(range(4))


def test_a_sealed_region_can_still_be_written_privately(region):
    import fcntl

    fcntl.fcntl(region, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    mapping = map_region(region, 4096)
    as_tensor(storage_in(mapping, 0, 64)).fill_(7)
    assert mapping[:1] == b"\7"
    with pytest.raises(PermissionError):
        os.pwrite(region, b"x", 0)


def test_what_is_written_into_a_shared_mapping_is_seen_by_all(region):
    ours, theirs = (map_shared(region, 4 * 4096, is_inherited=True) for _ in range(2))
    as_tensor(storage_in(ours, 4096, 64)).fill_(255)
    assert theirs[4096:4160] == os.pread(region, 64, 4096) == b"\xff" * 64


@pytest.mark.parametrize(("is_inherited", "signal_number"), [(True, 0), (False, signal.SIGSEGV)])
def test_a_forked_child_has_a_shared_mapping_or_not(region, is_inherited, signal_number):
    mapping = map_shared(region, 4096, is_inherited=is_inherited)
    child = os.fork()
    if not child:
        faulthandler.disable()
        os._exit(mapping[1] != b"\1")
    assert os.waitpid(child, 0)[1] == signal_number


def test_an_open_private_mapping_does_not_hinder_sealing(region):
    import fcntl

    mapping = map_region(region, 4096)
    mapping[0] = 1
    fcntl.fcntl(region, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_a_buffer_is_writable_and_lies_in_the_mapping(region):
    mapping = map_region(region, 4096)
    buffer = buffer_in(mapping, 64, 10)
    assert bytes(buffer) == bytes(range(64, 74))
    buffer[0] = 0
    assert mapping[64] == b"\0"


@pytest.mark.parametrize("make", [storage_in, buffer_in])
@pytest.mark.parametrize(("offset_bytes", "size_bytes"), [(0, 4097), (4096, 1), (-1, 1), (64, -1)])
def test_what_does_not_lie_inside_the_mapping_is_refused(region, make, offset_bytes, size_bytes):
    with pytest.raises(ValueError, match="do not lie inside a mapping of 4096 bytes"):
        make(map_region(region, 4096), offset_bytes, size_bytes)


@pytest.mark.parametrize("size_bytes", [0, -1])
def test_a_mapping_without_a_size_is_refused(region, size_bytes):
    with pytest.raises(ValueError, match="at least one"):
        map_region(region, size_bytes)


def test_a_mapping_larger_than_its_region_is_refused(region):
    with pytest.raises(ValueError, match="the region has 16384"):
        map_region(region, 5 * 4096)


def test_a_default_device_does_not_move_storages(region):
    with torch.device("meta"):
        assert storage_in(map_region(region, 4096), 0, 64).device == torch.device("cpu")


def test_the_address_range_is_given_back_when_the_last_view_is_gone(region):
    buffer = buffer_in(map_region(region, 4096), 0, 10)
    start = torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()
    assert _is_mapped(start)
    del buffer
    gc.collect()
    assert not _is_mapped(start)


def test_a_mapping_holds_no_descriptor(region):
    before = os.listdir("/proc/self/fd")
    mapping = map_region(region, 4096)
    assert os.listdir("/proc/self/fd") == before
    assert len(mapping) == 4096


def _is_mapped(address):
    with open("/proc/self/maps") as file:
        return any(line.startswith(f"{address:x}-") for line in file)


def test_the_descriptor_may_be_closed_once_mapped():
    fd = os.memfd_create("test")
    os.ftruncate(fd, mmap.PAGESIZE)
    mapping = map_region(fd, mmap.PAGESIZE)
    os.close(fd)
    assert mapping[0] == b"\0"
