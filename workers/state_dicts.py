"""A state dict goes into a module, strictly: what does not fit is named, and nothing is half loaded unnoticed."""

from __future__ import annotations

import collections
import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..protocol.errors import LoadFailed

if TYPE_CHECKING:
    import torch

#: Names of one kind that an error lists.
_LISTED: Final = 10


class Place(NamedTuple):
    """Where a parameter or buffer is registered; a tied one is in several places."""

    module: torch.nn.Module
    name: str
    key: str

    @property
    def is_buffer(self) -> bool:
        """Whether a buffer is registered there."""
        return self.name in self.module._buffers

    @property
    def is_saved(self) -> bool:
        """Whether what is there belongs to the module's state dict."""
        return self.name not in self.module._non_persistent_buffers_set


def places_of(module: torch.nn.Module) -> list[tuple[Place, torch.Tensor]]:
    """Return every place of a module and what is there now, in the order in which torch loads them."""
    found: list[tuple[Place, torch.Tensor]] = []
    for prefix, part in module.named_modules(remove_duplicate=False):
        dot = "." if prefix else ""
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
            if tensor is not None:
                found.append((Place(part, name, f"{prefix}{dot}{name}"), tensor))
    return found


def without_values(module: torch.nn.Module) -> str | None:
    """Return the name of a parameter or buffer that has no values, because it is on ``meta``."""
    return next((place.key for place, tensor in places_of(module) if tensor.is_meta), None)


def complete(module: torch.nn.Module, state: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a state with every name of what is tied, and without what the module never saves; and notes.

    Files often have one name for tied parameters, and older ones buffers that the module makes itself by now.
    """
    completed: dict[str, Any] = collections.OrderedDict(state)
    if hasattr(state, "_metadata"):  # versions of modules, by which they read what older ones wrote
        # A copy, because torch notes in it how it loads: a later load without `assign` would assign all the same.
        metadata = copy.deepcopy(state._metadata)  # pyright: ignore[reportAttributeAccessIssue]
        completed._metadata = metadata  # pyright: ignore[reportAttributeAccessIssue]
    tied: dict[int, list[str]] = {}
    ignored: list[str] = []
    for place, tensor in places_of(module):
        if place.is_saved:
            tied.setdefault(id(tensor), []).append(place.key)
        elif completed.pop(place.key, None) is not None:
            ignored.append(place.key)
    for keys in tied.values():
        if len(keys) > 1 and (present := [key for key in keys if key in completed]):
            completed.update(dict.fromkeys(keys, completed[present[-1]]))  # as torch: the last one wins
    notes = [f"not loaded, because the model makes them itself: {listed(ignored)}"] if ignored else []
    return completed, notes


def misfit(module: torch.nn.Module, state: Mapping[str, Any]) -> str | None:
    """Say which names and shapes of a state are not the module's, if any; torch would take thousands of lines."""
    shapes = {key: getattr(value, "shape", None) for key, value in module.state_dict().items()}
    differing = [
        f"{key} is {list(state[key].shape)} in the file and {list(shape)} in the model"
        for key, shape in shapes.items()
        if shape is not None and key in state and getattr(state[key], "shape", shape) != shape
    ]
    found = {
        "missing in the file": [key for key in shapes if key not in state],
        "unknown to the model": [key for key in state if key not in shapes],
        "of another shape": differing,
    }
    parts = [f"{len(names):,} {what}: {listed(names)}" for what, names in found.items() if names]
    return "; ".join(parts) or None


def copy_into(module: torch.nn.Module, state: Mapping[str, Any]) -> list[str]:
    """Copy a state into the memory that a module has, which keeps its dtypes; return notes.

    Raises:
        LoadFailed: names or shapes do not fit, or the module has tensors without memory.
        Exception: whatever else the module's own way to load raises.
    """
    completed, notes = complete(module, state)
    kind = type(module).__qualname__
    if (name := without_values(module)) is not None:
        raise LoadFailed(f"{kind} cannot be loaded: its factory leaves {name} on the meta device, without memory")
    try:
        module.load_state_dict(completed, strict=True)
    except RuntimeError as error:
        if not is_torchs(error):
            raise
        raise LoadFailed(f"the weights do not fit {kind}: {misfit(module, completed) or error}") from None
    return notes


def is_torchs(error: Exception) -> bool:
    """Whether it is the error by which torch says that a state does not fit a module."""
    return isinstance(error, RuntimeError) and str(error).startswith("Error(s) in loading state_dict")


def listed(names: Iterable[str]) -> str:
    """Return names for a message: the first ones, and how many more there are."""
    known = list(names)
    text = ", ".join(known[:_LISTED])
    return text if len(known) <= _LISTED else f"{text} and {len(known) - _LISTED:,} more"
