"""Weights that are cast on their way to a GPU: what arrives is what the processor would have cast."""

import os
import subprocess
import sys

import cuda_driver
import pytest
import torch
from onecopy.protocol import cuda
from onecopy.protocol.casting import Casts
from onecopy.protocol.contents import OpenFiles
from onecopy.protocol.frozen import freeze, thaw
from onecopy.protocol.gpu import begin
from onecopy.protocol.mapping import map_region
from onecopy.workers.heap import anonymous_bytes
from onecopy.workers.sources import cast
from safetensors.torch import load_file, save_file
from torch import nn

MIB = 1 << 20


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    cuda_driver.load(tmp_path_factory.mktemp("driver"))
    return begin(0)


class Mixed(nn.Module):
    """Large and small ones, a tied one, one that is laid out otherwise, one of whole numbers, a large buffer."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(1)
        self.large = nn.Parameter(torch.randn(700, 1111, dtype=dtype), requires_grad=False)
        self.tied = self.large
        self.small = nn.Parameter(torch.randn(3, dtype=dtype), requires_grad=False)
        self.turned = nn.Parameter(torch.randn(600, 700, dtype=dtype).t(), requires_grad=False)
        self.register_buffer("whole", torch.arange(300_000))
        self.register_buffer("table", torch.randn(500_000, dtype=dtype))


def brought(module, casts, gpu):
    """Freeze a module, fill its regions, and return what is thawed from them, and whether they are found equal."""
    frozen = freeze(module, gpu=gpu)
    mappings = []
    with OpenFiles() as files:
        fillings = frozen.fillings(files, gpu, casts)
        on_device = frozen.manifest.on_device
        digests, are_equal = [], []
        for index, filling in enumerate(fillings):
            size_bytes = frozen.manifest.region_sizes_bytes[index]
            fd = cuda.create(size_bytes, 0) if index in on_device else os.memfd_create("region")
            if index not in on_device:
                os.ftruncate(fd, size_bytes)
            digests.append(filling.digest())
            filling.write(fd)
            are_equal.append(filling.equals(fd))
            mappings.append(gpu.map(fd, size_bytes) if index in on_device else map_region(fd, size_bytes))
            os.close(fd)
            filling.release()
    return thaw(frozen.skeleton, frozen.manifest, mappings), digests, are_equal


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("float32", "bfloat16"), ("float32", "float16"), ("bfloat16", "float32"), ("float16", "bfloat16")],
)
@pytest.mark.parametrize("is_in_file", [True, False])
def test_what_arrives_is_what_the_processor_would_have_cast(gpu, tmp_path, given, wanted, is_in_file):
    module, expected = Mixed(getattr(torch, given)), cast(Mixed(getattr(torch, given)), wanted)
    if is_in_file:
        names = ("large", "small", "table")
        save_file({name: getattr(module, name).data for name in names}, tmp_path / "file.safetensors")
        for name, tensor in load_file(tmp_path / "file.safetensors").items():
            getattr(module, name).data = tensor
    casts = Casts()
    cast(module, wanted, casts)
    assert module.tied is module.large
    assert module.large.dtype == getattr(torch, wanted)
    thawed, digests, are_equal = brought(module, casts, gpu)
    assert all(are_equal)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(thawed.state_dict()[name].cpu(), tensor), name
    assert thawed.tied is thawed.large
    assert thawed.turned.stride() == expected.turned.stride()
    _, others, _ = brought(expected, None, gpu)
    assert digests == others, "so that equal weights are found, however they came about"


def test_a_region_that_holds_something_else_is_not_taken_for_it(gpu):
    module, casts = Mixed(), Casts()
    cast(module, "bfloat16", casts)
    frozen = freeze(module, gpu=gpu)
    with OpenFiles() as files:
        index = next(iter(frozen.manifest.on_device))
        filling = frozen.fillings(files, gpu, casts)[index]
        fd = cuda.create(filling.size_bytes, 0)
        filling.write(fd)
        offset_bytes = filling.contents[0][0]
        gpu.map(fd, filling.size_bytes, is_writable=True).bytes_at(offset_bytes + 7, 1).add_(1)
        assert not filling.equals(fd)
        os.close(fd)


def test_casting_later_takes_no_memory_now():
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(64 * MIB // 4), requires_grad=False)
    before_bytes = anonymous_bytes()
    cast(module, "bfloat16", Casts())
    assert anonymous_bytes() - before_bytes < 4 * MIB


def test_what_else_has_the_memory_of_what_is_cast_keeps_it(gpu):
    module, casts = Mixed(), Casts()
    flat = torch.randn(2 * MIB // 4 * 2)
    module.large, module.table = (nn.Parameter(one, requires_grad=False) for one in flat.chunk(2))
    module.tied, module.loose = module.large, flat[100:5000]
    expected = cast(Mixed(), "float16")
    expected.large, expected.table = (
        nn.Parameter(one.half(), requires_grad=False) for one in flat.clone().chunk(2)
    )
    loose = module.loose.clone()
    cast(module, "float16", casts)
    thawed, _, are_equal = brought(module, casts, gpu)
    assert all(are_equal)
    assert torch.equal(thawed.large.cpu(), expected.large)
    assert torch.equal(thawed.table.cpu(), expected.table)
    assert torch.equal(thawed.loose, loose)


def test_what_is_on_another_device_is_cast_there():
    module = nn.Module()
    module.register_buffer("table", torch.empty(MIB, device="meta"))
    cast(module, "bfloat16", casts := Casts())
    assert (module.table.device.type, module.table.dtype) == ("meta", torch.bfloat16)
    assert not casts


def test_a_module_with_parameters_that_are_no_plain_tensors_is_cast_at_once():
    module = Mixed()
    module.other = nn.Parameter(torch.empty(0, device="meta"), requires_grad=False)
    cast(module, "bfloat16", casts := Casts())
    assert not casts
    assert torch.equal(module.large, Mixed().large.to(torch.bfloat16))


TOUCHES = """
import torch
from onecopy.protocol.casting import Casts
weight = Casts().stand_in(torch.ones(100), torch.float16)
print(weight.shape, weight.dtype, flush=True)
weight.sum()
"""


def test_who_touches_what_stands_in_for_a_weight_dies_rather_than_compute_with_it():
    done = subprocess.run([sys.executable, "-c", TOUCHES], capture_output=True, text=True, check=False)
    assert done.stdout == "torch.Size([100]) torch.float16\n"
    assert done.returncode == -11
