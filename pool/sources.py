"""A `Model` of this process -> an order that the supervisor understands."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from ..protocol.errors import LoadFailed, OutOfBudget
from ..protocol.messages import LoadModel, Message
from ..protocol.values import encode
from .config import Model
from .memory.base import RegionRefused
from .memory.memfd import MemfdStore

Send = Callable[[LoadModel, list[int]], Message]


def load_by_name(name: str, model: Model, paths: list[str], *, eager: bool = False) -> LoadModel:
    """Return the order to load a model whose factory is named by a string; ``paths``: where modules may lie.

    Raises:
        InvalidRequest: its arguments are no plain values.
    """
    arguments = encode([list(model.args), dict(model.kwargs)], name="args and kwargs")
    if arguments.buffers:
        raise LoadFailed(f"{name}: args and kwargs are for small values; pass large arrays by the path of a file")
    order = [str(model.source), arguments.body]
    return LoadModel(name, "import", model.options, order, b"", [], paths, eager)


def load_by_factory(name: str, model: Model, *, eager: bool) -> LoadModel:
    """Return the order to load a model that a callable of this process builds.

    Raises:
        LoadFailed: the callable or its arguments cannot be pickled.
    """
    import cloudpickle

    options = dict(model.options)
    options.pop("prepare", None)
    try:
        pickled = cloudpickle.dumps((model.source, tuple(model.args), dict(model.kwargs), model.prepare))
    except Exception as error:
        raise LoadFailed(f"{name}: the factory cannot be sent to a loader: {error}") from error
    return LoadModel(name, "factory", options, [], pickled, [], app_paths(), eager)


def hand_over(name: str, model: Model, send: Send, *, eager: bool) -> int:
    """Freeze an object of this process, hand its memory over, and let the object use the one copy.

    Args:
        name: what the model is to be called.
        model: its source is the object.
        send: sends an order with descriptors, and waits until the supervisor has taken it.
        eager: whether to wait until workers can run it.

    Returns:
        How many bytes of the object's memory this process still holds besides the one copy.

    Raises:
        LoadFailed: it cannot be pickled, or the supervisor cannot take it.
        OutOfBudget: there is not enough memory for the copy.
    """
    from ..protocol.frozen import FreezeError, freeze
    from ..protocol.mapping import map_region

    store, regions = MemfdStore(), []
    try:
        frozen = freeze(_prepared(model))
        for size_bytes in frozen.manifest.region_sizes_bytes:
            regions.append(store.create(size_bytes, "onecopy-weights"))  # noqa: PERF401 - kept if one fails
        fds = [region.fd for region in regions]
        frozen.write(fds)
        order = LoadModel(
            name, "frozen", _plain_options(model), frozen.manifest.to_wire(), frozen.skeleton,
            list(frozen.modules), app_paths(), eager,
        )  # fmt: skip
        send(order, fds)
        if not model.repoint:
            return frozen.manifest.storage_bytes
        return frozen.repoint([map_region(region.fd, region.size_bytes) for region in regions])
    except FreezeError as error:
        raise LoadFailed(f"{name}: {error}") from error
    except RegionRefused as error:
        raise OutOfBudget(f"{name}: {error}") from error
    finally:
        for region in regions:
            store.close(region)


def app_paths() -> list[str]:
    """Return where this process finds modules."""
    return [os.path.abspath(path) for path in sys.path if os.path.isdir(path or ".")]


def _plain_options(model: Model) -> dict[str, Any]:
    options = dict(model.options)
    options.pop("prepare", None)  # it has run
    return options


def _prepared(model: Model) -> Any:
    prepare = model.prepare
    if prepare is None:
        return model.source
    if isinstance(prepare, str):
        module, _, attribute = prepare.partition(":")
        prepare = getattr(importlib.import_module(module), attribute)
    prepared = prepare(model.source)
    return model.source if prepared is None else prepared
