"""What travels: headers of messages, values, places, manifests. See protocol/README.md.

A frozen model is a manifest and a pickle. Everything up to the pickle is looked at here, and no pickle is ever
read: ``LoadModel.pickled`` and ``Attached.skeleton`` are bytes to whatever carries them.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any, Final

import msgpack
import numpy as np
import torch
from onecopy.protocol.errors import InvalidRequest, from_record
from onecopy.protocol.frames import pack_header, unpack_header
from onecopy.protocol.items import check_items
from onecopy.protocol.limits import MAX_BUFFERS
from onecopy.protocol.manifest import Manifest
from onecopy.protocol.messages import NUMBERS, Attached, Failed, LoadModel, Message, Rejected, Reply, Submit
from onecopy.protocol.tensors import read_parts, read_place, read_places
from onecopy.protocol.values import TUPLE, decode, encode

from .mutation import changed_msgpack
from .target import Target, require

_MANIFEST: Final = [
    [8192, 1 << 21],
    [[0, 0, 4096, "parameter"], [0, 4096, 100, "mutable"], [1, 0, 1 << 21, "mutable"]],
    [1],
]
_RECORD: Final = {"code": "model_error", "message": "no", "details": {"traceback": "here", "deaths": [1, [2, {}]]}}
_PLAIN: Final[dict[Any, Any]] = {
    int: 7, float: 0.5, str: "name", bytes: b"\x92\x91\x01\x80", bool: True,
    list[Any]: [], list[int]: [1, 64, 128], list[str]: ["a", "b"],
    dict[str, Any]: {"a": [1, None]}, dict[str, str]: {"a": "b"},
}  # fmt: skip
#: Fields that are read further once the message is known.
_SPECIAL: Final[dict[str, Any]] = {
    "error": _RECORD,
    "manifest": _MANIFEST,
    "body": msgpack.packb([[1, msgpack.ExtType(TUPLE, msgpack.packb(["a", 0.5]))], {"scale": 2}]),
    "places": [[7, 0, 640], [], [7, 640, 64]],
    "reply": [7, 1280, 4096],
    "errors": [[0, _RECORD]],
    "wants": [[4096, b"", False], [8192, bytes(16), True]],
    "regions": [1, 2],
}


def messages() -> list[Message]:
    """Return one message of each kind."""
    found: list[Message] = []
    for kind in NUMBERS:
        hints = typing.get_type_hints(kind)
        found.append(kind(*(_SPECIAL.get(field, _PLAIN[hints[field]]) for field in kind._fields)))  # type: ignore[call-arg]
    return found


# --- headers -------------------------------------------------------------------------------------------------


def check_header(data: bytes) -> None:
    """A header is a message that means the same once packed again, or an invalid request."""
    try:
        check_items(data)  # which otherwise only large ones get
        message = unpack_header(data)
    except InvalidRequest as error:
        require(bool(error.message), "an error says what is wrong")
        return
    packed = pack_header(message)
    require(pack_header(unpack_header(packed)) == packed, "a message means the same once packed again")
    look_into(message)


def look_into(message: Message) -> None:
    """Read the fields of a message as its receiver does."""
    deeper = _DEEPER.get(type(message))
    if deeper is not None:
        try:
            deeper(message)
        except InvalidRequest as error:
            require(bool(error.message), "an error says what is wrong")


def _submit(message: Submit) -> None:
    for place in read_places(message.places, following=1):
        require(place is None or place.offset_bytes % 64 == 0, "a place begins at a multiple of 64")
    if message.reply:
        read_place(message.reply)
    check_value(message.body)


def _reply(message: Reply) -> None:
    read_parts(message.places, 4096, following=message.places.count([]))
    check_value(message.body)


def _manifest(message: LoadModel | Attached) -> None:
    check_tree_of_manifest(message.manifest)


def _error(message: Failed | Rejected) -> None:
    record = from_record(message.error).to_record()
    require(record == from_record(record).to_record(), "an error means the same once it was told")


_DEEPER: Final[dict[type, Callable[[Any], None]]] = {
    Submit: _submit, Reply: _reply, LoadModel: _manifest, Attached: _manifest, Failed: _error, Rejected: _error,
}  # fmt: skip


# --- values --------------------------------------------------------------------------------------------------


def check_value(data: bytes) -> None:
    """A body is a value that means the same once encoded again, or an invalid request.

    The input is ``[body, [buffers]]`` in msgpack; what is not is a body without buffers.
    """
    body, buffers = _body_and_buffers(data)
    try:
        value = decode(body, buffers)
    except InvalidRequest as error:
        require(bool(error.message), "an error says what is wrong")
        return
    try:
        first = encode(value)
    except InvalidRequest as error:
        # It may be decoded deeper than encoded; and one buffer may be in more arrays than can have one each.
        is_named = "too deeply" in error.message or f"at most {MAX_BUFFERS} can travel" in error.message
        require(is_named, f"a value that came can go again: {error.message:.200}")
        return
    second = encode(decode(first.body, first.buffers))
    require(first.body == second.body, "a value means the same once encoded again")
    require([*map(bytes, first.buffers)] == [*map(bytes, second.buffers)], "and so do its arrays")


def _body_and_buffers(data: bytes) -> tuple[bytes, list[bytes]]:
    try:
        body, buffers = msgpack.unpackb(data)
    except (ValueError, TypeError):
        return data, []
    if type(body) is not bytes or type(buffers) is not list or not all(type(one) is bytes for one in buffers):
        return data, []
    return body, buffers


def _values() -> list[bytes]:
    values: list[Any] = [
        {"a": [1, (2, "b", 3j, 1 << 70)], None: np.arange(3.0), "t": torch.ones(2, 2)},
        [np.zeros(5000), (torch.ones(9000), np.float16(2)), torch.zeros(0, 3, dtype=torch.bfloat16)],
        (((), [(b"x", "y")]), {(1, 2): 3}),
        [[torch.tensor([True, False]), np.complex64(1j), -(1 << 63), (1 << 64) - 1], {"scale": 0.5}],
    ]
    encoded = [encode(value) for value in values]
    return [msgpack.packb([body, [*map(bytes, buffers)]]) for body, buffers in encoded]


# --- places and manifests ------------------------------------------------------------------------------------


def check_places(data: bytes) -> None:
    """Places lie where they say, in order and inside; or they are an invalid request.

    The input is ``[places, size, following]`` in msgpack.
    """
    try:
        wire, size_bytes, following = msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, TypeError):
        return
    if type(wire) is not list or type(size_bytes) is not int or type(following) is not int:
        return
    following = min(max(following, 0), MAX_BUFFERS)
    try:
        places = read_places(wire, following)
        require(places.count(None) == following, "as many follow as came")
    except InvalidRequest as error:
        require(len(error.message) < 1000, "an error is no longer than a sentence")
    try:
        end = 0
        for part in read_parts(wire, size_bytes, following):
            if part is not None:
                require(end <= part[0] and 0 <= part[1] <= size_bytes - part[0], "parts lie inside, in order")
                end = part[0] + part[1]
    except InvalidRequest as error:
        require(bool(error.message), "an error says what is wrong")


def check_manifest(data: bytes) -> None:
    """A manifest is consistent in itself, or a `ValueError` says what of it is not."""
    try:
        tree = msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, TypeError):
        return
    check_tree_of_manifest(tree)


def check_tree_of_manifest(tree: Any) -> None:
    """As `check_manifest`, of what was unpacked already."""
    try:
        manifest = Manifest.from_wire(tree)
    except ValueError as error:
        require(bool(str(error)), "an error says what is wrong")
        return
    for entry in manifest.storages:
        end_bytes = entry.offset_bytes + entry.size_bytes
        require(0 <= entry.offset_bytes <= end_bytes, "a storage begins before it ends")
        require(end_bytes <= manifest.region_sizes_bytes[entry.region], "a storage lies in its region")
    require(Manifest.from_wire(manifest.to_wire()) == manifest, "a manifest means the same once it was told")


def _places() -> list[bytes]:
    return [
        msgpack.packb([[[7, 0, 602_112], [], [8, 64, 0]], 1 << 20, 1]),
        msgpack.packb([[[0, 602_112], [], [602_112, 64]], 1 << 20, 1]),
        msgpack.packb([[], 0, 2]),
    ]


def _manifests() -> list[bytes]:
    return [msgpack.packb(_MANIFEST), msgpack.packb([[], []]), msgpack.packb([[64], [[0, 0, 64, "mutable"]] * 5])]


HEADER: Final = Target(check_header, lambda: [pack_header(one) for one in messages()], changed_msgpack)
VALUE: Final = Target(check_value, _values, changed_msgpack)
PLACES: Final = Target(check_places, _places, changed_msgpack)
MANIFEST: Final = Target(check_manifest, _manifests, changed_msgpack)
