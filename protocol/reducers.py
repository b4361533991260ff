"""What pickle cannot take apart as it stands, or would take apart wrongly: some modules, and inner functions.

Each kind is reduced to a function of this file, which skeletons name, and to what that needs.
"""

from __future__ import annotations

import importlib
import pickle
import sys
import types
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any, cast

from cloudpickle.cloudpickle import _should_pickle_by_reference

if TYPE_CHECKING:
    import torch


def reduce_module(module: torch.nn.Module) -> tuple[object, ...] | None:
    """Return how a module is pickled that needs more than pickle does; None for all others."""
    if _is_parametrized(module):
        return _reduce_parametrized(module)
    if _is_quantized_convolution(module):
        return _rebuild_convolution, (type(module),), module.__getstate__()
    if _is_pretrained(module):
        return _reduce_pretrained(module)
    return None


class Homes:
    """Tells which namespaces are those of modules that whoever reads a skeleton can import."""

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}

    def has(self, namespace: dict[str, Any]) -> bool:
        """Whether this is one."""
        name = namespace.get("__name__")
        module = sys.modules.get(name) if isinstance(name, str) else None
        if module is None or name == "__main__" or vars(module) is not namespace:
            return False
        if module.__name__ not in self._known:
            self._known[module.__name__] = _should_pickle_by_reference(module) and _is_found(module)
        return self._known[module.__name__]


def at_home(function: types.FunctionType, reduced: Any) -> tuple[object, ...]:
    """Let a function that only a function knows keep the globals of its module, instead of copies.

    A hook that fills a global of its library must fill the one that the library reads; and what globals hold,
    locks and context variables say, often cannot be pickled at all.

    Args:
        function: defined in a module that can be imported.
        reduced: what cloudpickle makes of it.
    """
    _, (code, _, _, _, closure), (attributes, slots), *rest = reduced
    arguments = (function.__globals__["__name__"], code, closure)
    return _rebuild_function, arguments, (attributes, slots | {"__globals__": {}}), *rest


def _is_found(module: types.ModuleType) -> bool:
    """Whether an import of a module's name finds the file it came from; `sys.modules` is not asked."""
    package, _, _ = module.__name__.rpartition(".")
    parent = sys.modules.get(package)
    if package and (parent is None or not _is_found(parent)):
        return False
    spec = _find_spec(module.__name__, getattr(parent, "__path__", None))
    return spec is not None and spec.origin == getattr(module.__spec__, "origin", None)


def _find_spec(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    found = (finder.find_spec(name, path) for finder in sys.meta_path)
    return next((spec for spec in found if spec is not None), None)


def _is_parametrized(module: torch.nn.Module) -> bool:
    from torch.nn.utils import parametrize

    return "_modules" in vars(module) and parametrize.is_parametrized(module)


def _is_quantized_convolution(obj: object) -> bool:
    """Whether this is a module of torch's whose `__setstate__` expects what only a copy prepares for it."""
    convolutions = sys.modules.get("torch.ao.nn.quantized.modules.conv")
    return convolutions is not None and isinstance(obj, convolutions._ConvNd)


def _reduce_parametrized(module: torch.nn.Module) -> tuple[object, ...]:
    """Reduce a module whose class was replaced by one that computes some of its tensors.

    That class exists for this one module and refuses to be pickled; what it was derived from does not.
    """
    injected = type(module)
    state = super(injected, module).__getstate__()
    names = tuple(cast("torch.nn.ModuleDict", module.parametrizations))
    return _rebuild_parametrized, (injected.__bases__[0], names), state


def _is_pretrained(module: torch.nn.Module) -> bool:
    library = sys.modules.get("transformers.modeling_utils")
    return library is not None and isinstance(module, library.PreTrainedModel)


def _reduce_pretrained(module: torch.nn.Module) -> tuple[object, ...]:
    """Reduce a model of transformers, whose constructor leaves a trace outside of it."""
    make, arguments, *rest = cast("tuple[Any, ...]", module.__reduce_ex__(pickle.HIGHEST_PROTOCOL))
    return _rebuild_pretrained, (make, arguments), *rest


# The functions below are named by skeletons: they are called when one is read.


def _rebuild_function(
    module: str, code: types.CodeType, closure: tuple[types.CellType, ...] | None
) -> types.FunctionType:
    # Its name, its defaults and what its cells hold follow as state: they may refer to the function itself.
    return types.FunctionType(code, vars(importlib.import_module(module)), None, None, closure)


def _rebuild_convolution(cls: type[torch.nn.Module]) -> torch.nn.Module:
    import torch

    module = cls.__new__(cls)
    torch.nn.Module.__init__(module)
    return module


def _rebuild_parametrized(
    base: Callable[..., torch.nn.Module] | type[torch.nn.Module], names: tuple[str, ...]
) -> torch.nn.Module:
    from torch.nn.utils import parametrize

    module = cast("torch.nn.Module", cast("Any", base).__new__(base))
    # Before the state is set, so that a `__setstate__` of the class finds the module as it was.
    parametrize._inject_new_class(module)
    for name in names:
        parametrize._inject_property(module, name)
    return module


def _rebuild_pretrained(make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    module = make(*arguments)
    # What a class can record of its layers is noted when one is constructed. A process that only reads models
    # would record nothing, and return None where hidden states were asked for. Other versions have no notes.
    registry = getattr(sys.modules["transformers.modeling_utils"], "_CAN_RECORD_REGISTRY", None)
    if registry is not None:
        registry[module] = module._can_record_outputs
    return module
