"""What a weight set is recognised by in another pool: layout and content of its storages."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any


def identity_of(name: str, manifest: Any, keys: Sequence[tuple[Any, ...] | None]) -> str:
    """Return the identity of a weight set; one that has no storages goes by its name.

    Args:
        name: of the model.
        manifest: as it travels.
        keys: what its regions are found by, in the manifest's order; those of files do not count.
    """
    contents = [key for key in keys if key is not None and key[0] != "file"]
    text = repr((manifest, contents) if keys else name)
    return blake2b(text.encode(), digest_size=16).hexdigest()
