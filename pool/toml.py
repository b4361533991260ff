"""pool.toml: the settings and models of a supervisor that is started by its file.

Relative paths are meant from the file's folder.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from typing import Any, Final, cast

from .checks import ConfigError, check_keys, check_name, read_size
from .devices import read_devices
from .keys import key_folder
from .model import Model, full_path, full_source
from .settings import Settings, read_workers

#: The keys that may be sizes as people write them.
_SIZES: Final = ("slot", "mailbox", "mailbox_total", "max_private")


def read_toml(path: str) -> tuple[Settings, dict[str, Model]]:
    """Read a pool.toml.

    Raises:
        ConfigError: the file cannot be read, or something in it cannot be; the message names file and key.
    """
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also of numbers too long and of lists too deep to be read
        raise ConfigError(f"{path}: not TOML: {error}") from error
    try:
        return _from_document(document, os.path.dirname(os.path.abspath(path)))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}") from error


def _from_document(document: dict[str, Any], folder: str) -> tuple[Settings, dict[str, Model]]:
    tables = document.pop("models", {})
    if not isinstance(tables, dict):
        raise ConfigError("models must be a table: [models.NAME]")
    for key in _SIZES:
        if key in document:
            document[f"{key}_bytes"] = read_size(key, document.pop(key))
    check_keys("the top level", document, Settings, also=("models", *_SIZES))
    listen = document.get("listen", [])
    if not isinstance(listen, list) or not all(isinstance(one, str) for one in cast("list[Any]", listen)):
        raise ConfigError(f"listen must be a list of endpoints, such as ['tcp://127.0.0.1:5555'], not {listen!r}")
    workers = document.pop("workers", None)
    types_ = {
        "slots": int, "adaptive": bool, "threads": int, "pin": bool, "name": str, "listen": list, "keys": str,
        "slot_bytes": int, "mailbox_bytes": int, "mailbox_total_bytes": int, "max_private_bytes": int,
        "metrics": str, "metrics_public": bool, "log_format": str, "record_events": int,
        "mps": str,
    }  # fmt: skip
    _check_types("", {key: value for key, value in document.items() if key != "devices"}, types_)
    models: dict[str, Model] = {}
    for name, table in cast("dict[str, Any]", tables).items():
        models[check_name("model", name)] = _model_from_table(f"models.{name}", table, folder)
    devices = document["devices"] = read_devices(document.get("devices", {}))
    if workers is not None:
        document["least_workers"], document["workers"] = read_workers(workers, len(devices))
    document["listen"] = tuple(document.get("listen", ()))
    if "keys" in document:
        document["keys"] = key_folder(document["keys"], folder)
    return Settings(**document), models


def _model_from_table(where: str, table: Any, folder: str) -> Model:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} must be a table with a source")
    values = cast("dict[str, Any]", table)
    check_keys(f"[{where}]", values, Model)
    if "source" not in values:
        raise ConfigError(f"[{where}] has no source, such as source = 'package.module:name'")
    types_ = {
        "source": str, "args": list, "kwargs": dict, "weights": str, "dtype": str, "task": str, "trusted": bool,
        "prepare": str, "method": str, "residency": str, "sharing": str, "workspace": str,
        "on_overflow": str, "max_batch": int, "max_wait_ms": float, "collate": str, "split": str, "share": float,
        "max_queue": int, "min_workers": int, "max_workers": int, "adaptive": bool,
        "grad": bool, "cuda_graph": bool, "warm": bool, "pin": bool, "repoint": bool, "replicas": int,
        "divide": bool,
    }  # fmt: skip
    checked = {key: value for key, value in values.items() if key not in ("example", "device")}
    _check_types(f"{where}.", checked, types_)
    try:
        values["source"] = full_source(values["source"], folder)
        if "weights" in values:
            values["weights"] = full_path("weights", values["weights"], folder)
        return Model(**values)
    except ConfigError as error:
        raise ConfigError(f"[{where}] {error.message}") from error


def _check_types(where: str, values: Mapping[str, Any], types_: Mapping[str, type]) -> None:
    for key, value in values.items():
        expected = types_[key]
        is_right = type(value) is expected or (expected is float and type(value) is int)
        if not is_right:
            raise ConfigError(f"{where}{key} must be {expected.__name__}, not {type(value).__name__}: {value!r}")
