"""NumPy and torch arrays <-> `ArrayData`.

Neither library is imported before an array of it occurs: encoding finds a library only if the value can be
an instance of one of its classes, decoding imports what the sender used. So the supervisor, which never looks
into values, runs without both, and a client without torch gets NumPy arrays.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, cast

from .errors import InvalidRequest
from .limits import INLINE_ARRAY_BYTES, MAX_DIMENSIONS
from .tensors import NUMPY_NAMES, TORCH_NAMES, ArrayData, Buffer, array_bytes

_NUMPY_TO_WIRE = {numpy: wire for wire, numpy in NUMPY_NAMES.items()}
_TORCH_TO_WIRE = {f"torch.{torch}": wire for wire, torch in TORCH_NAMES.items()}


def take_apart(value: Any) -> ArrayData | None:
    """Return the array that a value is, or None if it is none.

    Raises:
        ValueError: it is an array, but of a kind that cannot travel.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _from_torch(torch, value)
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if isinstance(value, numpy.ndarray):
        if type(value) is not numpy.ndarray and isinstance(value, numpy.ma.MaskedArray):
            raise ValueError("a masked array would lose its mask; send .filled(...), or .data and .mask")
        return _from_numpy(numpy, value, "n")
    if isinstance(value, (str, bytes, type)):  # numpy.str_ is a str besides; a class is no array
        return None
    if isinstance(value, numpy.generic):
        return _from_numpy(numpy, value, "s")
    if hasattr(value, "__array_interface__"):  # PIL images and their kind
        return _from_numpy(numpy, value, "n")
    return None


def put_together(array: ArrayData) -> Any:
    """Return the NumPy array or scalar or torch tensor; it is writable and owns its memory.

    Raises:
        InvalidRequest: dtype, shape and number of bytes contradict one another, or this process has no
            library that can hold the dtype.
    """
    try:
        expected_bytes = array_bytes(array.dtype, array.shape)
    except ValueError as error:
        raise InvalidRequest(f"broken array: {error}") from error
    data = memoryview(array.data)
    if data.nbytes != expected_bytes:
        raise InvalidRequest(
            f"broken array: {array.dtype} {list(array.shape)} takes {expected_bytes} bytes, got {data.nbytes}"
        )
    if array.family == "t":
        return _to_torch(array)
    if array.family not in ("n", "s"):
        raise InvalidRequest(f"broken array: family {array.family!r}; known are n, s and t")
    if array.family == "s" and array.shape:
        raise InvalidRequest(f"broken array: a scalar of shape {list(array.shape)}")
    return _to_numpy(array)


def copy_bytes(destination: memoryview, source: Buffer) -> None:
    """Copy the bytes of an array into memory of the same size, without holding up other threads."""
    # By one thread: torch would share this out among its own, and to wake them costs more than a copy of megabytes
    # does, or a whole time slice where the cores are busy.
    import numpy

    numpy.copyto(numpy.frombuffer(destination, numpy.uint8), numpy.frombuffer(source, numpy.uint8))


def bytes_of(tensor: Any) -> Any:
    """Return the bytes of a dense torch tensor, row-major, as a flat tensor there; copied only if need be."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    # A tensor of one element counts as contiguous whatever its strides, and view() looks at strides.
    return plain.as_strided((plain.numel(),), (1,)).view(sys.modules["torch"].uint8)


def _from_numpy(numpy: Any, value: Any, family: str) -> ArrayData:
    array = numpy.asarray(value)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    wire = _numpy_wire(array.dtype)
    if wire is None:
        raise ValueError(f"an array of dtype {array.dtype} has no fixed binary form; send numbers, or .tolist()")
    if array.nbytes <= INLINE_ARRAY_BYTES:  # it is copied into the body anyway, and this is the fastest copy
        return ArrayData(family, wire, array.shape, array.tobytes())
    flat = numpy.ascontiguousarray(array).reshape(-1).view(numpy.uint8)
    return ArrayData(family, wire, array.shape, cast("Buffer", flat.data))


def _from_torch(torch: Any, tensor: Any) -> ArrayData:
    wire = _torch_wire(tensor.dtype)
    if tensor.layout != torch.strided:
        raise ValueError(f"a tensor of layout {tensor.layout} cannot travel; send .to_dense()")
    if wire is None:
        raise ValueError(f"a tensor of dtype {tensor.dtype} cannot travel; send .dequantize() or .int_repr()")
    if tensor.dim() > MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {tensor.dim()} dimensions; at most {MAX_DIMENSIONS} can travel")
    if tensor.device.type == "meta":
        raise ValueError("a tensor on the meta device has no data; send one that has")
    flat = bytes_of(tensor).cpu()
    return ArrayData("t", wire, tuple(tensor.shape), cast("Buffer", flat.numpy().data))


@cache
def _numpy_wire(dtype: Any) -> str | None:
    """Return the wire's name of a NumPy dtype; asking NumPy for its own takes a microsecond each time."""
    return _NUMPY_TO_WIRE.get(dtype.name)


@cache
def _torch_wire(dtype: Any) -> str | None:
    """Return the wire's name of a torch dtype."""
    return _TORCH_TO_WIRE.get(str(dtype))


@cache
def _numpy_dtype(wire: str) -> Any:
    """Return the NumPy dtype of a wire's name, or None."""
    import numpy

    name = NUMPY_NAMES.get(wire)
    return None if name is None else numpy.dtype(name)


def _owned(data: Buffer) -> Buffer:
    """Return the data in memory that its receiver may write, copied only if it is not."""
    if type(data) is bytes or memoryview(data).readonly:
        return bytearray(data)
    return data


def _to_numpy(array: ArrayData) -> Any:
    import numpy

    dtype = _numpy_dtype(array.dtype)
    if dtype is None:
        return _widened(array)
    if 0 in array.shape:
        return numpy.empty(array.shape, dtype)
    typed = numpy.frombuffer(_owned(array.data), dtype)
    return typed[0] if array.family == "s" else typed.reshape(array.shape)


def _widened(array: ArrayData) -> Any:
    """Return bfloat16 as float32, which holds each of its values exactly: NumPy has no bfloat16."""
    import numpy

    if array.dtype != "BF16":
        raise InvalidRequest(
            f"NumPy has no dtype for {array.dtype}; install torch here, or let the model return float32"
        )
    bits = numpy.frombuffer(array.data, dtype=numpy.uint16).astype(numpy.uint32) << 16
    return bits.view(numpy.float32).reshape(array.shape)


def _to_torch(array: ArrayData) -> Any:
    torch = _torch_or_none()
    if torch is None:
        return _to_numpy(array)
    dtype = getattr(torch, TORCH_NAMES[array.dtype])
    if memoryview(array.data).nbytes == 0:
        return torch.empty(array.shape, dtype=dtype)
    return torch.frombuffer(_owned(array.data), dtype=dtype).reshape(array.shape)


@cache
def _torch_or_none() -> Any:
    """Import torch once; a client may well run where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    return torch
