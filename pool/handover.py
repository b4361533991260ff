"""An object of the app becomes a model of the pool: its memory moves into regions, and the object joins them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from ..protocol.errors import LoadFailed, PoolError
from ..protocol.filling import Grant, Granter, Want
from ..protocol.mapping import Mapping, map_region
from ..protocol.messages import ExpectModel, LoadModel
from ..protocol.shareable import check_shareable
from .control import ControlSocket
from .model import Model
from .sources import app_paths, example_of, plain_options


def hand_over(name: str, model: Model, control: ControlSocket, *, eager: bool) -> int:
    """Freeze an object of this process, hand its memory over, and let the object use the one copy.

    Args:
        name: what the model is to be called.
        model: its source is the object.
        control: to the supervisor.
        eager: whether to wait until workers can run it.

    Returns:
        How many bytes of the object's memory this process still holds besides the one copy.

    Raises:
        LoadFailed: it cannot be pickled, or the supervisor cannot take it.
        OutOfBudget: there is not enough memory for the copy.
    """
    from ..protocol.contents import OpenFiles
    from ..protocol.filling import fill
    from ..protocol.frozen import FreezeError, freeze

    try:
        frozen = freeze(_prepared(model))
        check_shareable(name, len(frozen.manifest.storages), len(frozen.skeleton))
        regions = _Mapping(control.granter())
        control.tell(ExpectModel(name, list(model.devices), frozen.manifest.storage_bytes))
        with OpenFiles() as files:
            is_shared = model.sharing == "shared"
            numbers = fill(frozen.fillings(files), regions, share=is_shared, consume=False)
            files.check_unchanged()
        order = LoadModel(
            name, "frozen", plain_options(model), frozen.manifest.to_wire(), frozen.skeleton,
            list(frozen.modules), app_paths(), numbers, eager,
            example_of(name, model),
        )  # fmt: skip
        control.ask(order)
        if not model.repoint:
            return frozen.manifest.storage_bytes
        return frozen.repoint([regions.take(number) for number in numbers])
    except (FreezeError, OSError) as error:
        if isinstance(error, PoolError):
            raise
        raise LoadFailed(f"{name}: {error}") from error


class _Mapping:
    """Asks for regions, and maps each: privately, so that one can be mapped before it is filled, and sealed after.

    A region that holds two equal storages is asked for twice and mapped twice: they must not become one.
    """

    def __init__(self, granter: Granter) -> None:
        self._granter = granter
        self._mappings: dict[int, list[Mapping]] = {}

    def need(self, wants: Sequence[Want]) -> list[Grant]:
        """Ask for regions; see `filling.Granter.need`."""
        grants = self._granter.need(wants)
        for want, grant in zip(wants, grants, strict=True):
            if grant.state != "wait":
                self._mappings.setdefault(grant.number, []).append(map_region(grant.fd, want.size_bytes))
        return grants

    def filled(self, number: int) -> None:
        """Tell that a region has its content."""
        self._granter.filled(number)

    def offer(self, path: str) -> int:
        """Make a file a region."""
        return self._granter.offer(path)

    def take(self, number: int) -> Mapping:
        """Return a mapping of a region that was not taken yet."""
        return self._mappings[number].pop()


def _prepared(model: Model) -> Any:
    prepare = model.prepare
    if prepare is None:
        return model.source
    if isinstance(prepare, str):
        module, _, attribute = prepare.partition(":")
        prepare = getattr(importlib.import_module(module), attribute)
    prepared = prepare(model.source)
    return model.source if prepared is None else prepared
