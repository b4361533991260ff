"""An exported program (``.pt2``) as a model whose weights can be shared.

What `torch.export` makes of a program to be called refuses to be pickled. So what travels is the program as it is
saved, without its weights, and the weights beside it; whoever thaws it makes the callable anew.

This imports what reading a saved program imports, which takes a second and 70 MB: where the zygote has imported
this, workers share that.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch

from ..protocol.errors import LoadFailed
from .state_dicts import listed

with contextlib.suppress(ImportError):  # another torch would import it later
    importlib.import_module("torch._export.serde.serialize")

if TYPE_CHECKING:
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
        saved, weights = state
        program = _read(io.BytesIO(saved))
        program._state_dict = weights
        self.__init__(program)


def load_exported(path: str, weights: Mapping[str, torch.Tensor] | None = None) -> tuple[ExportedModel, list[str]]:
    """Load an exported program; return it, and what a user should know of how.

    Torch unpickles what in it is no plain tensor: load only what you trust.

    Args:
        path: the ``.pt2`` file.
        weights: what takes the place of its own parameters and buffers of the same names.

    Raises:
        LoadFailed: the file holds none, or the weights do not fit.
    """
    try:
        program = _read(path)
    except MemoryError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise LoadFailed(
            f"{path}: no exported program, which torch.export.save writes: {type(error).__name__}: {reason}"
        ) from error
    notes = _replace(path, program, weights) if weights is not None else []
    return ExportedModel(program), notes


def _read(source: str | io.BytesIO) -> ExportedProgram:
    with warnings.catch_warnings(action="ignore"):  # of torch, of how it reads
        return torch.export.load(source)


def _replace(path: str, program: ExportedProgram, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Put weights in the place of a program's own; return notes.

    Raises:
        LoadFailed: one is of another shape or dtype, or there is none of the program's.
    """
    own = dict(program.state_dict)
    aliases: dict[tuple[Any, ...], str] = {_place(own[name]): name for name in own if name in weights}
    given: dict[str, torch.Tensor] = {}
    for name, tensor in own.items():
        source = name if name in weights else aliases.get(_place(tensor))  # files have tied weights under one name
        if source is not None:
            given[name] = _fitting(path, name, weights[source].detach(), tensor)
    if not given:
        raise LoadFailed(f"{path}: the weights have none of its tensors, which are {listed(list(own))}")
    program._state_dict = cast("Any", own | given)
    left, unused = [name for name in own if name not in given], sorted(weights.keys() - own.keys())
    notes = [f"{path}: {len(left)} tensors are those of the program: {listed(left)}"] if left else []
    return [*notes, f"{path}: it has no tensors for {listed(unused)} of the weights"] if unused else notes


def _fitting(path: str, name: str, tensor: torch.Tensor, exported: torch.Tensor) -> torch.Tensor:
    if (tensor.dtype, tensor.shape) != (exported.dtype, exported.shape):
        raise LoadFailed(
            f"{path}: the weights do not fit: {name} is {tensor.dtype} {list(tensor.shape)}, and was exported as "
            f"{exported.dtype} {list(exported.shape)}"
        )
    if tensor.stride() != exported.stride():  # which the program was traced with
        tensor = torch.empty_strided(exported.shape, exported.stride(), dtype=tensor.dtype).copy_(tensor)
    return (
        torch.nn.Parameter(tensor, exported.requires_grad) if isinstance(exported, torch.nn.Parameter) else tensor
    )


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return what tied tensors have in common; an empty one has no place."""
    return tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride(), tensor.dtype


def _hollow(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same shape and kind that takes the memory of one element."""
    hollow = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
    return torch.nn.Parameter(hollow, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else hollow
