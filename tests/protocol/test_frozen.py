"""What is thawed is what was frozen: bit for bit, tied as before, and inside the one copy."""

import os

import pytest
import torch
from freezing import TOKENS, mapped, regions_of, roundtrip, shared, small_module, span_of, write
from onecopy.protocol.frozen import freeze, thaw
from onecopy.protocol.manifest import Manifest
from torch import nn


@pytest.fixture
def small():
    return small_module()


def test_a_thawed_module_computes_the_same_bits(small):
    thawed = roundtrip(small)
    assert torch.equal(thawed(TOKENS), small(TOKENS))
    assert thawed.state_dict().keys() == small.state_dict().keys()
    assert not thawed.training


def test_every_tensor_lies_inside_the_mapping(small):
    frozen = freeze(small)
    (mapping,) = regions_of(frozen)
    thawed = thaw(frozen.skeleton, frozen.manifest, [mapping])
    tensors = [*thawed.parameters(), *thawed.buffers(), thawed.row]
    assert all(tensor.data_ptr() in span_of(mapping) for tensor in tensors)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in thawed.parameters())


def test_ties_and_views_stay_ties_and_views(small):
    thawed = roundtrip(small)
    assert thawed.layer.weight is thawed.embedding.weight
    assert thawed.row.data_ptr() == thawed.embedding.weight[3].data_ptr()
    with torch.no_grad():
        thawed.embedding.weight[3] = 7
    assert torch.all(thawed.row == 7)


def test_parameters_keep_what_they_are(small):
    small.layer.bias.note = "kept"
    thawed = roundtrip(small)
    assert type(thawed.layer.bias) is nn.Parameter
    assert not thawed.layer.bias.requires_grad
    assert thawed.layer.bias.note == "kept"
    assert thawed.embedding.weight.requires_grad
    assert thawed.embedding.weight.is_leaf


def test_buffers_stay_buffers_persistent_or_not(small):
    thawed = roundtrip(small)
    assert dict(thawed.named_buffers()).keys() == dict(small.named_buffers()).keys()
    assert "scale" not in thawed.state_dict()
    assert thawed.scale == 3


def test_gradients_flow_through_a_thawed_module(small):
    thawed = roundtrip(small)
    for module in (small, thawed):
        module(TOKENS).sum().backward()
    assert torch.equal(thawed.embedding.weight.grad, small.embedding.weight.grad)


def test_hooks_and_closures_travel(small):
    factor = torch.full((50,), 2.0)
    small.register_forward_hook(lambda module, inputs, output: output * factor)
    assert torch.equal(roundtrip(small)(TOKENS), small(TOKENS))


def test_a_class_that_exists_only_here_travels():
    class Local(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    module = Local(3, 3)
    assert torch.equal(roundtrip(module)(torch.ones(3)), module(torch.ones(3)))


def test_a_tensor_and_a_module_shared_by_several_objects_stay_one():
    layer = nn.Linear(2, 2)
    thawed = roundtrip({"a": layer, "b": [layer, layer.weight]})
    assert thawed["a"] is thawed["b"][0]
    assert thawed["a"].weight is thawed["b"][1]


def test_roles_tell_parameters_from_the_rest(small):
    frozen = freeze(small)
    roles = {entry.size_bytes: entry.role for entry in frozen.manifest.storages}
    assert roles[50 * 16 * 4] == "parameter"
    assert roles[8] == "mutable"  # num_batches_tracked
    assert sum(entry.role == "parameter" for entry in frozen.manifest.storages) == len(list(small.parameters()))


def test_a_write_is_seen_by_no_other_thaw_and_not_by_the_original(small):
    frozen = freeze(small)
    with shared(frozen) as regions:
        ours, theirs = (thaw(frozen.skeleton, frozen.manifest, mapped(regions)) for _ in range(2))
    with torch.no_grad():
        ours.layer.weight.zero_()
    assert torch.all(ours.embedding.weight == 0)
    assert torch.equal(theirs.layer.weight, small.layer.weight)
    assert torch.any(small.layer.weight != 0)


def test_sealed_regions_refuse_to_be_written_again(small):
    frozen = freeze(small)
    with shared(frozen) as regions, pytest.raises(PermissionError):
        write(frozen, [region.fd for region in regions])


def test_writing_continues_where_the_kernel_stopped(small, monkeypatch):
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, data[:1000], offset))
    frozen = freeze(small)
    assert torch.equal(thaw(frozen.skeleton, frozen.manifest, regions_of(frozen))(TOKENS), small(TOKENS))


def test_an_object_without_memory_needs_no_region():
    frozen = freeze({"answer": 42, "empty": torch.empty(0, 3), "meta": torch.empty(5, device="meta")})
    assert frozen.manifest == Manifest((), ())
    thawed = thaw(frozen.skeleton, frozen.manifest, [])
    assert thawed["answer"] == 42
    assert thawed["empty"].size() == (0, 3)
    assert thawed["meta"].is_meta


def test_a_default_device_does_not_move_what_is_thawed(small):
    frozen = freeze(small)
    mappings = regions_of(frozen)
    with torch.device("meta"):
        thawed = thaw(frozen.skeleton, frozen.manifest, mappings)
    assert all(parameter.device.type == "cpu" for parameter in thawed.parameters())
