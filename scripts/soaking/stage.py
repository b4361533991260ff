"""The pool that is attacked: its models, and where it listens."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from onecopy.pool import Model, Pool
from onecopy.pool.settings import Settings

from .models import Stamp
from .transitions import VARIABLE

_HERE: Final = Path(__file__).parent
#: The seeds of the versions with which everything begins; those that replace them are larger.
FIRST: Final = {"plain": 1, "swapped": 2, "cold": 3, "handed": 4, "rows": 5, "narrow": 6}
_STAMP: Final = "soaking.models:Stamp"


def models(devices: int) -> dict[str, Model]:
    """Return the models that there always are, on so many devices.

    ``plain`` stays as it is, in memory; ``swapped`` and ``handed`` are replaced by newer versions, from a factory
    and from an object; ``cold`` is moved out of memory; ``rows`` runs in batches, on every device; for ``narrow``
    few may wait.
    """
    return {
        "plain": Model(_STAMP, args=(FIRST["plain"],), warm=True, pin=True),
        "swapped": Model(_STAMP, args=(FIRST["swapped"],)),
        "cold": Model(_STAMP, args=(FIRST["cold"],)),
        "handed": Model(Stamp(FIRST["handed"])),
        "rows": Model(
            _STAMP, args=(FIRST["rows"],), max_batch=8, max_wait_ms=2, workspace="rows", replicas=devices
        ),
        "narrow": Model(_STAMP, args=(FIRST["narrow"],), max_queue=4),
    }


def set_up(folder: Path) -> None:
    """Let everything that this process starts have its files in a folder, and its changes of state counted."""
    for name in ("run", "cache", "modules"):
        (folder / name).mkdir(mode=0o700)
    os.environ["XDG_RUNTIME_DIR"] = str(folder / "run")
    os.environ["ONECOPY_CACHE_DIR"] = str(folder / "cache")
    os.environ[VARIABLE] = str(folder / "transitions")
    paths = [str(_HERE.parent), str(_HERE / "counted"), str(folder / "modules"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def open_pool(workers: int, devices: int) -> tuple[Pool, str]:
    """Return an app's own pool that listens on tcp besides, and where."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    divided: dict[str, dict[str, Any]] = {f"cpu:{number}": {} for number in range(devices)}
    # An app's own pool listens nowhere else; here one pool shall have clients of all kinds.
    with patch("onecopy.pool.client.Settings", partial(Settings, listen=(endpoint,))):
        sizes: dict[str, Any] = {"workers": workers, "slots": workers, "threads": 1}
        pool = Pool(models(devices), devices=divided if devices > 1 else None, **sizes)
    return pool, endpoint
