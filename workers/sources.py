"""What a model can be built from, in a loader."""

from __future__ import annotations

import importlib
import pickle
from typing import Any

from ..protocol.errors import LoadFailed
from ..protocol.messages import BuildModel
from ..protocol.values import decode
from .paths import extend_path


def build(order: BuildModel) -> Any:
    """Return the model that an order describes.

    Raises:
        LoadFailed: a name in it leads nowhere.
        Exception: whatever the factory or the ``prepare`` hook raises.
    """
    extend_path(order.paths)
    if order.source == "factory":
        factory, args, kwargs, prepare = pickle.loads(order.pickled)  # noqa: S301 - from the app, by unix socket
    else:
        name, body = order.manifest
        factory = resolve(name)
        args, kwargs = decode(body)
        prepare = order.options.get("prepare")
    model = factory(*args, **kwargs)
    if prepare is None:
        return model
    if isinstance(prepare, str):
        prepare = resolve(prepare)
    prepared = prepare(model)
    return model if prepared is None else prepared


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
