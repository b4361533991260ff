"""Shared by the tests of freezing: real regions, and a module with everything that a module can have."""

from contextlib import contextmanager

import numpy as np
import torch
from onecopy.pool.memory.memfd import MemfdStore
from onecopy.protocol.contents import OpenFiles
from onecopy.protocol.frozen import freeze, thaw
from onecopy.protocol.mapping import map_region
from torch import nn


def write(frozen, fds):
    """What a loader does, but for the supervisor: fill every region."""
    with OpenFiles() as files:
        for filling, fd in zip(frozen.fillings(files), fds, strict=True):
            filling.write(fd)


@contextmanager
def shared(frozen):
    """Real regions, filled and sealed."""
    store = MemfdStore()
    regions = [store.create(size_bytes, "test") for size_bytes in frozen.manifest.region_sizes_bytes]
    try:
        write(frozen, [region.fd for region in regions])
        for region in regions:
            store.seal(region)
        yield regions
    finally:
        for region in regions:
            store.close(region)


def mapped(regions):
    return [map_region(region.fd, region.size_bytes) for region in regions]


def regions_of(frozen):
    with shared(frozen) as regions:
        return mapped(regions)


def roundtrip(obj):
    frozen = freeze(obj)
    return thaw(frozen.skeleton, frozen.manifest, regions_of(frozen))


def span_of(mapping):
    start = torch.frombuffer(memoryview(mapping), dtype=torch.uint8).data_ptr()
    return range(start, start + len(mapping))


def lies_in(tensor, mappings):
    return any(tensor.data_ptr() in span_of(mapping) for mapping in mappings)


def same_bits(left, right):
    """Whether two tensors agree in everything but where they lie; NaN equals itself."""

    def form(tensor):
        view = (tensor.size(), tensor.stride(), tensor.storage_offset(), tensor.is_conj())
        return type(tensor), tensor.dtype, tensor.requires_grad, *view

    def memory(tensor):
        return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())

    return form(left) == form(right) and torch.equal(memory(left), memory(right))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.layer = nn.Linear(16, 50)
        self.layer.weight = self.embedding.weight
        self.norm = nn.BatchNorm1d(50)
        self.register_buffer("scale", torch.tensor(3.0), persistent=False)
        self.layer.bias.requires_grad_(False)
        self.row = self.embedding.weight.detach()[3]
        self.settings = {"names": ["a", "b"], "table": np.arange(20.0)}

    def forward(self, tokens):
        return self.norm(self.layer(self.embedding(tokens))) * self.scale


TOKENS = torch.arange(10)


def small_module():
    torch.manual_seed(0)
    return Small().eval()
