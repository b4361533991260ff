"""A pool.toml is read by a fork: arrays in examples take NumPy or torch, which the supervisor does without."""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...protocol.errors import PoolError, SupervisorLost, from_record
from ...protocol.messages import LoadModel
from ..settings import Settings
from ..sources import load_by_name
from ..toml import read_toml


class Config(NamedTuple):
    """What a supervisor is started with."""

    settings: Settings
    loads: list[LoadModel]


def read_config(path: str, listen: Sequence[str], changes: Mapping[str, Any], places: Sequence[str]) -> Config:
    """Return what a pool.toml says, and the command line besides. To be called before there are threads.

    Args:
        path: of the file.
        listen: endpoints besides those that it has.
        changes: settings that hold instead of what it says.
        places: ``MODEL=DEVICE`` of models that shall be loaded first, in this order, and there.

    Raises:
        PoolError: something of it cannot be.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            with open(writer, "wb") as file:
                pickle.dump(_answer(path, listen, changes, places), file)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as file:
        answer = file.read()
    if os.waitpid(child, 0)[1]:
        raise SupervisorLost(f"{path}: the process that read it failed; what it said is above")
    config, error = pickle.loads(answer)  # noqa: S301 - from our own fork
    if error is not None:
        raise from_record(error)
    return config


def _answer(
    path: str, listen: Sequence[str], changes: Mapping[str, Any], places: Sequence[str]
) -> tuple[Config | None, Any]:
    try:
        settings, models = read_toml(path)
        placed = dict(place.split("=", 1) for place in places)
        first = {name: dataclasses.replace(models[name], device=placed[name]) for name in placed if name in models}
        models = first | {name: model for name, model in models.items() if name not in first}
        settings = dataclasses.replace(settings, listen=(*settings.listen, *listen), **changes)
        paths = [os.path.dirname(os.path.abspath(path))]
        return Config(settings, [load_by_name(name, model, paths) for name, model in models.items()]), None
    except PoolError as error:
        return None, error.to_record()
