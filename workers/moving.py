"""What of a model must be moved to a GPU before it is frozen, because torch alone knows how."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..protocol.gpu import Gpu


def move_what_is_not_plain(model: Any, gpu: Gpu) -> None:
    """Move those layers of a module to a GPU whose parameters are no plain views of storages, quantized ones say.

    Some of these kinds become what they shall be only by being moved. Plain parameters stay where they are: they
    are copied once, from where they lie into their region.
    """
    import torch

    from ..protocol.skeleton import is_plain

    if not isinstance(model, torch.nn.Module):
        return
    for module in model.modules():
        if not all(is_plain(parameter) for parameter in module.parameters(recurse=False)):
            module.to(gpu.device)
