"""Moves the content of regions out of memory to the disk, and back.

A thread has the kernel copy, on descriptors of its own: a region that is freed meanwhile is closed by the shelf at
once, and its memory is free as soon as the thread looks up from the chunk that it is at. What comes of an order is
told when all its regions are where they should be, and their memory is free, or where they were. The copy on the
disk stays as long as the region exists: it is what comes back, mapped, and to move it out again costs nothing.

What is on a GPU a carrier copies, a process that can: out as the kernel does, and back into a region that is
made anew. The kernel's cache of the file is between the two: what was away for a moment is not read from a disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from ...protocol.errors import OutOfBudget, PoolError
from ...protocol.messages import Record
from ..core import events
from ..core.instructions import MoveRegions
from ..memory.base import RegionRefused
from ..memory.spill import SpillFolder
from .background import Background
from .carrier import LINGER_S, Carrier
from .memories import Memories
from .moves import Move, close_all, read_all, write_all
from .reactor import Reactor
from .shelf import Shelf


class _File(NamedTuple):
    """A copy of a region's content on the disk, open to be read."""

    fd: int
    size_bytes: int


class _Result(NamedTuple):
    """How long it took to move regions, and why it failed, if it did."""

    seconds: float
    error: Record | None


class Mover:
    """Carries out `MoveRegions`.

    Args:
        shelf: has the regions that are in memory.
        folder: where the files are.
        memories: tell how much memory is available, and have who copies what is on a GPU.
        reactor: in whose thread results are told.
        feed: takes events for the core.
        note: takes sentences for the log.
    """

    def __init__(
        self,
        shelf: Shelf,
        folder: SpillFolder,
        memories: Memories,
        reactor: Reactor,
        *,
        feed: Callable[[events.Event], None],
        note: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._shelf = shelf
        self._folder = folder
        self._memories = memories
        self._feed = feed
        self._note = note
        self._copier = Background("onecopy-copier", reactor)
        # The kernel needs a quarter of a second to take a gigabyte back, which it does when the last descriptor is
        # closed. Nobody who waits for that memory shall wait for other copies too.
        self._closer = Background("onecopy-closer", reactor)
        self._files: dict[int, _File] = {}
        self._moves: dict[int, Move] = {}
        self._is_noted = False

    def disk_bytes(self, is_meant: Callable[[int], bool] = lambda _: True) -> int:
        """Return what the files of some regions take, those too that are in memory again."""
        return sum(file.size_bytes for number, file in self._files.items() if is_meant(number))

    def evicted_bytes(self, is_meant: Callable[[int], bool] = lambda _: True) -> int:
        """Return the size of those of some regions that are on the disk alone."""
        return self.disk_bytes(lambda number: is_meant(number) and not self._shelf.has(number))

    def move(self, one: MoveRegions) -> None:
        """Move regions; it is told as `RegionsMoved`. Files that are regions stay what they are."""
        moves: list[Move] = []
        try:
            if one.tier == "disk":
                self._go_out(one.regions, moves)
            else:
                self._come_back(one.regions, moves)
        except (PoolError, RegionRefused, OSError) as error:
            self._arrived(one, moves, _Result(0.0, _record_of(error)))
            return
        self._moves |= {move.region: move for move in moves}
        work = partial(write_all, folder=self._folder) if one.tier == "disk" else read_all
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
        self._memories.carriers.close()
        close_all(list(self._moves.values()))
        for file in self._files.values():
            os.close(file.fd)
        self._moves.clear()
        self._files.clear()

    # --- before ---------------------------------------------------------------------------------------------

    def _go_out(self, numbers: tuple[int, ...], moves: list[Move]) -> None:
        for number in dict.fromkeys(numbers):
            region = self._shelf.region(number)
            if region is not None:
                is_clean, carrier = number in self._files, self._memories.carriers.of(number)
                moves.append(Move(number, region.size_bytes, os.dup(region.fd), carrier, is_clean=is_clean))

    def _come_back(self, numbers: tuple[int, ...], moves: list[Move]) -> None:
        """Take the files that regions come back as, or what they are filled with anew.

        Raises:
            OutOfBudget: there is not enough memory for all of them.
            RegionRefused: a GPU has not.
            OSError: there are too many descriptors, or a driver refused.
        """
        away = [one for one in dict.fromkeys(numbers) if one in self._files and not self._shelf.has(one)]
        self._check_room([one for one in away if self._memories.carriers.of(one) is None])
        for number in away:
            file, carrier = self._files[number], self._memories.carriers.of(number)
            moves.append(Move(number, file.size_bytes, os.dup(file.fd), carrier, is_clean=True))
            if carrier is not None:
                moves[-1].region_fd = os.dup(self._shelf.make_anew(number, file.size_bytes))

    def _check_room(self, away: Sequence[int]) -> None:
        """Look whether regions can come back as files.

        Raises:
            OutOfBudget: there is not enough memory for all of them.
        """
        needed_bytes = sum(self._files[number].size_bytes for number in away)
        available_bytes = self._memories.machine.available_bytes()
        if needed_bytes > available_bytes:
            raise OutOfBudget(
                f"weights of {needed_bytes:,} bytes cannot come back from the disk: {available_bytes:,} bytes of "
                "memory are available",
                needed_bytes=needed_bytes,
                available_bytes=available_bytes,
            )

    # --- after ----------------------------------------------------------------------------------------------

    def _arrived(self, one: MoveRegions, moves: list[Move], result: _Result) -> None:
        """Let the shelf have what is in memory now, and nothing else."""
        if one.tier == "memory":
            self._came_back(moves, is_there=result.error is None)
        elif result.error is None:
            self._went_out(moves)
        self._closer.do(lambda: close_all(moves), lambda _: self._tell(one, moves, result))

    def _went_out(self, moves: list[Move]) -> None:
        for move in moves:
            if move.is_wanted and not move.is_clean:
                self._files[move.region] = _File(move.take_file(), move.size_bytes)
            self._shelf.put_away(move.region)

    def _came_back(self, moves: list[Move], *, is_there: bool) -> None:
        for move in moves:
            if move.carrier is not None and not is_there:
                self._shelf.put_away(move.region)
            elif is_there and move.is_wanted and move.carrier is not None:
                self._shelf.seal(move.region)
            elif is_there and move.is_wanted:
                self._shelf.bring_back(move.region, move.take_source(), move.size_bytes)

    @property
    def fallbacks(self) -> list[str]:
        """What it does in a second-best way, and why."""
        return [f"evicted weights: {self._folder.fallback}"] if self._folder.fallback else []

    def _tell(self, one: MoveRegions, moves: list[Move], result: _Result) -> None:
        for move in moves:
            self._moves.pop(move.region, None)
        if self._folder.fallback and not self._is_noted:
            self._is_noted = True
            self._note(self._folder.fallback)
        for carrier in {move.carrier for move in moves if move.carrier is not None}:
            self._reactor.call_at(time.monotonic() + LINGER_S, partial(self._let_rest, carrier))
        self._feed(events.RegionsMoved(one.regions, one.tier, result.seconds, result.error))

    def _let_rest(self, carrier: Carrier) -> None:
        self._copier.do(carrier.rest, lambda _: None)


def _timed(work: Callable[[list[Move]], None], moves: list[Move]) -> _Result:
    started_at = time.monotonic()
    error: Record | None = None
    try:
        if moves:
            work(moves)
    except Exception as raised:  # noqa: BLE001 - whatever it is, the next move shall not wait for ever
        error = _record_of(raised)
    return _Result(time.monotonic() - started_at, error)


def _record_of(error: Exception) -> Record:
    if isinstance(error, PoolError):
        return error.to_record()
    text = f"{error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
    return OutOfBudget(f"weights could not be moved between memory and disk: {text}").to_record()
