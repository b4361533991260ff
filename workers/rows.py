"""Calls whose inputs have rows can be made as one: their inputs are joined row by row, the result is cut again.

What has rows: an array along its first dimension, a list in its items, and where nothing else has any, a text,
which is one row without a dimension. Dicts and tuples are structure, and are looked into. All else is a setting,
such as None, a number or an array without dimensions: it must be equal in calls that are joined. So a model sees
what one larger call would have shown it, and whoever called gets what a call alone would have given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, cast

import numpy as np
import torch

from .nested import PLAIN, copied

Arguments: TypeAlias = "tuple[Sequence[Any], Mapping[str, Any]]"

#: Where texts are rows: nowhere, in the positional arguments, or by keyword. One by keyword beside a positional
#: one is a setting, such as a language.
_TEXTS: Final = ((False, False), (True, False), (False, True))


class Uncuttable(Exception):
    """A result that cannot be divided among calls; the message says why."""


class Rows(NamedTuple):
    """What a call has in rows.

    Attributes:
        number: how many; 0 if it has none, or not everywhere as many.
        likeness: equal in calls that can be joined.
        texts: whether texts are rows, in positional arguments and by keyword.
    """

    number: int
    likeness: Hashable
    texts: tuple[bool, bool]

    @property
    def have_dimension(self) -> bool:
        """Whether a call that is made alone gets its result with a dimension of rows."""
        return not any(self.texts)


#: For a call that is made alone.
NO_ROWS: Final = Rows(0, None, _TEXTS[0])


def rows_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Rows:
    """Return what a call has in rows."""
    for texts in _TEXTS:
        counts: set[int] = set()
        likeness = (
            tuple(_likeness(one, counts, texts_are_rows=texts[0]) for one in args),
            frozenset((key, _likeness(one, counts, texts_are_rows=texts[1])) for key, one in kwargs.items()),
        )
        if counts:
            return Rows(counts.pop() if len(counts) == 1 else 0, likeness, texts)
    return NO_ROWS


def joined(calls: Sequence[Arguments], rows: Rows) -> Arguments:
    """Return the arguments of one call for several of one likeness; whatever is written into them, theirs stay."""
    in_args, in_kwargs = rows.texts
    args = [_joined(values, texts_are_rows=in_args) for values in zip(*(one for one, _ in calls), strict=True)]
    names = calls[0][1]
    return args, {name: _joined([one[name] for _, one in calls], texts_are_rows=in_kwargs) for name in names}


def cut(result: Any, counts: Sequence[int], *, have_dimension: bool) -> list[Any]:
    """Divide the result of joined calls among them.

    Args:
        result: an array, or dicts, tuples and lists of such; or a list with an item for each row.
        counts: how many rows each call has.
        have_dimension: whether each gets a slice of the rows, or its one row itself.

    Raises:
        Uncuttable: something in it has another number of rows, or none.
    """
    total = sum(counts)
    if isinstance(result, list) and len(cast("list[Any]", result)) == total:
        return _slices(cast("list[Any]", result), counts, have_dimension=have_dimension)

    def leaf(array: Any) -> list[Any]:
        return _slices(array, counts, have_dimension=have_dimension)

    return _cut(result, "the result", total, leaf, len(counts))


def _likeness(value: Any, counts: set[int], *, texts_are_rows: bool) -> Hashable:
    """Return what must be equal in another value for the two to be joined; add how many rows there are."""
    kind = type(value)
    if isinstance(value, torch.Tensor | np.ndarray):
        shape = tuple(value.shape)
        if not shape:
            return kind, value.dtype, value.item()
        counts.add(shape[0])
        return kind, value.dtype, shape[1:]
    if kind is str and texts_are_rows:
        counts.add(1)
        return kind
    if kind is list:
        counts.add(len(value))
        return kind, frozenset(map(type, value))
    if kind is dict:
        parts = value.items()
        return kind, frozenset((k, _likeness(one, counts, texts_are_rows=texts_are_rows)) for k, one in parts)
    if kind is tuple:
        return kind, tuple(_likeness(one, counts, texts_are_rows=False) for one in value)
    return kind, value


def _joined(values: Sequence[Any], *, texts_are_rows: bool) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(values)) if first.dim() else first.clone()
    if isinstance(first, np.ndarray):
        return np.concatenate(values) if first.ndim else first.copy()
    if isinstance(first, str):
        return list(values) if texts_are_rows else first
    if isinstance(first, list):
        return [item if type(item) in PLAIN else copied(item) for one in values for item in one]
    if isinstance(first, dict):
        keys = cast("dict[Any, Any]", first)
        return {key: _joined([one[key] for one in values], texts_are_rows=texts_are_rows) for key in keys}
    if isinstance(first, tuple):
        return tuple(_joined(parts, texts_are_rows=False) for parts in zip(*values, strict=True))
    return first


def _slices(value: Any, counts: Sequence[int], *, have_dimension: bool) -> list[Any]:
    if not have_dimension:
        return list(value)
    if isinstance(value, torch.Tensor):
        return list(value.split(list(counts)))
    slices: list[Any] = []
    start = 0
    for count in counts:
        slices.append(value[start : start + count])
        start += count
    return slices


def _cut(value: Any, path: str, total: int, leaf: Callable[[Any], list[Any]], calls: int) -> list[Any]:
    if isinstance(value, torch.Tensor | np.ndarray):
        if value.shape[:1] != (total,):
            raise Uncuttable(f"{path} is an array of shape {list(value.shape)}, not of {total} rows")
        return leaf(value)
    if value is None:
        return [None] * calls
    parts = _parts(value)
    if parts is None:
        raise Uncuttable(f"{path} is {type(value).__name__}, which has no rows")
    keys, values = parts
    try:
        columns = [
            _cut(one, f"{path}[{key!r}]", total, leaf, calls) for key, one in zip(keys, values, strict=True)
        ]
    except Uncuttable:
        if isinstance(value, list) and len(values) == total:
            return leaf(value)
        raise
    if not columns:
        return [value] * calls
    if isinstance(value, list | tuple):  # a namedtuple travels as a tuple, too
        kind = list if isinstance(value, list) else tuple
        return [kind(row) for row in zip(*columns, strict=True)]
    return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]


def _parts(value: Any) -> tuple[Sequence[Any], Sequence[Any]] | None:
    """Return the keys and values of what travels as a dict, list or tuple; None for anything else."""
    if isinstance(value, list | tuple):
        items = cast("Sequence[Any]", value)
        return range(len(items)), items
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        pairs = cast("Mapping[Any, Any]", value).items()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    else:
        return None
    keys_and_values = list(pairs)
    return [key for key, _ in keys_and_values], [one for _, one in keys_and_values]
