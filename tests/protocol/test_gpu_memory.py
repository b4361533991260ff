"""A frozen object on a GPU, or on a stand-in whose memory is the processor's: laid out, filled, thawed."""

import gc
import os
import weakref

import cuda_driver
import numpy as np
import pytest
import torch
from onecopy.protocol import cuda
from onecopy.protocol.contents import OpenFiles
from onecopy.protocol.filling import Filling
from onecopy.protocol.frozen import freeze, thaw
from onecopy.protocol.gpu import NO_GPU, DeviceMemory, begin
from onecopy.protocol.manifest import DEVICE_ALIGNMENT_BYTES, DEVICE_BLOB_BYTES, Manifest
from onecopy.protocol.mapping import map_region
from torch import nn

GRAIN = 2 << 20


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    cuda_driver.load(tmp_path_factory.mktemp("driver"))
    return begin(0)


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(100, 100), requires_grad=False)
        self.tied = self.weight
        self.register_buffer("view", self.weight.data[:10])
        self.register_buffer("own", torch.rand(7))
        self.loose = torch.rand(5)
        self.array = np.random.rand(50_000)
        self.shared = nn.Parameter(torch.from_numpy(self.array), requires_grad=False)


class Kept:
    """A frozen object's regions, as the supervisor would have made them."""

    def __init__(self, frozen, gpu):
        self.fds = []
        with OpenFiles() as files:
            self.fillings = frozen.fillings(files, gpu)
            for index, filling in enumerate(self.fillings):
                if index in frozen.manifest.on_device:
                    self.fds.append(cuda.create(filling.size_bytes, gpu.ordinal))
                else:
                    self.fds.append(os.memfd_create("test"))
                    os.ftruncate(self.fds[-1], filling.size_bytes)
                filling.write(self.fds[-1])
                assert filling.equals(self.fds[-1])
        regions = enumerate(zip(self.fds, frozen.manifest.region_sizes_bytes, strict=True))
        self.mappings = [
            gpu.map(fd, size) if index in frozen.manifest.on_device else map_region(fd, size)
            for index, (fd, size) in regions
        ]
        for fd in self.fds:
            os.close(fd)


def test_no_gpu_is_none():
    assert begin(NO_GPU) is None


def test_what_modules_have_registered_goes_to_the_gpu_and_nothing_else(gpu):
    original = Holder()
    frozen = freeze(original, gpu=gpu)
    assert frozen.manifest.on_device == {1}
    assert frozen.manifest.region_sizes_bytes[1] == GRAIN
    held = Kept(frozen, gpu)
    thawed = thaw(frozen.skeleton, frozen.manifest, held.mappings)
    for name, tensor in original.state_dict().items():
        assert torch.equal(thawed.state_dict()[name].cpu(), tensor)
    assert torch.equal(thawed.loose, original.loose)
    np.testing.assert_array_equal(thawed.array, original.array)
    [on_gpu] = [one for one in held.mappings if isinstance(one, DeviceMemory)]
    inside = range(on_gpu.storage(0, 1).data_ptr(), on_gpu.storage(0, 1).data_ptr() + len(on_gpu))
    assert thawed.weight.data_ptr() in inside
    assert thawed.tied is thawed.weight
    assert thawed.view.data_ptr() == thawed.weight.data_ptr()
    assert thawed.own.data_ptr() not in inside, "a model may write there"
    assert thawed.loose.data_ptr() not in inside
    assert thawed.shared.data_ptr() == thawed.array.ctypes.data, "an array has the same memory"


def test_a_write_into_what_is_copied_stays_here(gpu):
    frozen = freeze(Holder(), gpu=gpu)
    held = Kept(frozen, gpu)
    one, other = (thaw(frozen.skeleton, frozen.manifest, held.mappings) for _ in range(2))
    before = other.own.clone()
    one.own.zero_()
    assert torch.equal(other.own, before)


def test_memory_stays_mapped_as_long_as_a_tensor_is_there(gpu):
    frozen = freeze(nn.Linear(10, 10), gpu=gpu)
    held = Kept(frozen, gpu)
    mapping = weakref.ref(held.mappings[0])
    weight = thaw(frozen.skeleton, frozen.manifest, held.mappings).weight[2:].detach()
    del held
    gc.collect()
    assert mapping() is not None
    assert weight.cpu().shape == (8, 10)
    del weight
    gc.collect()
    assert mapping() is None


def test_a_piece_outside_is_refused(gpu):
    fd = cuda.create(GRAIN, 0)
    memory = gpu.map(fd, 100)
    os.close(fd)
    assert len(memory) == GRAIN
    for offset, size in ((-1, 5), (0, GRAIN + 1), (GRAIN, 1), (5, -1)):
        with pytest.raises(ValueError, match="do not lie inside"):
            memory.storage(offset, size)


def test_more_than_there_is_cannot_be_mapped(gpu):
    fd = cuda.create(GRAIN, 0)
    with pytest.raises(OSError, match="cannot be mapped: cuMemMap: CUDA_ERROR_INVALID_VALUE"):
        gpu.map(fd, 2 * GRAIN)
    os.close(fd)


@pytest.mark.parametrize("size_bytes", [1, 4 << 20, (32 << 20) + 1, (70 << 20) + 5])
def test_contents_of_any_size_arrive_from_memory_and_from_files(gpu, tmp_path, size_bytes):
    (tmp_path / "file").write_bytes(os.urandom(size_bytes))
    mapped = torch.from_file(str(tmp_path / "file"), shared=False, size=size_bytes, dtype=torch.uint8)
    for tensor in (mapped, mapped.clone()):
        module = nn.Module()
        module.weight = nn.Parameter(tensor, requires_grad=False)
        frozen = freeze(module, gpu=gpu)
        held = Kept(frozen, gpu)
        assert torch.equal(thaw(frozen.skeleton, frozen.manifest, held.mappings).weight.cpu(), mapped)


def test_another_content_is_told_from_it(gpu):
    module = nn.Linear(100, 100)
    with OpenFiles() as files:
        [filling] = freeze(module, gpu=gpu).fillings(files, gpu)
        assert isinstance(filling, Filling)
        fd = cuda.create(GRAIN, 0)
        filling.write(fd)
        module.weight.data[50, 50] += 1
        assert not filling.equals(fd)
        os.close(fd)


def test_large_storages_have_regions_of_their_own_and_the_rest_a_pack_on_each_side():
    sizes_bytes = [DEVICE_BLOB_BYTES, 100, 200, 5 << 20, 64]
    manifest = Manifest.laid_out([(one, "mutable") for one in sizes_bytes], None, {0, 1, 2}, GRAIN)
    assert manifest.region_sizes_bytes == (DEVICE_BLOB_BYTES, 5 << 20, 4096, GRAIN)
    assert manifest.on_device == {0, 3}
    assert [entry.region for entry in manifest.storages] == [0, 3, 3, 1, 2]
    assert manifest.storages[2].offset_bytes == DEVICE_ALIGNMENT_BYTES
    assert Manifest.from_wire(manifest.to_wire()) == manifest
