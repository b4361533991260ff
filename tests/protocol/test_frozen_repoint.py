"""The original joins the one copy: its memory is released, and what is not is counted."""

import numpy as np
import pytest
import torch
from allocated import allocated_bytes
from freezing import TOKENS, lies_in, mapped, regions_of, roundtrip, shared, small_module, span_of
from onecopy.protocol.contents import OpenFiles
from onecopy.protocol.frozen import freeze, thaw
from torch import nn


@pytest.fixture
def small():
    return small_module()


@torch.no_grad()  # a graph would save weights for its backward pass, and so hold their old memory
def test_repointing_releases_the_memory_of_the_original():
    module = nn.Sequential(*(nn.Linear(3600, 3600) for _ in range(4)))  # 207 MB
    size_bytes = sum(parameter.nbytes for parameter in module.parameters())
    x = torch.randn(1, 3600)
    expected = module(x)
    parameters = list(module.parameters())
    frozen = freeze(module)
    mappings = regions_of(frozen)
    before = allocated_bytes()
    assert frozen.repoint(mappings) == 0
    assert before - allocated_bytes() > 0.95 * size_bytes
    assert torch.equal(module(x), expected)
    assert all(old is new for old, new in zip(parameters, module.parameters(), strict=True))
    assert all(lies_in(parameter, mappings) for parameter in module.parameters())


@torch.no_grad()
def test_repointing_keeps_ties_views_strides_and_settings(small):
    small.turned = torch.arange(200.0).reshape(10, 20).t()
    small.part = torch.arange(100.0)[10:20]
    small.conjugate = torch.randn(6, dtype=torch.complex64).conj()
    small.hidden = lambda: small.turned
    names = ("turned", "part", "conjugate", "scale", "row")
    expected, kept = small(TOKENS), {name: getattr(small, name).clone() for name in names}
    strides = {name: getattr(small, name).stride() for name in names}
    frozen = freeze(small)
    (mapping,) = regions_of(frozen)
    assert frozen.repoint([mapping]) == 0
    assert torch.equal(small(TOKENS), expected)
    for name in names:
        tensor = getattr(small, name)
        assert tensor.data_ptr() in span_of(mapping)
        assert tensor.stride() == strides[name]
        assert torch.equal(tensor, kept[name])
    assert small.conjugate.is_conj()
    assert small.layer.weight is small.embedding.weight
    assert small.row.untyped_storage()._cdata == small.layer.weight.untyped_storage()._cdata
    assert not small.layer.bias.requires_grad
    assert small.layer.weight.requires_grad


def test_repointing_leaves_nobody_else_a_write(small):
    frozen = freeze(small)
    with shared(frozen) as regions:
        thawed = thaw(frozen.skeleton, frozen.manifest, mapped(regions))
        frozen.repoint(mapped(regions))
    with torch.no_grad():
        small.layer.weight.zero_()
    assert torch.any(thawed.layer.weight != 0)


def test_repointing_reaches_tensors_of_inference_mode(small):
    with torch.inference_mode():
        tensors = [torch.ones(1000), nn.Parameter(torch.ones(10)), torch.ones(100)[20:]]
    frozen = freeze([small, *tensors])
    (mapping,) = regions_of(frozen)
    with torch.inference_mode():
        assert frozen.repoint([mapping]) == 0
    assert all(tensor.data_ptr() in span_of(mapping) for tensor in tensors)
    assert not small.layer.weight.is_inference()


def test_repointing_counts_what_it_cannot_reach(small):
    array, sparse = np.ones(20_000), torch.eye(100).to_sparse()
    outside = small.norm.running_mean.view(5, 10)
    frozen = freeze([small, array, sparse])
    held = frozen.repoint(regions_of(frozen))
    assert held == array.nbytes + sparse.indices().nbytes + sparse.values().nbytes + outside.nbytes


def test_repointing_is_done_once(small):
    frozen = freeze(small)
    mappings = regions_of(frozen)
    frozen.repoint(mappings)
    assert repr(frozen).endswith("handed over>")
    for again in (lambda: frozen.repoint(mappings), lambda: frozen.fillings(OpenFiles())):
        with pytest.raises(ValueError, match="was re-pointed"):
            again()


def test_what_was_repointed_can_be_frozen_again(small):
    expected = small(TOKENS)
    first = freeze(small)
    first.repoint(regions_of(first))
    assert torch.equal(roundtrip(small)(TOKENS), expected)
