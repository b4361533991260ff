"""Who is next among those with work: whoever was served least, by weight.

Start-time fair queueing (Goyal, Vin and Cheng, 1996) with one queue for each member: a member's clock is the time
that it was given, divided by its weight; the one whose clock is furthest behind is next; and one that had nothing
to do meanwhile begins where the others are, so that nobody saves up turns.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any, Final, Generic, Protocol, TypeVar

#: Outdated entries that the heap may have besides those in use, before they are cleared away.
_KEPT_ENTRIES: Final = 64


class Member(Protocol):
    """Who takes turns.

    Attributes:
        clock_s: the time that it was given so far, in seconds divided by its weight.
        weight: how much of the whole it gets, relative to others.
    """

    clock_s: float
    weight: float


_Member = TypeVar("_Member", bound=Member)


class Clock:
    """How far those who take turns have come; shared by lists whose members compete.

    Attributes:
        now_s: where the last one stood when its turn came.
    """

    __slots__ = ("now_s",)

    def __init__(self) -> None:
        self.now_s = 0.0


class Turns(Generic[_Member]):
    """A list of those with work. Every operation takes the logarithm of its length, and mostly less.

    Whoever takes part has one entry in the heap that counts. It may be of an earlier clock, which is put right
    when it comes up; that of somebody who has no work stays until then, or until nobody has any: it may have some
    again before.
    """

    __slots__ = ("_clock", "_entries", "_heap", "_listed", "_serial")

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._heap: list[tuple[float, int, Any]] = []
        self._entries: dict[_Member, int] = {}  # the serial number of the entry that counts
        self._listed: dict[_Member, None] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._listed)

    def __bool__(self) -> bool:  # asked several times for each event
        return bool(self._listed)

    def __contains__(self, member: object) -> bool:
        return member in self._listed

    def __iter__(self) -> Iterator[_Member]:
        return iter(self._listed)

    def add(self, member: _Member) -> None:
        """Let somebody take turns; it changes nothing if it does already."""
        if member in self._listed:
            return
        self._listed[member] = None
        if member.clock_s < self._clock.now_s:
            member.clock_s = self._clock.now_s
        if member not in self._entries:
            self._enter(member)

    def drop(self, member: _Member) -> None:
        """Let somebody take none, because it has no work."""
        self._listed.pop(member, None)
        if not self._listed:  # clocks tell all that entries do, and members may refer to this list
            self._heap.clear()
            self._entries.clear()

    def first(self) -> _Member | None:
        """Return whose turn it is; None if nobody has work."""
        heap, listed = self._heap, self._listed
        if not listed:
            return None
        while True:
            clock_s, serial, member = heap[0]
            if self._entries.get(member) != serial:
                heapq.heappop(heap)
            elif member not in listed:
                heapq.heappop(heap)
                del self._entries[member]
            elif clock_s < member.clock_s:
                heapq.heapreplace(heap, self._entry(member))
            else:
                return member

    def took(self, member: _Member, seconds: float) -> None:
        """Somebody has its turn, and is given so much time."""
        if member.clock_s > self._clock.now_s:
            self._clock.now_s = member.clock_s
        member.clock_s += seconds / member.weight
        if not seconds and member in self._listed:  # or it would be first again among those of one clock
            self._enter(member)

    def correct(self, member: _Member, seconds: float) -> None:
        """Somebody has used more (or, negative, less) time than it was given."""
        member.clock_s += seconds / member.weight
        if seconds < 0 and member in self._entries:
            self._enter(member)

    def _entry(self, member: _Member) -> tuple[float, int, Any]:
        """Return an entry of somebody, which is the one that counts from now on."""
        self._serial += 1
        self._entries[member] = self._serial
        return member.clock_s, self._serial, member

    def _enter(self, member: _Member) -> None:
        heapq.heappush(self._heap, self._entry(member))
        if len(self._heap) > 2 * len(self._entries) + _KEPT_ENTRIES:
            self._heap = [entry for entry in self._heap if self._entries.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)
