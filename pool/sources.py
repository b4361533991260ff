"""A `Model` of this process -> an order that the supervisor understands."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, Final

from ..protocol.errors import LoadFailed
from ..protocol.messages import LoadModel
from ..protocol.values import encode
from .load_keys import load_key, weights_bytes
from .model import Model

#: It travels in one message's header.
_MAX_EXAMPLE_BYTES: Final = 32 << 20


def load_by_name(name: str, model: Model, paths: list[str], *, eager: bool = False) -> LoadModel:
    """Return the order to load a model that a string names: a factory, or a folder or file.

    Args:
        name: what the model is to be called.
        model: its kind is ``import`` or ``path``.
        paths: where modules may lie.
        eager: whether to wait until workers can run it.

    Raises:
        InvalidRequest: its arguments are no plain values.
        LoadFailed: they are large, or ``prepare`` cannot be pickled.
    """
    arguments = encode([list(model.args), dict(model.kwargs)], name="args and kwargs")
    if arguments.buffers:
        raise LoadFailed(f"{name}: args and kwargs are for small values; pass large arrays by the path of a file")
    order = [str(model.source), arguments.body]
    prepare = model.prepare
    pickled = b"" if prepare is None or isinstance(prepare, str) else _pickled(name, "prepare", prepare)
    example = example_of(name, model)
    options = _with_forecast(model, model.options)
    return LoadModel(name, model.kind, options, order, pickled, [], paths, [], eager, example)


def load_by_factory(name: str, model: Model, *, eager: bool) -> LoadModel:
    """Return the order to load a model that a callable of this process builds.

    Raises:
        LoadFailed: the callable or its arguments cannot be pickled.
    """
    parts = (model.source, tuple(model.args), dict(model.kwargs), model.prepare)
    pickled = _pickled(name, "the factory", parts)
    example = example_of(name, model)
    options = _with_forecast(model, plain_options(model))
    return LoadModel(name, "factory", options, [], pickled, [], app_paths(), [], eager, example)


def example_of(name: str, model: Model) -> list[Any]:
    """Return the body and the buffers of a request with a model's example; empty if it has none.

    Raises:
        InvalidRequest: something in it cannot travel.
        LoadFailed: it is too large.
    """
    example = model.example
    if example is None:
        return []
    args: Any = example if isinstance(example, tuple) else () if isinstance(example, Mapping) else (example,)
    kwargs: Any = example if isinstance(example, Mapping) else {}
    body, buffers = encode([list(args), dict(kwargs)], name="example")
    parts = [body, *map(bytes, buffers)]
    if sum(map(len, parts)) > _MAX_EXAMPLE_BYTES:
        raise LoadFailed(f"{name}: its example takes more than {_MAX_EXAMPLE_BYTES:,} bytes")
    return parts


def app_paths() -> list[str]:
    """Return where this process finds modules."""
    return [os.path.abspath(path) for path in sys.path if os.path.isdir(path or ".")]


def plain_options(model: Model) -> dict[str, Any]:
    """Return the options of a model that need not be prepared any more, or whose hook travels another way."""
    options = dict(model.options)
    options.pop("prepare", None)  # it has run, or travels with the factory
    return options


def _with_forecast(model: Model, options: dict[str, Any]) -> dict[str, Any]:
    """Return options and, where they are known, the load's key and how large its weights are."""
    forecast = {"load_key": load_key(model), "size_bytes": weights_bytes(model)}
    return options | {key: value for key, value in forecast.items() if value}


def _pickled(name: str, what: str, parts: Any) -> bytes:
    import cloudpickle

    try:
        return cloudpickle.dumps(parts)
    except Exception as error:
        raise LoadFailed(f"{name}: {what} cannot be sent to a loader: {error}") from error
