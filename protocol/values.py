"""Nested Python values <-> bytes: what may be an argument or a result.

A value becomes one msgpack body and a list of buffers. Plain values are packed by msgpack's C code with
``strict_types``; whatever else occurs comes to one hook, which either turns it into something plain or packs
it as an extension type. Arrays up to `INLINE_ARRAY_BYTES` lie inside the body, larger ones in buffers of
their own, so that nobody between sender and receiver has to copy or look at them.

Nothing here can name code: a body holds data only, whoever sent it.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

import msgpack

from .arrays import put_together, take_apart
from .errors import InvalidRequest
from .limits import INLINE_ARRAY_BYTES, MAX_BODY_BYTES, MAX_BUFFER_BYTES, MAX_BUFFERS, MAX_DEPTH, PACKER_BYTES
from .tensors import ArrayData, Buffer

TUPLE: Final = 1
BIG_INTEGER: Final = 2
COMPLEX: Final = 3
ARRAY: Final = 4

#: Subclasses of these (an IntEnum, ``numpy.str_``) travel as what they are underneath.
_PLAIN: Final = (bool, int, float, str, bytes, list)
_TWO_DOUBLES: Final = struct.Struct("<dd")
#: What msgpack and the libraries of arrays raise for broken input. Anything else comes from elsewhere, from a
#: signal handler say, and is no fault of whoever sent it.
_BROKEN: Final = (ValueError, TypeError, OverflowError, MemoryError, RuntimeError, struct.error)


class Encoded(NamedTuple):
    """A value ready to travel: one body, and the buffers that its large arrays became."""

    body: bytes
    buffers: list[Buffer]


class _Unencodable(Exception):
    """A value that cannot travel; the path to it is found afterwards, off the fast path."""


class _TooDeep(_Unencodable):
    """Nested too deeply, or endlessly: then no path is worth showing."""


def encode(value: Any, *, name: str = "value") -> Encoded:
    """Encode a nested value.

    Args:
        value: None, bool, int, float, complex, str, bytes, list, tuple, dict, NumPy array or scalar, dense
            torch tensor, any ``Mapping``, dataclass or namedtuple, PIL image, nested in one another.
        name: what to call the value in an error message.

    Raises:
        InvalidRequest: something in it cannot travel; the message names its path, such as
            ``out['past_key_values'][0]``, and what to send instead.
    """
    encoder = _Encoder()
    try:
        body = encoder.pack(value)
    except MemoryError:
        raise
    except Exception as error:  # besides our own kinds, whatever a library or a user's class raises
        if _is_depth(error):
            path, reason = name, "it is nested too deeply, or contains itself"
        else:
            path, reason = _find_culprit(value, name)
        raise InvalidRequest(f"{path} cannot travel: {reason or error}", path=path) from error
    if len(body) > MAX_BODY_BYTES:
        raise InvalidRequest(
            f"{name} takes {len(body):,} bytes without its large arrays; at most {MAX_BODY_BYTES:,} can "
            "travel in one request: send long text or bytes as an array of uint8, or in several requests"
        )
    if encoder.buffers:
        _check_buffers(encoder.buffers, name)
    return Encoded(body, encoder.buffers)


def _check_buffers(buffers: Sequence[Buffer], name: str) -> None:
    """Raise `InvalidRequest` if the large arrays of a value are too large or too many."""
    largest_bytes = max(memoryview(buffer).nbytes for buffer in buffers)
    if largest_bytes > MAX_BUFFER_BYTES:
        raise InvalidRequest(
            f"{name} holds an array of {largest_bytes:,} bytes; at most {MAX_BUFFER_BYTES:,} can travel: split it"
        )
    if len(buffers) > MAX_BUFFERS:
        raise InvalidRequest(
            f"{name} holds {len(buffers)} arrays above {INLINE_ARRAY_BYTES:,} bytes; at most "
            f"{MAX_BUFFERS} can travel in one request: stack them"
        )


def decode(body: Buffer, buffers: Sequence[Buffer] = ()) -> Any:
    """Return the value that `encode` was given; arrays are writable and belong to the caller.

    Torch tensors come back as torch tensors, as NumPy arrays where torch cannot be imported.

    Raises:
        InvalidRequest: the bytes are not a value, or name a buffer that is not there.
    """
    try:
        return _Decoder(buffers).unpack(body, 0)
    except InvalidRequest:
        raise
    except _BROKEN as error:
        raise InvalidRequest(f"broken value: {type(error).__name__}: {error}") from error


class _Encoder:
    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self._depth = 0

    def pack(self, value: Any) -> bytes:
        # msgpack's C packer bounds nesting by itself; this bounds what recurs through the hook.
        if self._depth > MAX_DEPTH:
            raise _TooDeep
        self._depth += 1
        packer = msgpack.Packer(default=self._plain, strict_types=True, buf_size=PACKER_BYTES)
        packed = packer.pack(value)
        self._depth -= 1
        return cast(bytes, packed)

    def _plain(self, value: Any) -> Any:
        """Return what msgpack can pack for a value of any other type."""
        kind = type(value)
        if kind is tuple:
            return msgpack.ExtType(TUPLE, self.pack(list(value)))
        if kind is int:
            size_bytes = value.bit_length() // 8 + 1
            return msgpack.ExtType(BIG_INTEGER, value.to_bytes(size_bytes, "little", signed=True))
        if kind is complex:
            return msgpack.ExtType(COMPLEX, _TWO_DOUBLES.pack(value.real, value.imag))
        array = take_apart(value)
        if array is not None:
            return self._array(array)
        return self._converted(value)

    def _array(self, array: ArrayData) -> Any:
        place: Any = array.data
        if type(place) is not bytes and memoryview(place).nbytes <= INLINE_ARRAY_BYTES:
            place = bytes(place)
        elif len(place) > INLINE_ARRAY_BYTES:
            place = self._put_aside(place)
        packer = msgpack.Packer(buf_size=PACKER_BYTES)
        packed = packer.pack((array.family, array.dtype, array.shape, place))
        return msgpack.ExtType(ARRAY, cast(bytes, packed))

    def _put_aside(self, data: Buffer) -> int:
        self.buffers.append(data)
        return len(self.buffers) - 1

    def _converted(self, value: Any) -> Any:
        if isinstance(value, tuple):  # a namedtuple
            return msgpack.ExtType(TUPLE, self.pack(list(cast("tuple[Any, ...]", value))))
        if isinstance(value, (bytearray, memoryview)):
            return bytes(value)
        for plain in _PLAIN:
            if isinstance(value, plain):
                return cast("Any", plain)(value)
        if isinstance(value, Mapping):
            return dict(cast("Mapping[Any, Any]", value))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        raise _Unencodable(_advice(value))


class _Decoder:
    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self._buffers = buffers
        self._depth = 0

    def unpack(self, body: Buffer, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"broken value: nested deeper than {MAX_DEPTH} tuples")
        outer, self._depth = self._depth, depth
        value = msgpack.unpackb(body, ext_hook=self._extension, strict_map_key=False)
        self._depth = outer
        return value

    def _extension(self, code: int, data: bytes) -> Any:
        if code == TUPLE:
            items = self.unpack(data, self._depth + 1)
            if type(items) is not list:
                raise InvalidRequest(f"broken value: a tuple holds a list, not {type(items).__name__}")
            return tuple(cast("list[Any]", items))
        if code == ARRAY:
            return self._array(data)
        if code == BIG_INTEGER:
            return int.from_bytes(data, "little", signed=True)
        if code == COMPLEX:
            return complex(*_TWO_DOUBLES.unpack(data))
        raise InvalidRequest(f"broken value: unknown extension type {code}")

    def _array(self, data: bytes) -> Any:
        family, dtype, shape, place = msgpack.unpackb(data)
        if type(place) is int:
            if not 0 <= place < len(self._buffers):
                raise InvalidRequest(f"broken value: buffer {place} of {len(self._buffers)}")
            place = self._buffers[place]
        return put_together(ArrayData(family, dtype, tuple(shape), place))


def _find_culprit(value: Any, name: str) -> tuple[str, str]:
    """Return the path to the first part of a value that cannot travel, and why (empty: as msgpack said)."""
    path, reason, found = name, "", True
    while found:
        found = False
        for step, part in _parts(value):
            try:
                _Encoder().pack(part)
            except Exception as error:  # noqa: BLE001 - this is the part that cannot travel, or it is inside
                path, value, reason, found = path + step, part, str(error), True
                break
    return path, reason


def _is_depth(error: Exception) -> bool:
    """Whether a value was too deep; msgpack has no class of its own for that."""
    return isinstance(error, (_TooDeep, RecursionError)) or "recursion limit" in str(error)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a container, each with how it is written in Python."""
    if isinstance(value, Mapping):
        for key, part in cast("Mapping[Any, Any]", value).items():
            yield f" key {key!r}", key
            yield f"[{key!r}]", part
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(cast("Sequence[Any]", value)):
            yield f"[{index}]", part
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield f".{field.name}", getattr(value, field.name)


def _advice(value: Any) -> str:
    kind = type(value)
    what = f"a {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")
    if isinstance(value, (set, frozenset)):
        return f"{what} has no order; send sorted(...) as a list"
    if callable(value):
        return f"{what} is code, which never travels with a request; make it part of the model"
    if hasattr(value, "__next__"):
        return f"{what} is an iterator; send list(...)"
    return f"{what} is neither a plain value nor an array; send a dict, list, tuple or array of what it holds"
