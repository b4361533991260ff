"""How many items a header holds, counted before any of them is made.

In msgpack an empty list is one byte, and in Python sixty-four. Unpacking as many of them as a header has room for
took 4.4 GB and 14 s, during which nobody else was served. So a large header is walked through first: texts and
bytes, which are what usually makes it large, are stepped over whole.
"""

from __future__ import annotations

from typing import Final

from .errors import InvalidRequest
from .limits import MAX_HEADER_ITEMS
from .tensors import Buffer

#: By first byte, from the format's specification: the size in bytes of what is of one size,
_FIXED_BYTES: Final[dict[int, int]] = {
    0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9,
    0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18,
    **dict.fromkeys((*range(128), 192, 193, 194, 195, *range(224, 256)), 1),
    **{first: 1 + (first & 31) for first in range(0xA0, 0xC0)},
}  # fmt: skip
#: in how many bytes the length of bytes, a text or an extension follows, and how many more precede its contents,
_LENGTHS: Final[dict[int, tuple[int, int]]] = {
    0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1),
    0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0),
}  # fmt: skip
#: and in how many that of a list or map, each entry of which is so many items.
_COUNTS: Final[dict[int, tuple[int, int]]] = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}


def check_items(header: Buffer) -> None:
    """Look whether a header can be unpacked at little cost; whether it is one at all is for whoever unpacks it.

    Raises:
        InvalidRequest: it holds more items than any message has, or says so.
    """
    at, begun, to_come, size_bytes = 0, 0, 1, len(header)
    while to_come and at < size_bytes:
        first = header[at]
        begun += 1
        to_come -= 1
        if (fixed_bytes := _FIXED_BYTES.get(first)) is not None:
            at += fixed_bytes
            continue
        if first in _LENGTHS:
            length_bytes, more_bytes = _LENGTHS[first]
            at += 1 + length_bytes + more_bytes + _number(header, at, length_bytes)
            continue
        if first < 0xA0:  # a short map or list, whose length is in the same byte
            length_bytes, items = 0, (first & 15) * (2 if first < 0x90 else 1)
        else:
            length_bytes, each = _COUNTS[first]
            items = each * _number(header, at, length_bytes)
        at += 1 + length_bytes
        to_come += items
        if begun + to_come > MAX_HEADER_ITEMS:
            raise InvalidRequest(f"a header of more than {MAX_HEADER_ITEMS:,} items")


def _number(header: Buffer, at: int, size_bytes: int) -> int:
    return int.from_bytes(header[at + 1 : at + 1 + size_bytes], "big")
