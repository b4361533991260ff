"""The regions themselves, by the numbers that the core gave them: made, handed out, sealed, closed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from ...protocol.errors import InvalidRequest, LoadFailed, OutOfBudget
from ...protocol.messages import RegionsGranted
from ..core import events
from ..core.instructions import EmptyRegion, GrantRegions, GrowRegion, MakeRegion
from ..core.regions import FillerKey
from ..memory.base import Region, RegionBusy, RegionRefused, RegionStore
from ..memory.files import FileRegion, identity_of

#: How often files that are regions are looked at.
_LOOK_S: Final = 1.0
#: What regions of weights are called for people who read ``/proc``.
_WEIGHTS: Final = "onecopy-weights"


class Shelf:
    """Keeps every region that the core knows of.

    Args:
        store: makes regions of memory.
        send: sends a filler a message with descriptors.
        feed: takes events for the core.
        note: takes sentences for the log.
        call_at: the reactor's timer.
    """

    def __init__(
        self,
        store: RegionStore,
        *,
        send: Callable[[FillerKey, RegionsGranted, list[int]], None],
        feed: Callable[[events.Event], None],
        note: Callable[[str], None],
        call_at: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._store = store
        self._send = send
        self._feed = feed
        self._note = note
        self._call_at = call_at
        self._regions: dict[int, Region] = {}
        self._files: dict[int, FileRegion] = {}
        self._filling: dict[int, FillerKey] = {}
        self._uses: dict[int, str] = {}  # of those that are not weights
        self._offered: list[FileRegion] = []
        self._is_looking = False

    def need(self, filler: FillerKey, wants: list[Any]) -> None:
        """Somebody asks for regions of memory.

        Raises:
            InvalidRequest: not in the form in which one does.
        """
        parsed: list[tuple[int, bytes]] = []
        for want in wants:
            if type(want) is not list or [type(part) for part in want] != [int, bytes]:
                raise InvalidRequest("each region that is needed must be [size, digest]")
            parsed.append((want[0], want[1]))
        self._feed(events.RegionsNeeded(filler, parsed))

    def offer(self, filler: FillerKey, path: str, fds: list[int]) -> None:
        """Somebody has a file that shall be a region; its descriptor is taken out of the list.

        Raises:
            InvalidRequest: no file came along, or it is none that can be mapped.
        """
        if len(fds) != 1:
            raise InvalidRequest(f"{len(fds)} files came along with the path of one")
        try:
            offered = FileRegion.of(fds[0], path)
        except ValueError as error:
            raise InvalidRequest(str(error)) from error
        fds.clear()
        self._offered.append(offered)
        self._feed(events.FileOffered(filler, offered.identity, offered.size_bytes))

    def filled(self, filler: FillerKey, numbers: list[int]) -> None:
        """Somebody has filled regions: seal them.

        Raises:
            InvalidRequest: they are not being filled, or by somebody else.
        """
        for number in numbers:
            if number not in self._filling or self._filling[number] != filler:
                raise InvalidRequest(f"region {number} is not yours to fill")
            try:
                self._store.seal(self._regions[number])
            except RegionBusy as error:
                self._feed(events.FillingFailed(filler, LoadFailed(str(error)).to_record()))
                return
            del self._filling[number]
        self._feed(events.RegionsFilled(filler, numbers))

    def grant(self, one: GrantRegions) -> None:
        """Make the new ones of some regions, and hand all over."""
        fds: list[int] = []
        for grant in one.grants:
            if grant.state == "file":
                self._take_file(grant.number, is_new=grant.is_new)
                continue
            if grant.is_new and not self._create(one.filler, grant.number, grant.size_bytes):
                return
            if grant.state != "wait":
                fds.append(self._regions[grant.number].fd)
        self._send(one.filler, RegionsGranted([[grant.number, grant.state] for grant in one.grants]), fds)

    def make(self, one: MakeRegion) -> None:
        """Make a region that is written all the time."""
        try:
            region = self._store.create(one.size_bytes, f"onecopy-{one.use}", resizable=one.use == "slot")
        except (RegionRefused, OSError) as error:
            self._feed(events.RegionFailed(one.region, OutOfBudget(str(error)).to_record()))
            return
        self._regions[one.region] = region
        self._uses[one.region] = one.use
        self._feed(events.RegionMade(one.region, one.size_bytes))

    def grow(self, one: GrowRegion) -> None:
        """Make a region larger."""
        try:
            self._store.grow(self._regions[one.region], one.size_bytes)
        except (RegionRefused, OSError) as error:
            self._feed(events.RegionFailed(one.region, OutOfBudget(str(error)).to_record()))
            return
        self._feed(events.RegionMade(one.region, one.size_bytes))

    def empty(self, one: EmptyRegion) -> None:
        """Give pages of a region back."""
        self._store.empty(self._regions[one.region], one.kept_bytes)

    def free(self, numbers: tuple[int, ...]) -> None:
        """Let go of regions; of those that could not be made there is nothing to let go."""
        for number in numbers:
            self._filling.pop(number, None)
            if self._uses.pop(number, None) == "slot" and number in self._regions:
                # What a worker has taken out of it holds on to the file, but not to these pages.
                self._store.empty(self._regions[number], 0)
            if number in self._files:
                self._files.pop(number).close()
            elif number in self._regions:
                self._store.close(self._regions.pop(number))

    def has(self, number: int) -> bool:
        """Whether a region is in memory."""
        return number in self._regions

    def region(self, number: int) -> Region | None:
        """Return a region that is in memory; None if it is not, or is a file."""
        return self._regions.get(number)

    def put_away(self, number: int) -> None:
        """Give up the memory of a region that has a copy elsewhere; no matter if it has none."""
        if number in self._regions:
            self._store.close(self._regions.pop(number))

    def bring_back(self, number: int, size_bytes: int) -> Region:
        """Make the memory that the content of a region shall come back to.

        Raises:
            RegionRefused, OSError: it cannot be made.
        """
        region = self._regions[number] = self._store.create(size_bytes, _WEIGHTS)
        return region

    def seal(self, number: int) -> None:
        """Make unchangeable what has come back."""
        self._store.seal(self._regions[number])

    def fds(self, numbers: tuple[int, ...]) -> list[int]:
        """Return the regions' descriptors."""
        return [
            self._files[number].fd if number in self._files else self._regions[number].fd for number in numbers
        ]

    def used_as(self, use: Literal["slot", "mailbox"]) -> list[int]:
        """Return the regions of one use that is not weights."""
        return [number for number, what in self._uses.items() if what == use]

    def allocated_bytes(self, which: Sequence[int] | None = None) -> int:
        """Return how much memory regions take: all, or these; files take none."""
        numbers = self._regions if which is None else which
        found = [self._regions[number] for number in numbers if number in self._regions]
        return sum(self._store.allocated_bytes(region) for region in found)

    def changed_files(self) -> list[str]:
        """Look at the files that are regions; tell of those that are not what they were."""
        changes: list[str] = []
        for number, region in list(self._files.items()):
            change = region.change()
            if change:
                changes.append(change)
                self._note(change)
                region.identity = identity_of(region.fd)
                error = LoadFailed(f"{change}; it is loaded anew when it is needed again").to_record()
                self._feed(events.FileChanged(number, error))
        return changes

    def _create(self, filler: FillerKey, number: int, size_bytes: int) -> bool:
        try:
            self._regions[number] = self._store.create(size_bytes, _WEIGHTS)
        except (RegionRefused, ValueError, OSError) as error:
            kind = OutOfBudget if isinstance(error, RegionRefused) else LoadFailed
            self._feed(events.FillingFailed(filler, kind(str(error)).to_record()))
            return False
        self._filling[number] = filler
        return True

    def _take_file(self, number: int, *, is_new: bool) -> None:
        offered = self._offered.pop(0)
        if not is_new:
            offered.close()
            return
        self._files[number] = offered
        if not self._is_looking:
            self._is_looking = True
            self._call_at(time.monotonic() + _LOOK_S, self._look)

    def _look(self) -> None:
        self.changed_files()
        self._is_looking = bool(self._files)
        if self._is_looking:
            self._call_at(time.monotonic() + _LOOK_S, self._look)

    def close(self) -> None:
        """Let go of everything."""
        for region in self._offered:
            region.close()
        self.free((*self._regions, *self._files))
