"""Regions in the memory of a GPU: on the one of this machine, or on a stand-in for its driver, as strict."""

import gc
import os
import subprocess
import sys

import pytest
from cuda_driver import build, load
from onecopy.pool.memory.base import RegionRefused
from onecopy.protocol import cuda

GRAIN = 2 << 20
PLENTY = 1 << 40


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    load(tmp_path_factory.mktemp("driver"))
    from cuda.bindings import driver

    assert int(driver.cuInit(0)[0]) == 0
    context = driver.cuDevicePrimaryCtxRetain(driver.cuDeviceGet(0)[1])[1]
    yield driver, context
    driver.cuCtxSetCurrent(0)


@pytest.fixture
def store(driver):
    from onecopy.pool.memory.cuda import CudaStore

    binding, _ = driver
    binding.cuCtxSetCurrent(0)  # nothing of this needs a context
    before = set(os.listdir("/proc/self/fd"))
    made = []
    store = CudaStore(0, lambda: PLENTY)
    create = store.create

    def keep(*arguments, **options):
        made.append(create(*arguments, **options))
        return made[-1]

    store.create = keep
    yield store
    assert int(binding.cuCtxGetCurrent()[1]) == 0, "something has made a context"
    for region in made:
        store.close(region)
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before


def copied(driver, direction, *arguments):
    """Copy to or from the device, which takes a context."""
    binding, context = driver
    binding.cuCtxSetCurrent(context)
    try:
        assert int(getattr(binding, direction)(*arguments)[0]) == 0
    finally:
        binding.cuCtxSetCurrent(0)


def read(driver, address, size_bytes):
    content = bytearray(size_bytes)
    copied(driver, "cuMemcpyDtoH", content, address, size_bytes)
    return bytes(content)


def test_a_region_is_whole_grains_all_of_which_are_there_at_once(store):
    region = store.create(10_000, "weights")
    assert (region.size_bytes, region.sealed, region.name, region.is_open) == (GRAIN, False, "weights", True)
    assert store.allocated_bytes(region) == GRAIN
    assert not os.get_inheritable(region.fd)
    assert store.create(GRAIN + 1, "weights").size_bytes == 2 * GRAIN


def test_what_one_mapping_writes_another_reads_though_the_descriptor_is_closed(driver, store):
    region = store.create(GRAIN, "weights")
    writable = cuda.DeviceMapping(region.fd, GRAIN, 0, is_writable=True)
    copied(driver, "cuMemcpyHtoD", writable.address + 100, b"content", 7)
    store.seal(region)
    readable = cuda.DeviceMapping(region.fd, GRAIN, 0, is_writable=False)
    store.close(region)
    del writable
    gc.collect()
    assert region.sealed
    assert len(readable) == GRAIN
    assert read(driver, readable.address + 100, 7) == b"content"


def test_what_is_mapped_read_only_may_not_be_written(driver, store):
    binding, _ = driver
    region = store.create(GRAIN, "weights")
    location = binding.CUmemLocation()
    location.type = binding.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    for is_writable, rights in ((False, 1), (True, 3)):  # CU_MEM_ACCESS_FLAGS_PROT_READ and _READWRITE
        mapping = cuda.DeviceMapping(region.fd, GRAIN, 0, is_writable=is_writable)
        assert int(binding.cuMemGetAccess(location, mapping.address)[1]) == rights


WRITES = """
import ctypes, os, sys
ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
from onecopy.protocol import cuda
mapping = cuda.DeviceMapping(cuda.create(2 << 20, 0), 2 << 20, 0, is_writable=sys.argv[2] == "writable")
ctypes.memset(mapping.address, 1, 8)
"""


@pytest.mark.parametrize(("rights", "code"), [("writable", 0), ("readable", -11)])
def test_on_the_stand_in_a_write_through_a_read_only_mapping_faults(tmp_path, rights, code):
    library = build(tmp_path)
    done = subprocess.run([sys.executable, "-c", WRITES, library, rights], check=False, capture_output=True)
    assert done.returncode == code, done.stderr.decode()


def test_a_mapping_of_another_size_leaves_nothing_behind(driver, store):
    region = store.create(GRAIN, "weights")
    for size_bytes in (GRAIN // 2, 2 * GRAIN):
        with pytest.raises(cuda.CudaError, match="CUDA_ERROR_INVALID_VALUE"):
            cuda.DeviceMapping(region.fd, size_bytes, 0, is_writable=False)
    assert len(cuda.DeviceMapping(region.fd, GRAIN, 0, is_writable=False)) == GRAIN


def test_what_is_no_memory_of_a_device_is_refused_by_the_drivers_name_for_it(driver):
    with pytest.raises(cuda.CudaError, match="cuMemImportFromShareableHandle: CUDA_ERROR"):
        cuda.DeviceMapping(987, GRAIN, 0, is_writable=False)


def test_a_region_keeps_its_size_and_its_memory(store):
    with pytest.raises(PermissionError, match="'slot' is memory of a GPU, which keeps its size"):
        store.create(GRAIN, "slot", resizable=True)
    region = store.create(GRAIN, "slot")
    with pytest.raises(PermissionError, match="'slot' is memory of a GPU, which keeps its size"):
        store.grow(region, 2 * GRAIN)
    with pytest.raises(ValueError, match=f"{GRAIN} are no more"):
        store.grow(region, GRAIN)
    with pytest.raises(PermissionError, match="given back as a whole"):
        store.empty(region, 0)
    store.empty(region, GRAIN)
    assert store.allocated_bytes(region) == GRAIN


def test_memory_that_is_not_free_is_refused_before_the_driver_is_asked(driver):
    from onecopy.pool.memory.cuda import CudaStore

    with pytest.raises(RegionRefused, match=r"'weights' needs 4,194,304 bytes, and 3,000,000 are available"):
        CudaStore(0, lambda: 3_000_000).create(GRAIN + 1, "weights")


def test_memory_that_the_driver_does_not_have_is_refused_with_what_is_free(store):
    with pytest.raises(RegionRefused, match="'huge' needs") as caught:
        store.create(PLENTY, "huge")
    assert caught.value.available_bytes == PLENTY
    assert isinstance(caught.value.__cause__, cuda.CudaError)


@pytest.mark.parametrize("size_bytes", [0, -1])
def test_a_region_without_a_size_is_an_error(store, size_bytes):
    with pytest.raises(ValueError, match="at least one"):
        store.create(size_bytes, "nothing")


@pytest.mark.parametrize("action", ["seal", "allocated_bytes"])
def test_a_closed_region_can_do_nothing(store, action):
    region = store.create(GRAIN, "weights")
    store.close(region)
    store.close(region)
    with pytest.raises(ValueError, match="'weights' is closed"):
        getattr(store, action)(region)
