"""Models that cannot be pickled: each worker builds one of its own and lets its tensors be those of the one copy.

What travels instead of a skeleton of the model is one of a plain mapping from names to tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..protocol.errors import LoadFailed

if TYPE_CHECKING:
    import torch


def tensors_of(model: Any) -> dict[str, torch.Tensor] | None:
    """Return the parameters and buffers of a module by name, tied ones under each; None for what is no module."""
    import torch

    if not isinstance(model, torch.nn.Module):
        return None
    return {
        name: tensor.detach()
        for named in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
        for name, tensor in named
    }


def point_at(model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Let the parameters and buffers of a module be these tensors; what they were is given back.

    Raises:
        LoadFailed: the module is not the one that the tensors are from: names, shapes or dtypes differ.
    """
    import torch

    own = tensors_of(model) or {}
    differing = sorted(own.keys() ^ tensors.keys())
    if differing:
        raise LoadFailed(f"it is built differently each time: {differing[0]} is not always there")
    with torch.no_grad():
        for named in (model.named_parameters(), model.named_buffers()):
            for name, tensor in named:
                there = tensors[name]
                if (tensor.shape, tensor.dtype) != (there.shape, there.dtype):
                    here = f"{tensor.dtype} {list(tensor.shape)} here"
                    raise LoadFailed(
                        f"it is built differently each time: {name} is {here} and {there.dtype} "
                        f"{list(there.shape)} in the one copy"
                    )
                tensor.data = there
