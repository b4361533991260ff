"""A bar of what is taken, as plain text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from ..views import size

#: A terminal as narrow as they come.
_WIDTH: Final = 80
#: What stands for what in a bar.
_LETTERS: Final = {"weights": "W", "slots": "S", "mailboxes": "M", "workers": "w", "others": "o"}


def bar(name: str, taken_bytes: Mapping[str, int], limit_bytes: int, reserve_bytes: int) -> list[str]:
    """Return a bar of what may be taken, with a letter for each part of what is, and under it what they stand for.

    Args:
        name: what stands before it.
        taken_bytes: by what for; known are those of `_LETTERS`.
        limit_bytes: what may be taken, which is drawn up to a ``|``.
        reserve_bytes: what must not be, which is drawn behind that.
    """
    head = f"{name[:16]:<8} "
    room = _WIDTH - len(head) - 3
    all_bytes = sum(taken_bytes.values())
    scale = max(limit_bytes + reserve_bytes, all_bytes, 1)
    counts = _shares(taken_bytes, scale, room)
    cells = "".join(letter * count for letter, count in zip(_LETTERS.values(), counts, strict=True))
    end = round(limit_bytes / scale * room)
    cells = cells.ljust(end, ".").ljust(round((limit_bytes + reserve_bytes) / scale * room), "r")
    legend = [f"{_LETTERS[key]} {key} {size(part)}" for key, part in taken_bytes.items() if part]
    legend.append(f". free {size(max(0, limit_bytes - all_bytes))}")
    legend.append(f"| limit {size(limit_bytes)}")
    legend.append(f"r reserve {size(reserve_bytes)}")
    return [f"{head}[{cells[:end]}|{cells[end:]}]", *_folded(legend, len(head) + 1)]


def _shares(taken_bytes: Mapping[str, int], scale: int, room: int) -> list[int]:
    """Return how many characters each part gets, so that their sum is as right as each is."""
    counts: list[int] = []
    so_far = 0
    for key in _LETTERS:
        begin = round(so_far / scale * room)
        so_far += taken_bytes.get(key, 0)
        counts.append(round(so_far / scale * room) - begin)
    return counts


def _folded(words: Iterable[str], indent: int) -> list[str]:
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) + 3 <= _WIDTH:
            lines[-1] += f"   {word}"
        else:
            lines.append(" " * indent + word)
    return lines
