"""Arrays: every dtype bit for bit, whatever its layout; writable; in torch, in NumPy, and across the two."""

import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from onecopy.protocol.errors import InvalidRequest
from onecopy.protocol.limits import INLINE_ARRAY_BYTES, MAX_DIMENSIONS
from onecopy.protocol.tensors import ITEMSIZE_BYTES, NUMPY_NAMES, TORCH_NAMES, array_bytes
from onecopy.protocol.values import ArrayData, decode, encode

SHAPES = [(), (0,), (1,), (7,), (2, 3), (3, 0, 2), (1, 1, 5), (4, 2, 3)]
#: One more element than lies inside the body.
LARGE = INLINE_ARRAY_BYTES + 1


def roundtrip(value):
    body, buffers = encode(value)
    return decode(body, [bytes(buffer) for buffer in buffers])  # as from ZeroMQ: memory that is not ours to write


def any_tensor(dtype_name, shape):
    """A tensor of any dtype, its bits drawn at random, NaN among them."""
    dtype = getattr(torch, TORCH_NAMES[dtype_name])
    size_bytes = array_bytes(dtype_name, shape)
    highest = 2 if dtype_name == "BOOL" else 256
    bits = np.random.default_rng(len(shape)).integers(0, highest, size_bytes, dtype=np.uint8)
    return torch.from_numpy(bits).view(dtype).reshape(shape) if size_bytes else torch.empty(shape, dtype=dtype)


def bits(tensor):
    plain = tensor.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    memory = torch.empty(0, dtype=torch.uint8).set_(plain.untyped_storage())
    return memory.numpy().tobytes()[: plain.numel() * plain.element_size()]


def same_tensor(left, right):
    return (left.dtype, left.shape) == (right.dtype, right.shape) and bits(left) == bits(right)


def same_array(left, right):
    return (left.dtype, left.shape) == (right.dtype, right.shape) and left.tobytes() == right.tobytes()


# --- torch ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", TORCH_NAMES)
def test_tensors_of_every_dtype_come_back_bit_for_bit(dtype):
    for shape in [*SHAPES, (LARGE,)]:
        tensor = any_tensor(dtype, shape)
        back = roundtrip(tensor)
        assert same_tensor(back, tensor), shape
        assert back.is_contiguous()


def test_every_dtype_of_torch_is_known_or_refused_with_advice():
    dtypes = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    for dtype in dtypes - {getattr(torch, name) for name in TORCH_NAMES.values()}:
        tensor = torch.empty(0).as_subclass(torch.Tensor)
        with pytest.raises(InvalidRequest, match="cannot travel"):
            encode(torch.empty(0, dtype=dtype) if _can_be_empty(dtype) else tensor.to_sparse())


def _can_be_empty(dtype):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.empty(0, dtype=dtype)
    except (RuntimeError, TypeError):
        return False
    return True


GRID = torch.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "tensor",
    [
        GRID.permute(2, 0, 1),
        GRID[:, ::2, 1:3],
        GRID[0:1, 0, 0],  # one element, stride 12: contiguous to torch, whatever its strides
        GRID[0:0, 0, 0],
        GRID[1, 2, 3],
        torch.ones(1).expand(5, 2),
        torch.tensor([1 + 2j, 3j]).conj(),
        torch.tensor([1 + 2j, 3j]).conj().imag,
        torch.tensor([1 + 2j]).conj().imag,
        torch.nn.Parameter(torch.ones(2, 2)),
        torch.ones(3, requires_grad=True) * 2,
        torch.ones(1, 2, 2, 2).contiguous(memory_format=torch.channels_last),
    ],
)
def test_tensors_of_any_layout_come_back_equal_and_plain(tensor):
    back = roundtrip(tensor)
    assert torch.equal(back, tensor)
    assert type(back) is torch.Tensor
    assert not back.requires_grad


def test_a_tensor_made_in_inference_mode_travels():
    with torch.inference_mode():
        tensor = torch.ones(3) * 2
        assert torch.equal(roundtrip(tensor), tensor)
    assert torch.equal(roundtrip(tensor), torch.full((3,), 2.0))


@pytest.mark.parametrize(
    ("tensor", "advice"),
    [
        (torch.ones(2, 2).to_sparse(), "send .to_dense()"),
        (torch.ones(2, device="meta"), "send one that has"),
        (torch.empty((1,) * (MAX_DIMENSIONS + 1)), "at most 64 can travel"),
    ],
)
def test_tensors_that_cannot_travel_are_refused_with_advice(tensor, advice):
    with pytest.raises(InvalidRequest, match=r"^x\[0\] cannot travel: ") as caught:
        encode([tensor], name="x")
    assert advice in str(caught.value)


def test_a_quantised_tensor_is_refused_with_advice():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated
        tensor = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)
    with pytest.raises(InvalidRequest, match=r"send .dequantize\(\)"):
        encode(tensor)


def test_what_torch_cannot_flatten_is_refused_by_its_path():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls them a prototype
        tensor = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(InvalidRequest, match=r"^x\['t'\] cannot travel: "):
        encode({"t": tensor}, name="x")


# --- NumPy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", NUMPY_NAMES)
def test_arrays_of_every_dtype_come_back_bit_for_bit(dtype):
    for shape in [*SHAPES, (LARGE,)]:
        array = any_tensor(dtype, shape).numpy()
        assert same_array(roundtrip(array), array), shape


dtypes = st.sampled_from([np.dtype(name).newbyteorder(order) for name in NUMPY_NAMES.values() for order in "<>"])


