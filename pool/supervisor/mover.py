"""Moves the content of regions out of memory to the disk, and back.

A thread has the kernel copy, on descriptors of its own: a region that is freed meanwhile is closed by the shelf at
once, and its memory is free as soon as the thread looks up from the chunk that it is at. What comes of an order is
told when all its regions are where they should be, and their memory is free, or where they were. The copy on the
disk stays as long as the region exists: it is what comes back, mapped, and to move it out again costs nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ...protocol.errors import OutOfBudget, PoolError
from ...protocol.messages import Record
from ..core import events
from ..core.instructions import MoveRegions
from ..memory.base import RegionRefused
from ..memory.machine import Machine
from ..memory.spill import NotWanted, SpillFolder, read_ahead, reopened_to_read, write_out
from .background import Background
from .reactor import Reactor
from .shelf import Shelf


class _File(NamedTuple):
    """A copy of a region's content on the disk, open to be read."""

    fd: int
    size_bytes: int


class _Move:
    """One region on its way.

    Attributes:
        is_clean: whether the disk has its content already.
        source_fd: what it is read from, the region or its file; ours to close, -1 once closed.
        file_fd: the file that was written; ours to close until it is taken, -1 if there is none.
        is_wanted: false once the region is freed, or the supervisor ends.
    """

    def __init__(self, region: int, size_bytes: int, source_fd: int, *, is_clean: bool) -> None:
        self.region = region
        self.size_bytes = size_bytes
        self.is_clean = is_clean
        self.source_fd = source_fd
        self.file_fd = -1
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
        for fd in (self.take_source(), self.take_file()):
            if fd >= 0:
                os.close(fd)


class _Result(NamedTuple):
    """How long it took to move regions, and why it failed, if it did."""

    seconds: float
    error: Record | None


