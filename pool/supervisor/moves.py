"""One region on its way between memory and a file, and what a thread does with several of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

from ..memory.spill import NotWanted, SpillFolder, read_ahead, reopened_to_read, write_out
from .carrier import Carrier


class Move:
    """One region on its way.

    Attributes:
        is_clean: whether the disk has its content already.
        source_fd: what it is read from, the region or its file; ours to close, -1 once closed.
        file_fd: the file that was written; ours to close until it is taken, -1 if there is none.
        carrier: who copies it, if it is on a GPU.
        region_fd: the region that was made for what comes back to a GPU; ours to close, -1 if there is none.
        is_wanted: false once the region is freed, or the supervisor ends.
    """

    def __init__(
        self, region: int, size_bytes: int, source_fd: int, carrier: Carrier | None, *, is_clean: bool
    ) -> None:
        self.region = region
        self.size_bytes = size_bytes
        self.is_clean = is_clean
        self.source_fd = source_fd
        self.file_fd = -1
        self.carrier = carrier
        self.region_fd = -1
        self.is_wanted = True

    def take_source(self) -> int:
        """Return what is read from, for the caller to keep or close."""
        fd, self.source_fd = self.source_fd, -1
        return fd

    def take_file(self) -> int:
        """Return what was written, for the caller to keep or close."""
        fd, self.file_fd = self.file_fd, -1
        return fd

    def close(self) -> None:
        """Close what is still open."""
        region_fd, self.region_fd = self.region_fd, -1
        for fd in (self.take_source(), self.take_file(), region_fd):
            if fd >= 0:
                os.close(fd)


def write_all(moves: Sequence[Move], folder: SpillFolder) -> None:
    """Write those regions to files of the folder whose content is on no disk yet.

    Raises:
        SpillRefused: there is no room for all of them.
        OSError: the disk, or a GPU, fails.
    """
    unclean = [move for move in moves if not move.is_clean]
    if unclean:
        folder.check(sum(move.size_bytes for move in unclean))
    for move in unclean:
        fd = folder.create()
        write = write_out if move.carrier is None else move.carrier.write_out
        try:
            if _unless_given_up(move, partial(write, move.source_fd, fd)):
                move.file_fd = reopened_to_read(fd)
        finally:
            os.close(fd)


def read_all(moves: Sequence[Move]) -> None:
    """See to it that the content of files is in memory: in the kernel's cache, or in a region of a GPU.

    Raises:
        OSError: the disk, or a GPU, fails.
    """
    for move in moves:
        read = read_ahead if move.carrier is None else partial(move.carrier.bring_back, move.region_fd)
        _unless_given_up(move, partial(read, move.source_fd))


def close_all(moves: Sequence[Move]) -> None:
    """Close what is still open of all."""
    for move in moves:
        move.close()


def _unless_given_up(move: Move, work: Callable[[int, Callable[[], bool]], None]) -> bool:
    """Write or read a region; false if it was freed meanwhile."""
    try:
        work(move.size_bytes, lambda: move.is_wanted)
    except NotWanted:
        move.close()
        return False
    return True
