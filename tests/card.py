"""A GPU for tests: tensors of a device of their own, which mix with those of the processor as little as on a GPU.

Their memory is the processor's, but only copies reach it from there, and operators that are given tensors of both
are refused, as torch refuses them. They say that they are on ``meta``, for which torch needs no driver.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("meta")
#: These copy from one device to the other.
_COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


class OnCard(torch.Tensor):
    """A tensor on the card."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner):
        inner = inner.resolve_conj().resolve_neg()  # a bit of this tensor would say that of it once more
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class Card(TorchDispatchMode):
    """While this is entered there is a card: tensors can be made there, moved, and computed with."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    target = kwargs.get("device")
    is_on_card = any(isinstance(one, OnCard) for one in given)
    if func not in _COPIES and is_on_card and any(one.dim() and not isinstance(one, OnCard) for one in given):
        raise RuntimeError("Expected all tensors to be on the same device, but found meta and cpu")
    inner_args, inner_kwargs = tree_map_only(OnCard, lambda one: one.inner, (args, kwargs))
    if target is not None:
        is_on_card = torch.device(target).type == DEVICE.type
        inner_kwargs["device"] = torch.device("cpu")
    # What is a view of a tensor that is none of inference mode's is none of it either, and here it is made anew.
    is_of_inference = torch.is_inference_mode_enabled() and not (func.is_view and not given[0].is_inference())
    with torch.inference_mode(is_of_inference):
        result = func(*inner_args, **inner_kwargs)
        if func is torch.ops.aten.copy_.default:
            return args[0]
        return tree_map_only(torch.Tensor, OnCard, result) if is_on_card else result
