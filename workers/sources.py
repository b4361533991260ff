"""What a model can be built from, in a loader.

::

    "factory"  a callable of the app, pickled  ──┐
    "import"   "package.module:name"           ──┼──► weights ──► dtype ──► prepare ──► Built
    "path"     a folder or file                ──┘
"""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..protocol.casting import Casts
from ..protocol.errors import LoadFailed
from ..protocol.messages import BuildModel
from ..protocol.skeleton import is_plain
from ..protocol.values import decode
from .aoti_package import is_compiled, load_compiled
from .by_reference import load
from .checkpoints import ENDINGS, load_module
from .folders import find, load_folder, torch_dtype
from .paths import extend_path
from .weight_files import open_weights

if TYPE_CHECKING:
    import torch

#: What is smaller is cast at once: most of a model's memory is in larger tensors.
_CAST_LATER_BYTES: Final = 1 << 20


class Built(NamedTuple):
    """A model, and what a user should know of how it was loaded."""

    model: Any
    notes: list[str]


def build(order: BuildModel, casts: Casts | None = None) -> Built:
    """Return the model that an order describes.

    Args:
        order: what it says.
        casts: takes what of the weights in a file need not be cast yet; None: all of it is.

    Raises:
        LoadFailed: a name in it leads nowhere, or a file does not hold what it should.
        Exception: whatever the factory or the ``prepare`` hook raises.
    """
    extend_path(order.paths)
    options = order.options
    if order.source == "factory":
        source, args, kwargs, prepare = pickle.loads(order.pickled)  # noqa: S301 - from the app, by unix socket
    else:
        source, body = order.manifest
        args, kwargs = decode(body)
        prepare = pickle.loads(order.pickled) if order.pickled else options.get("prepare")  # noqa: S301 - so
    if order.source == "path":
        built = _from_path(source, kwargs, options)
    else:
        factory = source if order.source == "factory" else resolve(source)
        built = _from_factory(factory, args, kwargs, options, casts if prepare is None else None)
    if prepare is None:
        return built
    if isinstance(prepare, str):
        prepare = resolve(prepare)
    prepared = prepare(built.model)
    return built if prepared is None else Built(prepared, built.notes)


def resolve(name: str) -> Any:
    """Return what ``"package.module:name"`` stands for.

    Raises:
        LoadFailed: there is no such module, or no such name in it.
    """
    module_name, _, attributes = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not (module_name + ".").startswith(error.name + "."):
            raise  # the module is there, and something that it imports is not
        raise LoadFailed(
            f"{name!r}: no module {error.name!r} here; it must be installed, or lie beside the pool.toml"
        ) from None
    for attribute in attributes.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise LoadFailed(f"{name!r}: {module_name} has no {attributes!r}") from None
    return found


def cast(model: Any, dtype: str | None, casts: Casts | None = None) -> Any:
    """Cast the floating parameters and buffers of a module in place, and return it; None leaves it as it is.

    Args:
        model: the module, or what has it as ``model``.
        dtype: to which.
        casts: takes large tensors that can be cast later.

    Raises:
        LoadFailed: the model is no module.
    """
    import torch

    if dtype is None:
        return model
    module = model if isinstance(model, torch.nn.Module) else getattr(model, "model", None)  # as a pipeline has
    if not isinstance(module, torch.nn.Module):
        raise LoadFailed(
            f"dtype casts a torch.nn.Module, and this is a {type(model).__qualname__}; cast in prepare"
        )
    wanted = torch_dtype(dtype)
    if casts is not None and not all(map(is_plain, module.parameters())):
        casts = None  # others are moved as whole modules, and that would touch what stands in for weights

    def changed(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or tensor.dtype == wanted:  # `Module.to` would cast complex ones, too
            return tensor
        is_large = tensor.nbytes >= _CAST_LATER_BYTES and tensor.is_contiguous()
        if casts is not None and is_large and tensor.device.type == "cpu":
            return casts.stand_in(tensor, wanted)
        return tensor.to(wanted)

    with torch.no_grad():
        module._apply(changed)
    return model


def _from_factory(
    factory: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    casts: Casts | None,
) -> Built:
    weights, dtype = options.get("weights"), options.get("dtype")
    if weights is None:
        return Built(cast(factory(*args, **kwargs), dtype), [])
    opened = open_weights(weights)
    module, notes = load(factory, args, kwargs, opened.state)
    return Built(cast(module, dtype, casts), [*opened.notes, *notes])


def _from_path(source: str, kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> Built:
    path = find(source)
    task, dtype = options.get("task"), options.get("dtype")
    if os.path.isdir(path):
        # Not cast here: libraries know parts of their models that must not be.
        return Built(load_folder(path, task, dtype, kwargs), [])
    if task is not None or kwargs:
        raise LoadFailed(f"{path}: task and kwargs are for folders, and this is a file")
    if path.endswith(".pt2"):
        return _from_program(path, options)
    if not path.endswith(ENDINGS):
        raise LoadFailed(
            f"{path}: a model is a folder, an exported program (.pt2) or a saved module ({', '.join(ENDINGS)}). "
            "For weights alone, give the class that they are for as source and the file as weights"
        )
    if not options.get("trusted"):
        raise LoadFailed(
            f"{path}: a saved module is a pickle, and loading one runs whatever code it holds. If you trust "
            "whoever made it, load it with Model(path, trusted=True); if it is a state dict, give the class that "
            "it is for as source and the file as weights"
        )
    module, notes = load_module(path)
    return Built(cast(module, dtype), notes)


def _from_program(path: str, options: Mapping[str, Any]) -> Built:
    weights, dtype = options.get("weights"), options.get("dtype")
    if dtype is not None:
        raise LoadFailed(f"{path}: the dtypes of an exported program are fixed; export it with {dtype} weights")
    opened = open_weights(weights) if weights is not None else None
    state = opened.state if opened else None
    if is_compiled(path):
        model, notes = load_compiled(path, state)
    else:
        from .exported import load_exported  # which imports much

        model, notes = load_exported(path, state)
    return Built(model, [*(opened.notes if opened else []), *notes])
