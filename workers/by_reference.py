"""A module built without memory for its parameters, which then are the tensors of a weights file.

::

    factory ──build_without_weights──► module, its parameters on "meta"
                                          │
    weights file ──open_weights──► state ─┴─ assign ──► module, its parameters in the file's mapping

So the weights are in memory at most once, and as long as nobody reads them not at all. A factory that needs
the values of its parameters (or moves them to a device) cannot be built that way: `load` then builds it as
anybody would and copies the weights into it, and a note says why.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from ..protocol.errors import LoadFailed
from .state_dicts import Place, complete, copy_into, is_torchs, misfit, places_of, without_values

if TYPE_CHECKING:
    import torch

#: References to a storage that nobody else looks into: the tensor's, and that of whoever asks.
_OWN_USES: Final = 2


class NotByReference(Exception):
    """A module cannot take its weights by reference; the message says why."""


def load(
    factory: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], state: Mapping[str, Any]
) -> tuple[torch.nn.Module, list[str]]:
    """Build a module and give it its weights, by reference if possible; return it with notes for the user.

    Where it is not possible the factory is called a second time, and weights are copied into what it builds,
    which keeps its own dtypes then.

    Raises:
        LoadFailed: the state does not fit the module, or the factory builds no module.
        Exception: whatever the factory raises.
    """
    try:
        with _nothing_else_without_values():
            return _by_reference(factory, args, kwargs, state)
    except NotByReference as reason:
        why = str(reason)
    module = _checked(factory(*args, **kwargs))
    notes = copy_into(module, state)
    return module, [*notes, f"the weights were copied into the model, not taken by reference: {why}"]


def build_without_weights(
    factory: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> torch.nn.Module:
    """Return what the factory builds, its parameters on ``meta``: with shape and dtype and without memory.

    Each becomes so as it is registered, before anything is written to it. Buffers stay what they are.

    Raises:
        LoadFailed: the factory builds no module.
        Exception: whatever the factory raises, maybe because it asks for values that are not there.
    """
    with _registered_on_meta():
        built = factory(*args, **kwargs)
    return _checked(built)


def assign(module: torch.nn.Module, state: Mapping[str, Any]) -> list[str]:
    """Let the tensors of a state dict be the module's parameters and buffers, without copying them.

    Their dtypes are those of the state, whatever the module was built with. Parameters stay tied, and need a
    gradient or not, as they did. A tied parameter that the state lacks is its partner's.

    Returns:
        Notes for the user.

    Raises:
        LoadFailed: names or shapes do not fit; the message lists them.
        NotByReference: the module cannot be loaded that way.
    """
    places = places_of(module)
    for place, tensor in places:
        _check_kind(place, tensor)
    completed, notes = complete(module, state)
    try:
        module.load_state_dict(completed, strict=True, assign=True)
    except MemoryError:
        raise
    except Exception as error:
        if is_torchs(error) and (what := misfit(module, completed)):
            raise LoadFailed(f"the weights do not fit {type(module).__qualname__}: {what}") from None
        raise NotByReference(f"load_state_dict raises {_short(error)}") from error
    _tie_again(places)
    if (name := without_values(module)) is not None:
        raise NotByReference(f"{name} has no values when its module has loaded the weights")
    return notes


# --- building ------------------------------------------------------------------------------------------------


def _by_reference(
    factory: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], state: Mapping[str, Any]
) -> tuple[torch.nn.Module, list[str]]:
    try:
        module = build_without_weights(factory, args, kwargs)
    except (LoadFailed, MemoryError):
        raise
    except Exception as error:
        # If it is not for want of values, the second call raises it again.
        raise NotByReference(f"without values in its parameters the factory raises {_short(error)}") from error
    return module, assign(module, state)


@contextmanager
def _registered_on_meta() -> Generator[None]:
    """Let modules register parameters on ``meta``, all of this process: a loader builds one model and no other."""
    import torch
    from torch.utils.weak import WeakIdKeyDictionary

    # One parameter may be registered in several places, to tie them: it must become one and the same.
    replacements: Any = WeakIdKeyDictionary()
    register = torch.nn.Module.register_parameter

    def register_on_meta(self: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
        if type(param) is torch.nn.Parameter and not param.is_meta:
            if param not in replacements:
                replacements[param] = torch.nn.Parameter(param.detach().to("meta"), param.requires_grad)
                vars(replacements[param]).update(vars(param))
            param = replacements[param]
        register(self, name, param)

    torch.nn.Module.register_parameter = register_on_meta
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register


def _checked(built: Any) -> torch.nn.Module:
    import torch

    if not isinstance(built, torch.nn.Module):
        kind = f"{type(built).__module__}.{type(built).__qualname__}"
        raise LoadFailed(
            f"weights= needs a factory that builds a torch.nn.Module, and this one builds a {kind}; let it load "
            "its weights itself, or build the module alone and wrap it in prepare"
        )
    return built


@contextmanager
def _nothing_else_without_values() -> Generator[None]:
    """Find tensors without values wherever they hide: in a list, a closure, computed from a parameter.

    Raises:
        NotByReference: there are any that were not there before.
    """
    before = {id(tensor): tensor for tensor in _meta_tensors()}
    yield
    new = [tensor for tensor in _meta_tensors() if id(tensor) not in before]
    if new:  # or garbage that waits in a circle
        del new
        gc.collect()
        new = [tensor for tensor in _meta_tensors() if id(tensor) not in before]
    if new:
        raise NotByReference(
            f"the factory keeps a tensor of shape {list(new[0].shape)} that no module has registered, and that is "
            "one of its parameters or was computed from them"
        )


def _meta_tensors() -> list[torch.Tensor]:
    import torch

    objects = gc.get_objects()
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, torch.Tensor)}
    return [one for one in objects if type(one) in kinds and one.is_meta]


# --- loading -------------------------------------------------------------------------------------------------


def _check_kind(place: Place, tensor: torch.Tensor) -> None:
    from torch.nn import Parameter, UninitializedParameter

    if not place.is_buffer and type(tensor) not in (Parameter, UninitializedParameter):
        raise NotByReference(f"{place.key} is of a kind of its own, {type(tensor).__qualname__}")


def _tie_again(places: list[tuple[Place, torch.Tensor]]) -> None:
    """Let what was one tensor in several places be one again, with what was noted on it."""
    firsts: dict[int, torch.Tensor] = {}
    for place, before in places:
        now = (place.module._buffers if place.is_buffer else place.module._parameters).get(place.name)
        if now is None or now is before:
            continue
        if place.is_buffer:
            setattr(place.module, place.name, _buffer_after(before, now))
            continue
        first = firsts.setdefault(id(before), now)
        vars(first).update(vars(before))
        if first is not now:
            setattr(place.module, place.name, first)


def _buffer_after(before: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """Return a buffer with the values that were loaded, being the tensor that it was: others may refer to it."""
    import torch

    if before.is_meta:
        return now
    if torch._C._storage_Use_Count(before.untyped_storage()._cdata) > _OWN_USES:
        return before.copy_(now)  # there are views of it, which must see the values as well
    try:
        before.data = now
    except RuntimeError:  # a sparse one for a dense one, say
        return now
    return before


def _short(error: Exception) -> str:
    reason = str(error).strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__