@settings(deadline=None)
@given(npst.arrays(dtypes, npst.array_shapes(min_dims=0, max_dims=4, min_side=0)), st.data())
def test_arrays_of_any_byte_order_and_strides_come_back_equal(array, data):
    view = array.transpose(data.draw(st.permutations(range(array.ndim))))
    view = view[tuple(slice(None, None, data.draw(st.sampled_from([1, 2, -1]))) for _ in range(view.ndim))]
    back = roundtrip(view)
    assert back.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(back, view)


@settings(deadline=None)
@given(npst.from_dtype(np.dtype("f4")) | npst.from_dtype(np.dtype("c16")) | npst.from_dtype(np.dtype("u2")))
def test_scalars_stay_scalars_of_their_dtype(scalar):
    back = roundtrip(scalar)
    assert type(back) is type(scalar)
    assert back.tobytes() == scalar.tobytes()


@pytest.mark.parametrize(
    ("array", "advice"),
    [
        (np.array(["a"]), "has no fixed binary form"),
        (np.array([None]), "has no fixed binary form"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "has no fixed binary form"),
        (np.zeros(2, dtype=[("a", "i4")]), "has no fixed binary form"),
        (np.longdouble(1), "has no fixed binary form"),
        (np.ma.masked_array([1, 2], [0, 1]), "would lose its mask"),
    ],
)
def test_arrays_that_cannot_travel_are_refused_with_advice(array, advice):
    with pytest.raises(InvalidRequest, match=r"^x\[0\] cannot travel: ") as caught:
        encode([array], name="x")
    assert advice in str(caught.value)


class Picture:
    """What PIL's images offer, and no more."""

    def __init__(self, pixels):
        self.__array_interface__ = pixels.__array_interface__
        self._pixels = pixels


def test_an_image_becomes_an_array():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert same_array(roundtrip({"image": Picture(pixels)})["image"], pixels)


# --- where the bytes lie -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_bytes", [8, INLINE_ARRAY_BYTES, INLINE_ARRAY_BYTES + 8, 1 << 20])
@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_small_arrays_lie_in_the_body_and_large_ones_in_buffers(kind, size_bytes):
    array = np.zeros(size_bytes // 8)
    body, buffers = encode(torch.from_numpy(array) if kind == "tensor" else array)
    if size_bytes <= INLINE_ARRAY_BYTES:
        assert buffers == []
        assert len(body) > size_bytes
    else:
        assert len(body) < 100
        assert memoryview(buffers[0]).nbytes == size_bytes
        array[0] = 1.0
        assert bytes(buffers[0][:8]) == np.float64(1).tobytes()  # the array's own memory, not a copy of it


@pytest.mark.parametrize("size", [3, 10_000])
def test_what_is_decoded_is_writable_and_nobody_elses(size):
    for value in (np.arange(float(size)), torch.arange(float(size))):
        body, buffers = encode(value)
        frozen = [bytes(buffer) for buffer in buffers]
        first, second = decode(body, frozen), decode(body, frozen)
        first[0] = 7
        assert (value[0], first[0], second[0]) == (0, 7, 0)


def test_a_buffer_that_may_be_written_is_used_in_place():
    body, buffers = encode(np.zeros(10_000))
    memory = bytearray(buffers[0])
    decode(body, [memory])[0] = 1.0
    assert memory[:8] == np.float64(1).tobytes()


def test_buffers_may_come_in_any_order_and_number_that_the_body_names():
    arrays = [np.full(5000, float(index)) for index in range(20)]
    for back, array in zip(roundtrip(arrays), arrays, strict=True):
        assert same_array(back, array)


@settings(deadline=None)
@given(
    st.sampled_from(["n", "s", "t", "x", ""]),
    st.sampled_from([*ITEMSIZE_BYTES, "f32", ""]),
    st.lists(st.integers(-1, 5) | st.integers(), max_size=4),
    st.binary(max_size=64),
)
def test_array_fields_that_contradict_one_another_are_refused(family, dtype, shape, data):
    from onecopy.protocol.arrays import put_together

    try:
        array = put_together(ArrayData(family, dtype, tuple(shape), data))
    except (InvalidRequest, ValueError, RuntimeError, OverflowError):  # the latter only for sizes beyond memory
        return
    assert math.prod(array.shape) == math.prod(shape)
    assert array.nbytes in (len(data), 2 * len(data) if dtype == "BF16" else len(data))


# --- without torch -------------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # makes every import of it fail
import numpy
from onecopy.protocol.errors import InvalidRequest
from onecopy.protocol.values import decode
body, f8_body, expected = (open(path, "rb").read() for path in sys.argv[1:4])
plain, half, scalar = decode(body)
assert type(plain) is numpy.ndarray and plain.dtype == "int64" and plain.tolist() == [[1, 2]], plain
plain[0, 0] = 5
assert half.dtype == "float32" and half.shape == (256, 256)
assert half.tobytes() == expected
half[0, 0] = 1
assert scalar.shape == () and scalar.item() == 1.5
try:
    decode(f8_body)
except InvalidRequest as error:
    assert "NumPy has no dtype for F8_E4M3; install torch here" in str(error), error
else:
    sys.exit("F8_E4M3 was decoded")
"""


def test_a_client_without_torch_gets_numpy_and_bfloat16_exactly(tmp_path: Path, monkeypatch):
    every_bfloat16 = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    every_bfloat16 = every_bfloat16.reshape(256, 256)
    monkeypatch.setattr("onecopy.protocol.values.INLINE_ARRAY_BYTES", 1 << 20)  # all in one file
    value = [torch.tensor([[1, 2]]), every_bfloat16, torch.tensor(1.5, dtype=torch.bfloat16)]
    files = {
        "body": encode(value).body,
        "f8": encode(torch.zeros(3).to(torch.float8_e4m3fn)).body,
        "expected": every_bfloat16.float().numpy().tobytes(),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    paths = [str(tmp_path / name) for name in files]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *paths], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
