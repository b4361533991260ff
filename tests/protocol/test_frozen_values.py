"""Every kind of tensor and array can be frozen, in any tree, and shares what it shared."""

import numpy as np
import pytest
import torch
from freezing import regions_of, roundtrip, same_bits, span_of
from hypothesis import given, settings
from hypothesis import strategies as st
from onecopy.protocol.frozen import freeze, thaw
from torch import nn

DTYPES = sorted(
    {dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
    - {torch.quint8, torch.qint8, torch.qint32, torch.quint4x2, torch.quint2x4},
    key=str,
)


@pytest.mark.filterwarnings("ignore:ComplexHalf support:UserWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_travels(dtype):
    tensor = torch.empty(0, dtype=dtype).set_(torch.randint(0, 2, (96,), dtype=torch.uint8).untyped_storage())
    thawed = roundtrip([tensor, nn.Parameter(tensor, requires_grad=False)])
    assert same_bits(thawed[0], tensor)
    assert same_bits(thawed[1].data, tensor)


@pytest.mark.filterwarnings("ignore:.*quantiz:UserWarning", "ignore:TypedStorage is deprecated:UserWarning")
def test_quantized_tensors_travel():
    values = torch.randn(64, 64)
    tensors = [
        torch.quantize_per_tensor(values, 0.1, 3, torch.qint8),
        torch.quantize_per_channel(values, torch.rand(64) + 0.1, torch.zeros(64), 0, torch.qint8),
    ]
    for tensor, thawed in zip(tensors, roundtrip(tensors), strict=True):
        assert thawed.qscheme() == tensor.qscheme()
        assert torch.equal(thawed.int_repr(), tensor.int_repr())
        assert torch.equal(thawed.dequantize(), tensor.dequantize())


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_sparse_tensors_travel():
    tensor = torch.eye(10).to_sparse()
    assert torch.equal(roundtrip(tensor).to_dense(), torch.eye(10))


def test_lazy_conjugation_and_negation_travel():
    value = torch.randn(8, dtype=torch.complex64)
    conjugate, imaginary = roundtrip([value.conj(), value.conj().imag])
    assert conjugate.is_conj()
    assert imaginary.is_neg()
    assert torch.equal(conjugate, value.conj())
    assert torch.equal(imaginary, value.conj().imag)


class Tagged(torch.Tensor):
    pass


class Special(nn.Parameter):
    pass


def test_subclasses_of_tensor_and_parameter_keep_class_and_attributes():
    tagged = torch.arange(4.0).as_subclass(Tagged)
    tagged.tag = "here"
    special = Special(torch.ones(2), requires_grad=False)
    thawed = roundtrip([tagged, special])
    assert (type(thawed[0]), thawed[0].tag) == (Tagged, "here")
    assert (type(thawed[1]), thawed[1].requires_grad) == (Special, False)
    assert torch.equal(thawed[0], tagged)


def test_storages_themselves_travel():
    storage = torch.arange(4).untyped_storage()
    thawed = roundtrip({"storage": storage, "tensor": torch.empty(0, dtype=torch.int64).set_(storage)})
    assert type(thawed["storage"]) is torch.UntypedStorage
    assert thawed["storage"].data_ptr() == thawed["tensor"].data_ptr()


def test_a_tensor_that_points_at_itself_travels():
    tensor = torch.ones(3)
    tensor.me = tensor
    thawed = roundtrip(tensor)
    assert thawed.me is thawed


def test_large_arrays_lie_in_the_mapping_and_can_be_written():
    arrays = {
        "rows": np.arange(20_000.0).reshape(100, 200),
        "columns": np.asfortranarray(np.arange(20_000.0).reshape(100, 200)),
        "fixed": np.ones(20_000),
        "small": np.ones(10),
    }
    arrays["fixed"].flags.writeable = False
    frozen = freeze(arrays)
    (mapping,) = regions_of(frozen)
    thawed = thaw(frozen.skeleton, frozen.manifest, [mapping])
    assert all(np.array_equal(thawed[name], arrays[name]) for name in arrays)
    assert [thawed[name].ctypes.data in span_of(mapping) for name in arrays] == [True, True, True, False]
    assert [thawed[name].flags.writeable for name in arrays] == [True, True, False, True]
    assert thawed["columns"].flags.f_contiguous
    assert len(frozen.skeleton) < 2000


def test_an_array_and_its_tensor_stay_one_memory():
    array = np.zeros(20_000)
    thawed = roundtrip({"array": array, "tensor": torch.from_numpy(array), "again": torch.from_numpy(array)})
    thawed["array"][5] = 1
    assert thawed["tensor"][5] == thawed["again"][5] == 1


def test_memory_made_only_for_the_pickler_is_not_mistaken_for_other_memory():
    class Fleeting:
        def __init__(self, value):
            self.value = value

        def __getstate__(self):
            return {"value": torch.full((5000,), self.value)}

    thawed = roundtrip([Fleeting(float(value)) for value in range(20)])
    assert [item.value[0].item() for item in thawed] == list(range(20))


# Trees of views and ties, of any shape.
LEAVES = st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(0, 20), st.booleans())
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=20,
)


@settings(deadline=None, max_examples=60)
@given(TREES)
def test_any_tree_of_views_keeps_values_and_sharing(tree):
    bases = [torch.arange(50.0) + 100 * index for index in range(4)]

    def plant(node):
        if isinstance(node, tuple):
            base, start, length, is_parameter = node
            view = bases[base][start : start + length]
            return nn.Parameter(view) if is_parameter else view
        if isinstance(node, list):
            return [plant(child) for child in node]
        return {key: plant(child) for key, child in node.items()}

    def leaves(node):
        if isinstance(node, torch.Tensor):
            return [node]
        return [leaf for child in (node.values() if isinstance(node, dict) else node) for leaf in leaves(child)]

    planted = plant(tree)
    before, after = leaves(planted), leaves(roundtrip(planted))
    assert all(same_bits(old, new) for old, new in zip(before, after, strict=True))

    def sharing(tensors):
        storages = [tensor.untyped_storage()._cdata for tensor in tensors]
        return [[one == other for one in storages] for other in storages]

    assert sharing(before) == sharing(after)