class Mover:
    """Carries out `MoveRegions`.

    Args:
        shelf: has the regions that are in memory.
        folder: where the files are.
        machine: tells how much memory is available.
        reactor: in whose thread results are told.
        feed: takes events for the core.
        note: takes sentences for the log.
    """

    def __init__(
        self,
        shelf: Shelf,
        folder: SpillFolder,
        machine: Machine,
        reactor: Reactor,
        *,
        feed: Callable[[events.Event], None],
        note: Callable[[str], None],
    ) -> None:
        self._shelf = shelf
        self._folder = folder
        self._machine = machine
        self._feed = feed
        self._note = note
        self._copier = Background("onecopy-copier", reactor)
        # The kernel needs a quarter of a second to take a gigabyte back, which it does when the last descriptor is
        # closed. Nobody who waits for that memory shall wait for other copies too.
        self._closer = Background("onecopy-closer", reactor)
        self._files: dict[int, _File] = {}
        self._moves: dict[int, _Move] = {}
        self._is_noted = False

    def disk_bytes(self, is_meant: Callable[[int], bool] = lambda _: True) -> int:
        """Return what the files of some regions take, those too that are in memory again."""
        return sum(file.size_bytes for number, file in self._files.items() if is_meant(number))

    def evicted_bytes(self, is_meant: Callable[[int], bool] = lambda _: True) -> int:
        """Return the size of those of some regions that are on the disk alone."""
        return self.disk_bytes(lambda number: is_meant(number) and not self._shelf.has(number))

    def move(self, one: MoveRegions) -> None:
        """Move regions; it is told as `RegionsMoved`. Files that are regions stay what they are."""
        moves: list[_Move] = []
        try:
            if one.tier == "disk":
                self._go_out(one.regions, moves)
            else:
                self._come_back(one.regions, moves)
        except (PoolError, RegionRefused, OSError) as error:
            self._arrived(one, moves, _Result(0.0, _record_of(error)))
            return
        self._moves |= {move.region: move for move in moves}
        work = self._write if one.tier == "disk" else _read
        self._copier.do(lambda: _timed(work, moves), lambda result: self._arrived(one, moves, result))

    def free(self, numbers: tuple[int, ...]) -> None:
        """Let go of regions, in memory and on the disk; what is under way is given up."""
        for number in numbers:
            if number in self._moves:
                self._moves[number].is_wanted = False
            if number in self._files:
                fd = self._files.pop(number).fd
                self._closer.do(lambda fd=fd: os.close(fd), lambda _: None)
        self._shelf.free(numbers)

    def close(self) -> None:
        """Give up what is under way, and close every file."""
        for move in self._moves.values():
            move.is_wanted = False
        self._copier.close()
        self._closer.close()
        _close(list(self._moves.values()))
        for file in self._files.values():
            os.close(file.fd)
        self._moves.clear()
        self._files.clear()

    # --- before ---------------------------------------------------------------------------------------------

    def _go_out(self, numbers: tuple[int, ...], moves: list[_Move]) -> None:
        for number in dict.fromkeys(numbers):
            region = self._shelf.region(number)
            if region is not None:
                is_clean = number in self._files
                moves.append(_Move(number, region.size_bytes, os.dup(region.fd), is_clean=is_clean))

    def _come_back(self, numbers: tuple[int, ...], moves: list[_Move]) -> None:
        """Take the files that regions come back as.

        Raises:
            OutOfBudget: there is not enough memory for all of them.
            OSError: there are too many descriptors.
        """
        away = [one for one in dict.fromkeys(numbers) if one in self._files and not self._shelf.has(one)]
        needed_bytes = sum(self._files[number].size_bytes for number in away)
        available_bytes = self._machine.available_bytes()
        if needed_bytes > available_bytes:
            raise OutOfBudget(
                f"weights of {needed_bytes:,} bytes cannot come back from the disk: {available_bytes:,} bytes of "
                "memory are available",
                needed_bytes=needed_bytes,
                available_bytes=available_bytes,
            )
        for number in away:
            file = self._files[number]
            moves.append(_Move(number, file.size_bytes, os.dup(file.fd), is_clean=True))

    # --- in the thread --------------------------------------------------------------------------------------

    def _write(self, moves: list[_Move]) -> None:
        unclean = [move for move in moves if not move.is_clean]
        if unclean:
            self._folder.check(sum(move.size_bytes for move in unclean))
        for move in unclean:
            fd = self._folder.create()
            try:
                if _unless_given_up(move, partial(write_out, move.source_fd, fd)):
                    move.file_fd = reopened_to_read(fd)
            finally:
                os.close(fd)

    # --- after ----------------------------------------------------------------------------------------------

    def _arrived(self, one: MoveRegions, moves: list[_Move], result: _Result) -> None:
        """Let the shelf have what is in memory now, and nothing else."""
        if result.error is None:
            (self._came_back if one.tier == "memory" else self._went_out)(moves)
        self._closer.do(lambda: _close(moves), lambda _: self._tell(one, moves, result))

    def _went_out(self, moves: list[_Move]) -> None:
        for move in moves:
            if move.is_wanted and not move.is_clean:
                self._files[move.region] = _File(move.take_file(), move.size_bytes)
            self._shelf.put_away(move.region)

    def _came_back(self, moves: list[_Move]) -> None:
        for move in moves:
            if move.is_wanted:
                self._shelf.bring_back(move.region, move.take_source(), move.size_bytes)

    @property
    def fallbacks(self) -> list[str]:
        """What it does in a second-best way, and why."""
        return [f"evicted weights: {self._folder.fallback}"] if self._folder.fallback else []

    def _tell(self, one: MoveRegions, moves: list[_Move], result: _Result) -> None:
        for move in moves:
            self._moves.pop(move.region, None)
        if self._folder.fallback and not self._is_noted:
            self._is_noted = True
            self._note(self._folder.fallback)
        self._feed(events.RegionsMoved(one.regions, one.tier, result.seconds, result.error))


def _timed(work: Callable[[list[_Move]], None], moves: list[_Move]) -> _Result:
    started_at = time.monotonic()
    error: Record | None = None
    try:
        if moves:
            work(moves)
    except Exception as raised:  # noqa: BLE001 - whatever it is, the next move shall not wait for ever
        error = _record_of(raised)
    return _Result(time.monotonic() - started_at, error)


def _close(moves: list[_Move]) -> None:
    for move in moves:
        move.close()


def _read(moves: list[_Move]) -> None:
    for move in moves:
        _unless_given_up(move, partial(read_ahead, move.source_fd))


def _unless_given_up(move: _Move, work: Callable[[int, Callable[[], bool]], None]) -> bool:
    """Write or read a region; false if it was freed meanwhile."""
    try:
        work(move.size_bytes, lambda: move.is_wanted)
    except NotWanted:
        move.close()
        return False
    return True


def _record_of(error: Exception) -> Record:
    if isinstance(error, PoolError):
        return error.to_record()
    text = f"{error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
    return OutOfBudget(f"weights could not be moved between memory and disk: {text}").to_record()
