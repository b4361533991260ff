"""The seam between decisions about memory and memory: what a kind of region can do.

A region is memory that the supervisor owns and others use. Its life is a line::

    create ──► (somebody fills it) ──► seal ──► (anybody maps it) ──► close

Its size never changes. Sealed means for ever: no process, the supervisor included, can change the content any
more. So a reader needs to trust nobody. A region that is made resizable is never sealed: it is memory that
workers use one after the other, and its owner says how much of it there is. Weights that were written to the disk
come back as the file, without a name and open to be read alone, which is no region that anybody could seal.
Closing gives up the supervisor's own hold; the bytes are freed when the last process that has the region open or
mapped lets go of it too.

Implementations pass one contract test suite. None imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class RegionRefused(Exception):
    """A region was not made because the memory is not there.

    Attributes:
        needed_bytes: how much was asked for.
        available_bytes: how much there was to give.
    """

    def __init__(self, name: str, needed_bytes: int, available_bytes: int) -> None:
        super().__init__(
            f"the region {name!r} needs {needed_bytes:,} bytes, and {available_bytes:,} are available"
        )
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes


class RegionBusy(Exception):
    """A region cannot be sealed because some process still maps it writably."""


@dataclass(slots=True)
class Region:
    """A region, as its owner holds it.

    Attributes:
        fd: the open descriptor; -1 once closed.
        size_bytes: its size.
        sealed: whether its content can never change again.
        name: for people who read ``/proc``; it identifies nothing.
    """

    fd: int
    size_bytes: int
    sealed: bool
    name: str

    @property
    def is_open(self) -> bool:
        """Whether its owner still holds it."""
        return self.fd >= 0


class RegionStore(Protocol):
    """Makes, seals and frees regions of one kind of memory. Not thread-safe: one reactor owns it."""

    def create(self, size_bytes: int, name: str, *, resizable: bool = False) -> Region:
        """Make an empty region, all zeros, that can be filled until it is sealed.

        Pages are allocated as they are written, not here; so this asks whether the memory is available but
        reserves none.

        Raises:
            RegionRefused: it does not fit into the memory that is available now.
            ValueError: `size_bytes` is not positive.
        """
        ...

    def grow(self, region: Region, size_bytes: int) -> None:
        """Make a resizable region larger.

        Raises:
            RegionRefused: what it is to grow by does not fit into the memory that is available now.
            ValueError: it would not be larger, or the region is closed.
            PermissionError: the region is not resizable.
        """
        ...

    def empty(self, region: Region, kept_bytes: int) -> None:
        """Give the pages behind the first ``kept_bytes`` back; they read as zeros, and the size stays.

        A process that has written copies of its own of such pages keeps them, which cutting the region would not
        let it.

        Raises:
            ValueError: the region is closed.
            PermissionError: the region is sealed.
        """
        ...

    def seal(self, region: Region) -> None:
        """Make content and size of a region unchangeable; again is allowed and does nothing.

        Raises:
            RegionBusy: some process still maps it writably; it stays unsealed and this may be repeated.
            ValueError: the region is closed.
        """
        ...

    def allocated_bytes(self, region: Region) -> int:
        """Return how much memory a region takes now: whole pages, only those that were written.

        Raises:
            ValueError: the region is closed.
        """
        ...

    def close(self, region: Region) -> None:
        """Let go of a region; again is allowed and does nothing."""
        ...


def check_size(size_bytes: int) -> None:
    """Raise unless a region can have this size.

    Raises:
        ValueError: the size is not positive.
    """
    if size_bytes <= 0:
        raise ValueError(f"a region of {size_bytes} bytes was asked for; it must have at least one")


def check_grows(region: Region, size_bytes: int) -> None:
    """Raise unless this size is more than a region has.

    Raises:
        ValueError: it is not.
    """
    if size_bytes <= region.size_bytes:
        raise ValueError(f"the region {region.name!r} has {region.size_bytes} bytes; {size_bytes} are no more")


def check_open(region: Region) -> None:
    """Raise unless a region is still held.

    Raises:
        ValueError: the region is closed.
    """
    if not region.is_open:
        raise ValueError(f"the region {region.name!r} is closed")
