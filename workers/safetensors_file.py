"""The header of a safetensors file, read strictly.

::

    8 bytes         N bytes                      the rest
    N, little end   JSON: name -> dtype, shape,  the tensors' bytes, one after the other, none left over
                    begin and end in the rest

What a file says of itself is believed only where it can be no other way: every offset lies inside the file,
every tensor is as long as its dtype and shape make it, and the tensors cover the data without holes or
overlaps. Whoever maps the file afterwards can rely on it.

Standard library only: a header can be read where there is no torch.
"""

from __future__ import annotations

import json
import os
from typing import Any, Final, NamedTuple, NoReturn, cast

from ..protocol.errors import LoadFailed
from ..protocol.tensors import array_bytes

#: The format's own limit.
MAX_HEADER_BYTES: Final = 100_000_000
#: Elements times their size, as far as torch can count: a shape may have a huge length beside one of 0.
MAX_TENSOR_BYTES: Final = (1 << 63) - 1

_LENGTH_BYTES: Final = 8
_METADATA: Final = "__metadata__"
_KEYS: Final = {"dtype", "shape", "data_offsets"}
_SHOWN_CHARACTERS: Final = 200


class TensorEntry(NamedTuple):
    """Where one tensor lies.

    Attributes:
        dtype: its name, as in `protocol.tensors`.
        shape: lengths, row-major.
        offset_bytes: where its bytes begin, from the start of the file.
        size_bytes: how many they are.
    """

    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int
    size_bytes: int


class Header(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: by name, in the order of the header.
        metadata: texts that whoever wrote the file left in it.
        file_bytes: the size of the whole file.
    """

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    file_bytes: int


def read_header(fd: int, path: str) -> Header:
    """Read and check the header of an open file.

    Args:
        fd: the file, open for reading; its position is neither used nor changed.
        path: what errors call it.

    Raises:
        LoadFailed: the file is no safetensors file, or its header does not fit what follows it.
        OSError: the file cannot be read.
    """
    file_bytes = os.fstat(fd).st_size
    start = _read(fd, _LENGTH_BYTES, 0)
    if len(start) < _LENGTH_BYTES:
        raise LoadFailed(f"{path}: {file_bytes} bytes are too few for a safetensors file")
    header_bytes = int.from_bytes(start, "little")
    data_offset = _LENGTH_BYTES + header_bytes
    if header_bytes > MAX_HEADER_BYTES or data_offset > file_bytes:
        raise LoadFailed(
            f"{path}: {_looks_like(start)}its first 8 bytes promise a header of {header_bytes:,} bytes, but the "
            f"file has {file_bytes:,} bytes and a header at most {MAX_HEADER_BYTES:,}"
        )
    document = _parse(_read(fd, header_bytes, _LENGTH_BYTES), path)
    metadata = _metadata(document.pop(_METADATA, {}), path)
    data_bytes = file_bytes - data_offset
    tensors = {name: _entry(value, name, data_offset, data_bytes, path) for name, value in document.items()}
    _check_cover(tensors, data_offset, file_bytes, path)
    return Header(tensors, metadata, file_bytes)


def _read(fd: int, size_bytes: int, offset_bytes: int) -> bytes:
    """Read so many bytes, or what there is of them: the kernel may give less at once."""
    parts: list[bytes] = []
    while size_bytes and (part := os.pread(fd, size_bytes, offset_bytes)):
        parts.append(part)
        offset_bytes += len(part)
        size_bytes -= len(part)
    return b"".join(parts)


def _looks_like(start: bytes) -> str:
    """Say what a file is that cannot be safetensors: what torch saves is often merely misnamed."""
    if start.startswith(b"PK\x03\x04"):
        return (
            "this is a zip archive, as torch.save writes it; call it .pt if it holds a state dict. Read as it is: "
        )
    if start[0] == 0x80 and start[1] in range(2, 6):
        return (
            "this is a pickle, as torch.save wrote it once; call it .pt if it holds a state dict. Read as it is: "
        )
    return ""


def _parse(raw: bytes, path: str) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        raise LoadFailed(f"{path}: the header must begin with '{{', not with {raw[:1]!r}")
    try:
        text = raw.decode("utf-8")
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        "".join(document).encode("utf-8")  # escapes can make names that no encoding has
    except (ValueError, RecursionError) as error:
        raise LoadFailed(f"{path}: the header is no valid JSON: {_shown(error)}") from None
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {_shown(twice)!r} stands there twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _metadata(value: Any, path: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise LoadFailed(f"{path}: {_METADATA} must be a map of texts, not {_shown(value)}")
    for key, text in cast("dict[str, Any]", value).items():
        if not isinstance(text, str):
            raise LoadFailed(f"{path}: {_METADATA}[{_shown(key)!r}] must be a text, not {_shown(text)}")
    return cast("dict[str, str]", value)


def _entry(value: Any, name: str, data_offset: int, data_bytes: int, path: str) -> TensorEntry:
    where = f"{path}: tensor {_shown(name)!r}"
    if not isinstance(value, dict) or value.keys() != _KEYS:
        raise LoadFailed(f"{where}: its entry must have dtype, shape and data_offsets alone, not {_shown(value)}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise LoadFailed(f"{where}: dtype must be a text and shape a list, not {_shown([dtype, shape])}")
    try:
        size_bytes = array_bytes(dtype, shape)
    except ValueError as error:
        raise LoadFailed(f"{where}: {_shown(error)}") from None
    if array_bytes(dtype, [length or 1 for length in shape]) > MAX_TENSOR_BYTES:
        raise LoadFailed(f"{where}: shape {_shown(shape)} is larger than any tensor can be")
    if not isinstance(offsets, list) or [type(one) for one in offsets] != [int, int]:
        raise LoadFailed(f"{where}: data_offsets must be two whole numbers, not {_shown(offsets)}")
    begin, end = offsets
    if not 0 <= begin <= end <= data_bytes:
        raise LoadFailed(
            f"{where}: data_offsets {_shown(offsets)} do not lie, in order, inside the {data_bytes:,} bytes of "
            "data; the file may be truncated"
        )
    if end - begin != size_bytes:
        raise LoadFailed(
            f"{where}: it has {end - begin:,} bytes, but {dtype} of shape {_shown(shape)} takes {size_bytes:,}"
        )
    return TensorEntry(dtype, tuple(shape), data_offset + begin, size_bytes)


def _check_cover(tensors: dict[str, TensorEntry], data_offset: int, file_bytes: int, path: str) -> None:
    """Check that tensors follow one another from the first byte of the data to its last."""
    reached, before = data_offset, "the header"
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].offset_bytes, item[1].size_bytes)):
        if entry.offset_bytes != reached:
            kind = "overlaps" if entry.offset_bytes < reached else "leaves a hole behind"
            raise LoadFailed(
                f"{path}: tensor {_shown(name)!r} begins at {entry.offset_bytes - data_offset:,} of the data and "
                f"{kind} {before}, which ends at {reached - data_offset:,}"
            )
        reached, before = reached + entry.size_bytes, f"tensor {_shown(name)!r}"
    if reached != file_bytes:
        raise LoadFailed(
            f"{path}: {file_bytes - reached:,} bytes behind {before} belong to no tensor; the file has "
            f"{file_bytes:,} bytes and should have {reached:,}"
        )


def _shown(value: Any) -> str:
    """Return a short text of what a header holds: an error must not be as long as the header."""
    text = str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
