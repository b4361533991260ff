"""The signature of a run's inputs: all that its need of memory depends on, in a short line.

``encode([*32 str], batch_size=int 32)`` or ``__call__(F32 [1, 3, 224, 224])``: dtypes and shapes of tensors, plain
numbers as they are, of a list what its items have in common.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch

from ..protocol.tensors import TORCH_NAMES

_NAMES: Final = {getattr(torch, name): short for short, name in TORCH_NAMES.items()}
#: Items of a list, and of a mapping, that are looked at.
_MOST_ITEMS: Final = 8
_MOST_CHARACTERS: Final = 200


def signature_of(method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the signature of a call; equal for inputs of equal dtypes, shapes, lengths and numbers."""
    parts = [_of(one) for one in args] + [f"{name}={_of(one)}" for name, one in kwargs.items()]
    return f"{method}({', '.join(parts)})"[:_MOST_CHARACTERS]


def _of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{_NAMES.get(value.dtype, str(value.dtype))} {list(value.shape)}"
    if isinstance(value, str | bytes):
        return f"{type(value).__name__} {_rounded(len(value))}"
    if isinstance(value, bool | int | float | None):
        return f"{type(value).__name__} {value}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_of(one)}' for key, one in list(value.items())[:_MOST_ITEMS])}}}"
    if isinstance(value, Sequence):
        return f"[{len(value)} of {_common(value[:_MOST_ITEMS])}]"
    return type(value).__name__


def _common(values: Iterable[Any]) -> str:
    return " | ".join(sorted({_of(one) for one in values}))


def _rounded(length: int) -> int:
    """Return the next power of two: texts of one length are rare."""
    return 1 << max(0, length - 1).bit_length()
