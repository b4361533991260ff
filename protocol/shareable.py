"""What a model may have besides its memory: manifest and skeleton travel to each worker in one header."""

from __future__ import annotations

from .errors import LoadFailed
from .limits import MAX_SKELETON_BYTES, MAX_STORAGES


def check_shareable(name: str, storages: int, skeleton_bytes: int) -> None:
    """Look whether workers can be told of a model, before its memory is filled.

    Args:
        name: of the model.
        storages: how many it has.
        skeleton_bytes: the size of its pickle without them.

    Raises:
        LoadFailed: they cannot; the message says what is too much, and what would be less.
    """
    if storages > MAX_STORAGES:
        raise LoadFailed(
            f"{name}: the model has {storages:,} storages, at most {MAX_STORAGES:,} can be shared; tensors that "
            "are views of one have one storage together"
        )
    if skeleton_bytes > MAX_SKELETON_BYTES:
        raise LoadFailed(
            f"{name}: without its tensors and arrays the model is a pickle of {skeleton_bytes:,} bytes, at most "
            f"{MAX_SKELETON_BYTES:,} can be shared; what is in arrays or tensors does not count"
        )
