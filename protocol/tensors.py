"""Arrays on the wire: their dtypes, named as in safetensors, how many bytes they take, and where those may lie.

The bytes of a large array follow its message in a frame of their own, or lie in a **mailbox**: memory that a local
client and the workers share. There a place is ``[mailbox, offset, size]`` in bytes, and the client alone decides
what lies where.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from reprlib import repr as shortened  # of whatever depth: what came may be nested a thousand times
from typing import Any, Final, NamedTuple, TypeAlias

from .errors import InvalidRequest
from .limits import MAX_DIMENSIONS

#: Whatever offers its bytes without a copy.
Buffer: TypeAlias = "bytes | bytearray | memoryview"

#: Places in a mailbox begin at multiples of this, as torch's own CPU memory does: kernels give other bits on other
#: alignments.
PLACE_ALIGNMENT_BYTES: Final = 64

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


class Place(NamedTuple):
    """Where in a mailbox something lies."""

    mailbox: int
    offset_bytes: int
    size_bytes: int


def aligned(size_bytes: int) -> int:
    """Return how many bytes something takes up in a mailbox, where the next begins at a multiple of 64."""
    return -(-size_bytes // PLACE_ALIGNMENT_BYTES) * PLACE_ALIGNMENT_BYTES


def read_place(wire: Any) -> Place:
    """Return a place as it came over the wire; whether its mailbox has it is for the reader to say.

    Raises:
        InvalidRequest: it is not ``[mailbox, offset, size]``, or nothing can begin or end there.
    """
    if type(wire) is not list or len(wire) != 3 or not all(type(number) is int for number in wire):
        raise InvalidRequest(f"a place must be [mailbox, offset, size] in whole numbers, not {shortened(wire)}")
    place = Place(*wire)
    if place.offset_bytes < 0 or place.size_bytes < 0 or place.offset_bytes % PLACE_ALIGNMENT_BYTES:
        raise InvalidRequest(
            f"place {shortened(wire)}: its offset must be a multiple of {PLACE_ALIGNMENT_BYTES}, and neither "
            "offset nor size may be negative"
        )
    return place


def read_places(wire: Sequence[Any], following: int) -> list[Place | None]:
    """Return where each buffer of a request lies: in a mailbox, or None if it follows.

    Args:
        wire: an entry for each buffer, ``[]`` for one that follows; or nothing at all if every one does.
        following: how many buffers follow.

    Raises:
        InvalidRequest: an entry is no place, or another number of buffers follows.
    """
    if not wire:
        return [None] * following
    places = [None if one == [] else read_place(one) for one in wire]
    _check_following(places.count(None), following)
    return places


def read_parts(wire: Sequence[Any], size_bytes: int, following: int) -> list[tuple[int, int] | None]:
    """Return where each buffer of a result lies in the place that was for them, as offset and size in bytes.

    Args:
        wire: an entry for each buffer, ``[offset, size]`` or, for one that follows, ``[]``.
        size_bytes: the size of the place.
        following: how many buffers follow.

    Raises:
        InvalidRequest: a part is none, does not lie inside, or begins before the one in front of it ends.
    """
    parts: list[tuple[int, int] | None] = []
    end = 0
    for one in wire:
        if one == []:
            parts.append(None)
            continue
        _, start, part_bytes = read_place([0, *one] if type(one) is list else one)
        if not end <= start <= size_bytes - part_bytes:
            raise InvalidRequest(f"part {one} of a result of {size_bytes:,} bytes: it begins or ends elsewhere")
        parts.append((start, part_bytes))
        end = start + aligned(part_bytes)
    _check_following(parts.count(None), following)
    return parts


def _check_following(told: int, following: int) -> None:
    if told != following:
        raise InvalidRequest(f"by its places {told} buffers follow the message; {following} do")
