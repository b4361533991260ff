"""Valid inputs, changed a little: most of what comes out still passes the first checks, and meets the later ones.

A tree is what msgpack and JSON make: maps, lists, texts, bytes, numbers. One change is made somewhere in it, and
it is packed again, so that its lengths are right but for those that are changed on purpose.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any, Final, cast

import msgpack

#: Numbers at which something ends: types, limits, alignments.
_NUMBERS: Final = (
    0, 1, -1, 2, 3, 63, 64, 65, 127, 128, 253, 254, 255, 256, 4095, 4096, 4097, 65_535, 65_536, 1 << 20, 1 << 31,
    (1 << 32) - 1, 1 << 48, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 31), -(1 << 63),
)  # fmt: skip
_ODD: Final = (
    None,
    True,
    False,
    "",
    "a",
    b"",
    b"a",
    0.5,
    -0.0,
    float("nan"),
    float("inf"),
    1e300,
    "\0",
    "é" * 300,
)
_DEEPEST: Final = 300
_Mutate = Callable[[Any, Random], Any]


def changed_bytes(data: bytes, random: Random) -> bytes:
    """Return bytes of which some are others, or missing, or there twice."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 3)):
        start = random.randint(0, len(changed))
        kind = random.randrange(4)
        if kind == 0 and changed:
            changed[min(start, len(changed) - 1)] = random.choice(
                (0, 1, 0x7F, 0x80, 0xC1, 0xFF, random.randrange(256))
            )
        elif kind == 1:
            del changed[start : start + random.randint(1, 8)]
        elif kind == 2:
            changed[start:start] = random.randbytes(random.randint(1, 8))
        else:
            changed[start:start] = changed[start : start + random.randint(1, 64)]
    return bytes(changed)


def changed_msgpack(data: bytes, random: Random) -> bytes:
    """Return msgpack in which one thing is another; what is none is changed byte by byte."""
    try:
        tree = msgpack.unpackb(data, strict_map_key=False)
        return cast("bytes", msgpack.packb(changed_tree(tree, random)))
    except (ValueError, TypeError, OverflowError):  # it was none, or nothing that could be packed came of it
        return changed_bytes(data, random)


def changed_json(data: bytes, random: Random) -> bytes:
    """Return JSON in which one thing is another; sometimes a key stands there twice."""
    try:
        text = json.dumps(changed_tree(json.loads(data), random), default=repr)
    except (ValueError, RecursionError):
        return changed_bytes(data, random)
    if random.random() < 0.1 and text.startswith("{") and '"' in text[2:]:
        text = f"{{{text[1:-1]}, {text[1:]}"
    return text.encode("utf-8", "surrogatepass")


def changed_tree(tree: Any, random: Random) -> Any:
    """Return a tree that differs in one place."""
    if isinstance(tree, dict) and tree and random.random() < 0.8:
        return _changed_map(cast("dict[Any, Any]", tree), random)
    if isinstance(tree, list) and tree and random.random() < 0.8:
        items = list(cast("list[Any]", tree))
        index = random.randrange(len(items))
        items[index] = changed_tree(items[index], random)
        return items
    if isinstance(tree, msgpack.ExtType) and random.random() < 0.8:
        return msgpack.ExtType(tree.code, changed_msgpack(tree.data, random))
    if isinstance(tree, bytes) and len(tree) > 1 and random.random() < 0.8:
        return changed_msgpack(tree, random)  # a body
    return _changed_node(tree, random)


def _changed_map(tree: dict[Any, Any], random: Random) -> dict[Any, Any]:
    items = list(tree.items())
    index = random.randrange(len(items))
    key, value = items[index]
    if random.random() < 0.8:
        items[index] = (key, changed_tree(value, random))
    elif random.random() < 0.5:
        items[index] = (random.choice(("", "x", 1, None, f"{key}_")), value)
    else:
        del items[index]
    return dict(items)


def _changed_node(node: Any, random: Random) -> Any:
    """Return something in the place of a part of a tree: of its kind, or of another."""
    if random.random() < 0.6:
        for kind, change in _CHANGES.items():
            if type(node) is kind:
                return change(node, random)
    return random.choice((_number, _odd, _wrapped, _repeated))(node, random)


def _number(_: Any, random: Random) -> int:
    return random.choice(_NUMBERS)


def _odd(_: Any, random: Random) -> Any:
    return random.choice(_ODD)


def _wrapped(node: Any, random: Random) -> Any:
    for _ in range(random.choice((1, 1, 2, 101, _DEEPEST))):
        node = [node]
    return node


def _repeated(node: Any, random: Random) -> Any:
    return [node] * random.choice((0, 1, 2, 65, 300))


def _changed_number(node: int, random: Random) -> int:
    return random.choice((node + 1, node - 1, node + 64, -node, node ^ (1 << random.randrange(64)), node * 2))


def _changed_text(node: str, random: Random) -> str:
    cut = random.randint(0, len(node))
    return random.choice((node[:cut], node + node, node[:cut] + "\0" + node[cut:], node.upper(), node[cut:]))


def _changed_list(node: list[Any], random: Random) -> list[Any]:
    index = random.randint(0, len(node))
    return random.choice(
        ([*node, *node], node[:index], node[index:], [*node[:index], 0, *node[index:]], node[::-1])
    )


_CHANGES: Final[dict[type, _Mutate]] = {
    int: _changed_number,
    str: _changed_text,
    bytes: changed_bytes,
    list: _changed_list,
}
