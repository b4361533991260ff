"""What a load is known by before anything is built, so that one that was measured tells of the next; and its size.

The key is a digest of what decides what is built: source, arguments, hook, the options that change weights, and of
files that are there size and time of change. Code goes by its name and its instructions, not by what it refers to:
where that has changed, the figures of the last load are expected once more, and replaced by those of the next.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import types
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Final

from .model import Model

#: The options that change what is built.
_OPTIONS: Final = ("weights", "dtype", "task", "sharing", "residency")


def load_key(model: Model) -> str:
    """Return what a load is known by; empty for an object, and for what holds something that cannot be told."""
    if model.kind == "object":
        return ""
    options = [getattr(model, name) for name in _OPTIONS]
    files = [file for path in (model.weights, model.source) for file in _files(path)]
    digest = blake2b(digest_size=16)
    parts = (model.source, tuple(model.args), sorted(model.kwargs.items()), model.prepare, options, files)
    pickler = _Naming(_Digest(digest), protocol=5)
    pickler.fast = True  # whether equal values are one object is not the same each time, and of no matter
    try:
        pickler.dump(parts)
    except Exception:  # noqa: BLE001 - whatever an argument raises: the load itself will tell
        return ""
    return digest.hexdigest()


def weights_bytes(model: Model) -> int:
    """Return how large a model's weights are, as far as files tell; 0: they do not."""
    path = model.weights or (model.source if model.kind == "path" else None)
    if path is None or model.dtype is not None:
        return 0
    name = os.fspath(path)
    if name.endswith(".json"):  # an index of the files beside it
        name = os.path.dirname(name)
    is_folder = os.path.isdir(name)
    return sum(size for file, size, _ in _files(name) if not is_folder or file.endswith(".safetensors"))


def _files(path: Any) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and time of change of a file, or of those in a folder; what cannot be read is left out."""
    if not isinstance(path, str | os.PathLike):
        return
    name = os.fspath(path)
    with contextlib.suppress(OSError):
        files = sorted(entry.path for entry in os.scandir(name)) if os.path.isdir(name) else [name]
        for file in files:
            if os.path.isfile(file):
                status = os.stat(file)
                yield file, status.st_size, status.st_mtime_ns


class _Digest:
    """A file whose content is only digested."""

    def __init__(self, digest: Any) -> None:
        self._digest = digest

    def write(self, data: Any) -> int:
        """Take in some bytes."""
        self._digest.update(data)
        return len(data)


class _Naming(pickle.Pickler):
    """Pickles classes and functions as what names them, whether or not they can be imported by that."""

    def persistent_id(self, obj: Any) -> Any:
        """Return what stands for a class or function; None for anything else."""
        if isinstance(obj, type):
            return _place(obj)
        if isinstance(obj, types.FunctionType):
            cells = tuple(cell.cell_contents for cell in obj.__closure__ or ())
            return (*_place(obj), _instructions(obj.__code__), obj.__defaults__, obj.__kwdefaults__, cells)
        return None


def _place(code: Any) -> tuple[str, str, str]:
    """Return the name of a class or function, and the file in which that is: many scripts are `__main__`."""
    file = getattr(sys.modules.get(code.__module__), "__file__", None) or ""
    return code.__module__, os.path.abspath(file), code.__qualname__


def _instructions(code: types.CodeType) -> tuple[Any, ...]:
    constants = tuple(_instructions(one) if isinstance(one, types.CodeType) else one for one in code.co_consts)
    return code.co_code, code.co_names, constants
