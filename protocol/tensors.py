"""Arrays on the wire: their dtypes, named as in safetensors, and how many bytes they take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

from .limits import MAX_DIMENSIONS

#: Whatever offers its bytes without a copy.
Buffer: TypeAlias = "bytes | bytearray | memoryview"

#: Bytes per element. The names are those of safetensors' header, extended by the complex and quantised
#: types that torch has and safetensors lacks.
ITEMSIZE_BYTES: Final[dict[str, int]] = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8,
    "F16": 2, "BF16": 2, "F32": 4, "F64": 8,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "F8_E8M0": 1,
    "C32": 4, "C64": 8, "C128": 16,
}  # fmt: skip

#: Dtypes with the same bytes in NumPy, by NumPy's name.
NUMPY_NAMES: Final[dict[str, str]] = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32",
    "I32": "int32", "U64": "uint64", "I64": "int64", "F16": "float16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "C128": "complex128",
}  # fmt: skip

#: Every dtype, by torch's name.
TORCH_NAMES: Final[dict[str, str]] = {
    **NUMPY_NAMES,
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu", "C32": "complex32",
}  # fmt: skip


class ArrayData(NamedTuple):
    """One dense array, whatever library it belongs to.

    Attributes:
        family: ``n`` for a NumPy array, ``s`` for a NumPy scalar, ``t`` for a torch tensor.
        dtype: name as in `ITEMSIZE_BYTES`.
        shape: lengths, row-major.
        data: the elements' bytes, C-contiguous, little-endian.
    """

    family: str
    dtype: str
    shape: tuple[int, ...]
    data: Buffer


def array_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Return the size in bytes of a dense array.

    Raises:
        ValueError: the dtype is unknown, or the shape is not a short list of non-negative integers.
    """
    itemsize = ITEMSIZE_BYTES.get(dtype)
    if itemsize is None:
        raise ValueError(f"unknown dtype {dtype!r}; known are {', '.join(ITEMSIZE_BYTES)}")
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"an array of {len(shape)} dimensions; at most {MAX_DIMENSIONS} can travel")
    for length in shape:
        if type(length) is not int or length < 0:
            raise ValueError(f"shape {list(shape)!r} has an entry that is not a non-negative integer")
    return itemsize * math.prod(shape)
