"""Loaders on devices that are not their own, see `parts`."""

from __future__ import annotations

from .regions import FillerKey


class Guest:
    """A loader on a device that is not its own."""

    def __init__(self, child: int) -> None:
        self.child = child

    def __repr__(self) -> str:
        return f"<Guest {self.child}>"


def loader_of(filler: FillerKey) -> FillerKey:
    """Return the loader that is a guest; anybody else is who it is."""
    return filler.child if isinstance(filler, Guest) else filler
