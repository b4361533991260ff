"""Arrays in nested values, found where those who encode values find them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

import numpy as np
import torch

#: What holds nothing.
PLAIN: Final = frozenset({type(None), bool, int, float, complex, str, bytes})


def changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a value in which each torch tensor and NumPy array is replaced, and what holds them made anew.

    Looked into are lists, tuples, dicts, namedtuples, dataclasses, and subclasses of dicts, which stay what they
    are. All else is returned as it is, with what it holds.

    Args:
        value: what is looked into.
        change: returns what replaces an array.

    Raises:
        RecursionError: it is nested too deeply, or contains itself.
    """
    kind = type(value)
    if kind in PLAIN:
        return value
    if isinstance(value, torch.Tensor | np.ndarray):
        return change(value)
    inner = partial(changed, change=change)
    if kind is list or kind is tuple:  # of many numbers, most often, which take long to be looked at one by one
        return kind(value if PLAIN.issuperset(map(type, value)) else map(inner, value))
    if kind is dict:
        return dict(zip(map(inner, value), map(inner, value.values()), strict=True))
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return cast("Any", value)._make(map(inner, cast("tuple[Any, ...]", value)))
    with contextlib.suppress(TypeError, AttributeError):  # a class that does not allow it, and stays as it is
        if isinstance(value, dict | UserDict):
            return _with_items(cast("dict[Any, Any]", value), inner)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return _with_fields(value, inner)
    return value


def copied(value: Any) -> Any:
    """Return a value with copies of its arrays."""
    return changed(value, lambda array: array.clone() if isinstance(array, torch.Tensor) else array.copy())


def _with_items(value: dict[Any, Any], inner: Callable[[Any], Any]) -> Any:
    made = copy.copy(value)
    for key, part in value.items():
        made[key] = inner(part)
    return made


def _with_fields(value: Any, inner: Callable[[Any], Any]) -> Any:
    made = copy.copy(value)
    for field in dataclasses.fields(value):
        object.__setattr__(made, field.name, inner(getattr(value, field.name)))
    return made
