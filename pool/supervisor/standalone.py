"""A supervisor that nobody owns: it serves the models of a pool.toml until it is told to stop."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ...protocol.errors import PoolError
from ...protocol.messages import LoadModel
from ..checks import ConfigError
from ..environment import default_directory
from ..model import Model
from ..runtime import RuntimeDirectory
from ..sources import load_by_name
from ..toml import read_toml
from .supervisor import Supervisor


def serve_standalone(
    config: str, listen: list[str], directory: str | None, changes: Mapping[str, Any], places: Sequence[str] = ()
) -> int:
    """Serve until told to stop; return the exit code: 0 stopped, 1 failed, 2 a wrong configuration.

    Args:
        config: path of a pool.toml.
        listen: endpoints besides those that it has.
        directory: folder for the sockets; None: the one of the pool's name.
        changes: settings that hold instead of what it says.
        places: ``MODEL=DEVICE`` of models that shall be loaded first, in this order, and there.
    """
    try:
        settings, models = read_toml(config)
        placed = dict(place.split("=", 1) for place in places)
        first = {name: dataclasses.replace(models[name], device=placed[name]) for name in placed if name in models}
        models = first | {name: model for name, model in models.items() if name not in first}
        settings = dataclasses.replace(settings, listen=(*settings.listen, *listen), **changes)
        loads = [_load(config, name, model) for name, model in models.items()]
    except PoolError as error:
        print(f"onecopy: {error}", file=sys.stderr)  # noqa: T201
        return 2
    try:
        folder = RuntimeDirectory(directory or default_directory(settings.name))
        supervisor = Supervisor(settings, folder, is_verbose=True)
        try:
            for load in loads:
                supervisor.declare(None, load)
        except PoolError:  # `serve` would have removed it
            folder.remove()
            raise
        supervisor.serve()
    except PoolError as error:
        print(f"onecopy: {error}", file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def _load(config: str, name: str, model: Model) -> LoadModel:
    try:
        return load_by_name(name, model, [os.path.dirname(os.path.abspath(config))])
    except PoolError as error:  # of a value that TOML has and no message can carry, such as a date
        raise ConfigError(f"{config}: [models.{name}] {error.message}") from error
