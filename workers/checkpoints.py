"""What `torch.save` wrote: state dicts for `weights=`, and whole modules for those who trust them.

Both are mapped where they can be. A file in the format that torch wrote before version 1.6, or an archive that
somebody compressed, has no bytes that could be mapped: it is read into memory, and a note says so.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from ..protocol.errors import LoadFailed

#: Endings of files that `torch.save` wrote.
ENDINGS: Final = (".pt", ".pth", ".bin", ".ckpt")
#: Entries of a state dict that need not be tensors: what a module's ``get_extra_state`` returned.
_EXTRA_STATE: Final = "_extra_state"


class Checkpoint(NamedTuple):
    """What a file held, and what is to be said about reading it."""

    content: Any
    notes: list[str]


def load_state(path: str) -> Checkpoint:
    """Load a state dict without running code of the file.

    Raises:
        LoadFailed: the file is broken, or holds something else.
    """
    checkpoint = _load(path, is_trusted=False)
    state = checkpoint.content
    if not isinstance(state, Mapping):
        raise LoadFailed(f"{path}: holds a {type(state).__name__} and not a state dict; {_HOW_TO_SAVE}")
    for name, value in state.items():
        if not isinstance(name, str) or not (_is_tensor(value) or name.endswith(_EXTRA_STATE)):
            raise LoadFailed(
                f"{path}: not a state dict, which maps names to tensors: {name!r} is a {type(value).__name__}. If "
                f"the state dict is one of its items, save that alone; {_HOW_TO_SAVE}"
            )
    return checkpoint


def load_module(path: str) -> Checkpoint:
    """Load whatever a file holds, running what code it asks for.

    Raises:
        LoadFailed: the file is broken, or holds a state dict and no module.
    """
    checkpoint = _load(path, is_trusted=True)
    if isinstance(checkpoint.content, Mapping):
        raise LoadFailed(
            f"{path}: holds a {type(checkpoint.content).__name__} and not a module; for a state dict, give the "
            "class or function that builds the module as source and the file as weights"
        )
    return checkpoint


def _load(path: str, *, is_trusted: bool) -> Checkpoint:
    import torch

    obstacle = _obstacle_to_mapping(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=not is_trusted, mmap=obstacle is None)
    except MemoryError:
        raise
    except Exception as error:
        raise LoadFailed(f"{path}: {_reason(error, is_trusted=is_trusted)}") from error
    return Checkpoint(content, [] if obstacle is None else [f"{path} was read into memory: {obstacle}"])


def _obstacle_to_mapping(path: str) -> str | None:
    """Say why the tensors of a file cannot be mapped, if so.

    Raises:
        LoadFailed: the file cannot be read.
    """
    try:
        if not zipfile.is_zipfile(path):
            return "it is in torch's old format, which cannot be mapped; saved again with torch.save it can"
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                return (
                    "it is compressed, and compressed bytes cannot be mapped; saved again with torch.save they can"
                )
    except OSError as error:
        raise LoadFailed(f"{path}: {error.strerror}") from None
    except zipfile.BadZipFile as error:
        raise LoadFailed(f"{path}: a broken zip archive: {error}") from None
    return None


_HOW_TO_SAVE: Final = "torch.save(model.state_dict(), path) writes a state dict"


def _reason(error: Exception, *, is_trusted: bool) -> str:
    import pickle

    first = str(error).strip().split("\n", 1)[0]
    text = f"cannot be loaded: {type(error).__name__}: {first}"
    if not is_trusted and isinstance(error, pickle.UnpicklingError):
        text = (
            "holds more than tensors, or is broken. If it is a whole module, and you trust whoever made it, load "
            f"it with Model(path, trusted=True); {_HOW_TO_SAVE}"
        )
    return text


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)
