"""An exported program (``.pt2``) as a model whose weights can be shared.

What `torch.export` makes of a program to be called refuses to be pickled. So what travels is the program as it is
saved, without its weights, and the weights beside it; whoever thaws it makes the callable anew.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any, cast

from ..protocol.errors import LoadFailed

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


class ExportedModel:
    """A program that can be called, with the checks of its inputs that it was exported with.

    Args:
        program: what `torch.export.load` returned.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self._module = program.module()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        return self._module(*args, **kwargs)

    def __getstate__(self) -> tuple[bytes, dict[str, Any]]:
        import torch

        program, weights, stream = self._program, dict(self._program.state_dict), io.BytesIO()
        hollow = {name: _hollow(tensor) for name, tensor in weights.items()}
        try:
            program._state_dict = cast("Any", hollow)
            with warnings.catch_warnings(action="ignore"):  # that these weights are not complete
                torch.export.save(program, stream)
        finally:
            program._state_dict = weights
        return stream.getvalue(), weights

    def __setstate__(self, state: tuple[bytes, dict[str, Any]]) -> None:
        import torch

        saved, weights = state
        program = torch.export.load(io.BytesIO(saved))
        program._state_dict = weights
        self.__init__(program)


def load_exported(path: str) -> ExportedModel:
    """Load an exported program.

    Torch unpickles what in it is no plain tensor: load only what you trust.

    Raises:
        LoadFailed: the file holds none.
    """
    import torch

    try:
        return ExportedModel(torch.export.load(path))
    except MemoryError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise LoadFailed(
            f"{path}: no exported program, which torch.export.save writes: {type(error).__name__}: {reason}"
        ) from error


def _hollow(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same shape and kind that takes the memory of one element."""
    import torch

    hollow = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
    return torch.nn.Parameter(hollow, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else hollow
