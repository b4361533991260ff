"""The regions themselves, by the numbers that the core gave them: made, handed out, sealed, closed.

Those of a GPU are in its memory, but for mailboxes, and for what of a weight set is not for the GPU.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from ...protocol.errors import InvalidRequest, LoadFailed, OutOfBudget
from ...protocol.messages import RegionsGranted
from ..core import events
from ..core.instructions import EmptyRegion, GrantRegions, GrowRegion, MakeRegion
from ..core.numbers import device_of
from ..core.regions import FillerKey, RegionGrant, Want
from ..memory.base import Region, RegionBusy, RegionRefused, RegionStore
from ..memory.files import FileRegion, identity_of

#: How often files that are regions are looked at.
_LOOK_S: Final = 1.0
#: What regions of weights are called for people who read ``/proc``.
_WEIGHTS: Final = "weights"


class Shelf:
    """Keeps every region that the core knows of.

    Args:
        host: makes regions in the processor's memory.
        stores: by device, what makes regions in its memory.
        send: sends a filler a message with descriptors.
        feed: takes events for the core.
        note: takes sentences for the log.
        call_at: the reactor's timer.
    """

    def __init__(
        self,
        host: RegionStore,
        stores: Sequence[RegionStore],
        *,
        send: Callable[[FillerKey, RegionsGranted, list[int]], None],
        feed: Callable[[events.Event], None],
        note: Callable[[str], None],
        call_at: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._host = host
        self._stores = stores
        self._store_of: dict[int, RegionStore] = {}  # by region, but for those that came back as files
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
        parsed: list[Want] = []
        for want in wants:
            if type(want) is not list or [type(part) for part in want] != [int, bytes, bool]:
                raise InvalidRequest("each region that is needed must be [size, digest, whether it is on a GPU]")
            parsed.append(Want(*want))
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
                self.seal(number)
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
            if grant.is_new and not self._fill(one.filler, grant):
                return
            if grant.state != "wait":
                fds.append(self._regions[grant.number].fd)
        self._send(one.filler, RegionsGranted([[grant.number, grant.state] for grant in one.grants]), fds)

    def make(self, one: MakeRegion) -> None:
        """Make a region that is written all the time."""
        try:
            store = self._host if one.use == "mailbox" else self._store_on(one.region)
            is_resizable = one.use == "slot" and store is self._host
            self._create(store, one.region, one.size_bytes, one.use, resizable=is_resizable)
        except (RegionRefused, OSError) as error:
            self._feed(events.RegionFailed(one.region, OutOfBudget(str(error)).to_record()))
            return
        self._uses[one.region] = one.use
        self._feed(events.RegionMade(one.region, one.size_bytes))

    def grow(self, one: GrowRegion) -> None:
        """Make a region larger."""
        try:
            self._store_of[one.region].grow(self._regions[one.region], one.size_bytes)
        except (RegionRefused, OSError) as error:
            self._feed(events.RegionFailed(one.region, OutOfBudget(str(error)).to_record()))
            return
        self._feed(events.RegionMade(one.region, one.size_bytes))

    def empty(self, one: EmptyRegion) -> None:
        """Give pages of a region back."""
        self._store_of[one.region].empty(self._regions[one.region], one.kept_bytes)

    def free(self, numbers: tuple[int, ...]) -> None:
        """Let go of regions; of those that could not be made there is nothing to let go."""
        for number in numbers:
            self._filling.pop(number, None)
            if self._uses.pop(number, None) == "slot" and self._store_of.get(number) is self._host:
                # What a worker has taken out of it holds on to the file, but not to these pages.
                self._host.empty(self._regions[number], 0)
            if number in self._files:
                self._files.pop(number).close()
            else:
                self.put_away(number)

    def has(self, number: int) -> bool:
        """Whether a region is in memory."""
        return number in self._regions

    def region(self, number: int) -> Region | None:
        """Return a region that is in memory; None if it is not, or is a file."""
        return self._regions.get(number)

    def put_away(self, number: int) -> None:
        """Give up the memory of a region that has a copy elsewhere; no matter if it has none."""
        region, store = self._regions.pop(number, None), self._store_of.pop(number, None)
        if region is None:
            return
        if store is None:
            os.close(region.fd)
        else:
            store.close(region)

    def bring_back(self, number: int, fd: int, size_bytes: int) -> None:
        """Have a region again whose content is in a file that nobody can write any more; take over the file."""
        self._regions[number] = Region(fd, size_bytes, sealed=True, name=_WEIGHTS)

    def make_anew(self, number: int, size_bytes: int) -> int:
        """Make memory on its device for a region that is to come back; return the descriptor, which stays ours.

        Raises:
            RegionRefused: it is not there.
            OSError: the driver refused.
        """
        return self._create(self._store_on(number), number, size_bytes, _WEIGHTS).fd

    def seal(self, number: int) -> None:
        """Make a region unchangeable.

        Raises:
            RegionBusy: somebody still maps it writably.
        """
        self._store_of[number].seal(self._regions[number])

    def fds(self, numbers: tuple[int, ...]) -> list[int]:
        """Return the regions' descriptors."""
        return [
            self._files[number].fd if number in self._files else self._regions[number].fd for number in numbers
        ]

    def used_as(self, use: Literal["slot", "mailbox"]) -> list[int]:
        """Return the regions of one use that is not weights."""
        return [number for number, what in self._uses.items() if what == use]

    def allocated_bytes(self, which: Sequence[int] | None = None) -> int:
        """Return how much memory regions take: all, or these; mapped weights files take none."""
        numbers = self._regions if which is None else [number for number in which if number in self._regions]
        return sum(map(self._taken_bytes, numbers))

    def returned_bytes(self) -> int:
        """Return how much of that are files that evicted weights came back as; PSS counts them too."""
        return sum(region.size_bytes for number, region in self._regions.items() if number not in self._store_of)

    def allocated_on(self, device: int) -> int:
        """Return how much of a GPU's own memory regions take."""
        store = self._stores[device]
        numbers = [number for number, one in self._store_of.items() if one is store]
        return self.allocated_bytes(numbers)

    def changed_files(self) -> list[str]:
        """Look at the files that are regions; tell of those that are not what they were."""
        changes: list[str] = []
        for number, region in list(self._files.items()):
            if number not in self._files:  # freed with the one before, which lay in the same model
                continue
            change = region.change()
            if change:
                changes.append(change)
                self._note(change)
                region.identity = identity_of(region.fd)
                error = LoadFailed(f"{change}; it is loaded anew when it is needed again").to_record()
                self._feed(events.FileChanged(number, error))
        return changes

    def _taken_bytes(self, number: int) -> int:
        region, store = self._regions[number], self._store_of.get(number)
        return store.allocated_bytes(region) if store else region.size_bytes  # of a file all counts

    def _store_on(self, number: int) -> RegionStore:
        return self._stores[device_of(number, len(self._stores))]

    def _create(
        self, store: RegionStore, number: int, size_bytes: int, use: str, *, resizable: bool = False
    ) -> Region:
        region = self._regions[number] = store.create(size_bytes, f"onecopy-{use}", resizable=resizable)
        self._store_of[number] = store
        return region

    def _fill(self, filler: FillerKey, grant: RegionGrant) -> bool:
        """Make a region that somebody will fill; false if that cannot be, which the core is told."""
        store = self._host if grant.is_beside else self._store_on(grant.number)
        try:
            self._create(store, grant.number, grant.size_bytes, _WEIGHTS)
        except (RegionRefused, ValueError, OSError) as error:
            kind = OutOfBudget if isinstance(error, RegionRefused) else LoadFailed
            self._feed(events.FillingFailed(filler, kind(str(error)).to_record()))
            return False
        self._filling[grant.number] = filler
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
