"""Which regions there are, what is in them, and who holds them.

A region is held by whoever fills it and by the weight sets that lie in it, and freed with its last holder. What
is filled is found by its size and digest, so that a content which is there already is not stored again, whichever
model it comes from; that they are equal is for the filler to find out. A loader that wants what another is filling
waits for it, but only as long as it has nothing to fill itself: so no two wait for each other.

A region that no weight set in memory lies in can be moved out of memory and back; its number stays, and so does
what is in it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from ...protocol.errors import InvalidRequest
from ...protocol.limits import MAX_FDS_AHEAD
from ...protocol.states import Lifecycle
from .numbers import Numbers

#: Whoever fills regions: a loader by its number, or somebody at the unix socket.
FillerKey: TypeAlias = Hashable
#: What tells a file in one state from any other.
FileIdentity: TypeAlias = tuple[Any, ...]

GrantState = Literal["fill", "compare", "wait", "file"]
#: Where the content of a region can be moved to.
Tier = Literal["memory", "disk"]


class Want(NamedTuple):
    """A region that somebody wants: its size, the digest of its content or none, and whether it is for a GPU."""

    size_bytes: int
    digest: bytes
    on_gpu: bool = False


class RegionGrant(NamedTuple):
    """The answer to one that was wanted; with ``fill`` and ``file`` the number is new where ``is_new``.

    It is made in the memory of the device, or in the processor's beside a GPU where it ``is_beside``.
    """

    number: int
    size_bytes: int
    state: GrantState
    is_new: bool
    is_beside: bool = False


class RegionRecord:
    """One region.

    Attributes:
        number: never used twice.
        key: what it is found by; None if it is not to be found.
        filler: who fills it; None once that is done.
        holders: fillers, and weight sets as ``("set", number)``.
        is_file: whether it is a file, which takes no memory of the pool.
        is_elsewhere: whether it takes no memory of the device: a file, or the processor's memory beside a GPU.
        is_cached: whether its memory is the system's cache of what was written out, or is to be.
    """

    __slots__ = (
        "filler", "holders", "is_cached", "is_elsewhere", "is_file", "key", "life", "number", "size_bytes",
    )  # fmt: skip

    def __init__(
        self, number: int, size_bytes: int, key: tuple[Any, ...] | None, filler: FillerKey, *, is_beside: bool
    ) -> None:
        self.number = number
        self.size_bytes = size_bytes
        self.key = key
        self.filler: FillerKey | None = filler
        self.holders: set[Any] = {filler}
        self.is_file = key is not None and key[0] == "file"
        self.is_elsewhere = self.is_file or is_beside
        self.is_cached = False
        self.life = Lifecycle("region", number, "filling")

    def __repr__(self) -> str:
        return f"<RegionRecord {self.number}: {self.life.state}, {self.size_bytes:,} bytes>"

    @property
    def weight_sets(self) -> list[int]:
        """The weight sets that lie in it."""
        return [holder[1] for holder in self.holders if type(holder) is tuple and holder[0] == "set"]

    @property
    def is_being_filled(self) -> bool:
        """Whether somebody who fills regions, or compares with it, holds it."""
        return any(type(holder) is not tuple or holder[0] != "set" for holder in self.holders)


class Regions:
    """All regions of a device.

    What is to be freed collects in `freed` until somebody takes it from there; so do, in `answers`, grants for
    those who waited.

    Args:
        numbers: theirs.
        gpu: which GPU the device is; -1: none.

    Attributes:
        gpu, is_gpu: the same, and whether it is one.
        resident_bytes: the memory of those that are complete.
        filling_bytes: that of those that are being filled.
        cached_bytes: what of the memory of complete ones is the system's cache, or is to be.
    """

    def __init__(self, numbers: Numbers | None = None, *, gpu: int = -1) -> None:
        self.gpu = gpu
        self.is_gpu = gpu >= 0
        self.resident_bytes = 0
        self.filling_bytes = 0
        self.cached_bytes = 0
        self.freed: list[int] = []
        self.answers: list[tuple[FillerKey, list[RegionGrant]]] = []
        self._numbers = numbers or Numbers()
        self._by_number: dict[int, RegionRecord] = {}
        self._by_key: dict[tuple[Any, ...], RegionRecord] = {}
        self._held: dict[FillerKey, dict[int, RegionRecord]] = {}
        self._waiting: dict[int, list[tuple[FillerKey, Want]]] = {}

    def __len__(self) -> int:
        return len(self._by_number)

    def __getitem__(self, number: int) -> RegionRecord:
        return self._by_number[number]

    def __contains__(self, number: int) -> bool:
        return number in self._by_number

    def __iter__(self) -> Iterator[RegionRecord]:
        return iter(self._by_number.values())

    # --- filling --------------------------------------------------------------------------------------------

    def check(self, filler: FillerKey, wants: Sequence[Want]) -> None:
        """Look whether somebody can have what it wants.

        Raises:
            InvalidRequest: a size or digest cannot be, or the filler holds more than anyone needs.
        """
        if len(self._held.get(filler, {})) + len(wants) > MAX_FDS_AHEAD:
            raise InvalidRequest(f"more than {MAX_FDS_AHEAD:,} regions for one model")
        for size_bytes, digest, on_gpu in wants:
            if size_bytes <= 0 or len(digest) not in (0, 16):
                raise InvalidRequest(f"a region of {size_bytes} bytes with a digest of {len(digest)} bytes")
            if on_gpu and not self.is_gpu:
                raise InvalidRequest("a region on a GPU, of a device that is none")

    def want(self, filler: FillerKey, wants: Sequence[Want], *, may_wait: bool) -> list[RegionGrant]:
        """Make or find regions; empty if the answer comes later.

        Args:
            filler: who asks.
            wants: size in bytes and digest of each.
            may_wait: whether it may be told to wait for what another is filling.

        Raises:
            InvalidRequest: a size or digest cannot be, or the filler holds more than anyone needs.
        """
        self.check(filler, wants)
        if may_wait and len(wants) == 1 and self._delay(filler, wants[0]):
            return []
        several = len(wants) > 1  # who asks for one alone gets it
        return [
            self._grant(filler, want, may_wait=may_wait and several, is_one_of_several=several) for want in wants
        ]

    def offer(self, filler: FillerKey, identity: FileIdentity, size_bytes: int) -> RegionGrant:
        """Make a file a region, or find the one that it is."""
        key = ("file", *identity)
        record = self._by_key.get(key)
        is_new = record is None
        if record is None:
            record = self._make(filler, size_bytes, key, is_beside=False)
            self._fill(record)
        self._hold(filler, record)
        return RegionGrant(record.number, size_bytes, "file", is_new)

    def filled(self, filler: FillerKey, numbers: list[int]) -> None:
        """Note that regions are complete and sealed; those who waited for one may compare."""
        for number in numbers:
            record = self._held.get(filler, {}).get(number)
            if record is not None and record.filler == filler:
                self._fill(record)
                self._settle_waiting(record)

    def let_go(self, filler: FillerKey) -> None:
        """Forget a filler: what it has not filled is given up, what it holds it holds no more."""
        for waiting in self._waiting.values():
            waiting[:] = [one for one in waiting if one[0] != filler]
        for record in list(self._held.pop(filler, {}).values()):
            if record.filler == filler:
                self._find_no_more(record)
            self._drop(record, filler)

    def loading_bytes(self, filler: FillerKey) -> tuple[int, int]:
        """Return what lies in regions that this filler alone holds: in all, and in those of them it has filled."""
        held = self._held.get(filler, {}).values()
        alone = [one for one in held if len(one.holders) == 1 and not one.is_elsewhere]
        filled_bytes = sum(one.size_bytes for one in alone if one.filler is None)
        return sum(one.size_bytes for one in alone), filled_bytes

    @property
    def unwritten_bytes(self) -> int:
        """What was handed out, and counts as available for the system: it is not written yet, or a cache."""
        return self.filling_bytes + self.cached_bytes

    def fillers(self) -> Iterator[FillerKey]:
        """Yield everybody who fills regions, or compares with some."""
        yield from self._held

    # --- weight sets ----------------------------------------------------------------------------------------

    def use(self, filler: FillerKey, weight_set: int, numbers: list[int]) -> None:
        """Let a weight set hold regions that its filler has filled or found.

        Raises:
            InvalidRequest: one of them is not the filler's, or is not filled.
        """
        held = self._held.get(filler, {})
        for number in numbers:
            record = held.get(number)
            if record is None or record.life.state != "sealed":
                raise InvalidRequest(f"region {number} was not filled by whoever hands it over")
        for number in numbers:
            held[number].holders.add(("set", weight_set))

    def own(self, numbers: Iterable[int]) -> list[int]:
        """Return those of some regions that are on this device."""
        return [number for number in numbers if self._numbers.has_given(number)]

    def are_held(self, filler: FillerKey, numbers: Iterable[int]) -> bool:
        """Whether somebody holds all of these, filled."""
        held = self._held.get(filler, {})
        return all(number in held and held[number].life.state == "sealed" for number in numbers)

    def unuse(self, weight_set: int, numbers: tuple[int, ...]) -> None:
        """Let a weight set hold its regions no more."""
        for number in dict.fromkeys(numbers):
            self._drop(self._by_number[number], ("set", weight_set))

    # --- out of memory, and back ----------------------------------------------------------------------------

    def missing_bytes(self, filler: FillerKey, wants: Sequence[Want]) -> int:
        """Return how much memory would be handed out for what is wanted."""
        missing: dict[Any, int] = {}
        for index, want in enumerate(wants):
            key = self._key(want)
            record = self._by_key.get(key) if key else None
            is_there = record is not None and record.life.state == "sealed"
            is_coming = record is not None and record.life.state == "filling" and record.filler == filler
            # Beside one that is out of memory, or on its way, each gets a region of its own.
            is_moving = record is not None and record.life.state not in ("sealed", "filling")
            if not (is_there or is_coming or self._is_beside(want)):
                missing[key if key and not is_moving else index] = want.size_bytes
        return sum(missing.values())

    def away(self, numbers: tuple[int, ...]) -> tuple[int, ...]:
        """Return those of some regions that are not in memory."""
        return tuple(one for one in dict.fromkeys(numbers) if self._by_number[one].life.state == "away")

    def move(self, numbers: tuple[int, ...], state: Literal["leaving", "returning"]) -> None:
        """Begin to move regions out of memory, or back."""
        for number in numbers:
            record = self._by_number[number]
            record.life.become(state)
            if state == "returning":
                self._count(record)

    def moved(self, numbers: tuple[int, ...], *, is_away: bool) -> None:
        """Regions are out of memory, or in it; those that were freed meanwhile are of no matter."""
        for number in numbers:
            record = self._by_number.get(number)
            if record is not None:
                if is_away:
                    self._uncount(record)
                record.life.become("away" if is_away else "sealed")

    # --- inside ---------------------------------------------------------------------------------------------

    def _grant(
        self, filler: FillerKey, want: Want, *, may_wait: bool, is_one_of_several: bool = False
    ) -> RegionGrant:
        size_bytes, key, is_beside = want.size_bytes, self._key(want), self._is_beside(want)
        record = self._by_key.get(key) if key else None
        if record is not None and record.life.state == "sealed":
            self._hold(filler, record)
            return RegionGrant(record.number, size_bytes, "compare", is_new=False)
        # Two equal contents of an app: it has filled the one when it asks again for the other.
        is_filling = record is not None and record.life.state == "filling"
        if record is not None and is_filling and (may_wait or (record.filler == filler and is_one_of_several)):
            return RegionGrant(0, size_bytes, "wait", is_new=False)
        record = self._make(filler, size_bytes, key if record is None else None, is_beside=is_beside)
        return RegionGrant(record.number, size_bytes, "fill", is_new=True, is_beside=is_beside)

    def _is_beside(self, want: Want) -> bool:
        """Whether a region is to be the processor's memory although the device is a GPU."""
        return self.is_gpu and not want.on_gpu

    def _key(self, want: Want) -> tuple[Any, ...] | None:
        """Return what a region is found by; None if it is not to be found."""
        if not want.digest:
            return None
        key = (want.size_bytes, want.digest)
        return ("beside", *key) if self._is_beside(want) else key

    def _delay(self, filler: FillerKey, want: Want) -> bool:
        """Let a filler wait for what another is filling; false if it need not, or has something to fill itself."""
        key = self._key(want)
        record = self._by_key.get(key) if key else None
        if record is None or record.life.state != "filling" or record.filler == filler:
            return False
        if any(held.filler == filler for held in self._held.get(filler, {}).values()):
            return False
        self._waiting.setdefault(record.number, []).append((filler, want))
        return True

    def new_number(self) -> int:
        """Return a number that no region has had."""
        return self._numbers.new()

    def _make(
        self, filler: FillerKey, size_bytes: int, key: tuple[Any, ...] | None, *, is_beside: bool
    ) -> RegionRecord:
        number = self.new_number()
        record = self._by_number[number] = RegionRecord(number, size_bytes, key, filler, is_beside=is_beside)
        if key is not None:
            self._by_key[key] = record
        if not record.is_elsewhere:
            self.filling_bytes += size_bytes
        self._hold(filler, record)
        return record

    def _hold(self, filler: FillerKey, record: RegionRecord) -> None:
        record.holders.add(filler)
        self._held.setdefault(filler, {})[record.number] = record

    def _fill(self, record: RegionRecord) -> None:
        record.life.become("sealed")
        record.filler = None
        if not record.is_elsewhere:
            self.filling_bytes -= record.size_bytes
            self.resident_bytes += record.size_bytes

    def _find_no_more(self, record: RegionRecord) -> None:
        if record.key is not None and self._by_key.get(record.key) is record:
            del self._by_key[record.key]
        self._settle_waiting(record)

    def _settle_waiting(self, record: RegionRecord) -> None:
        """Answer those who waited for a region: the first may have to fill another, and the rest wait for that."""
        for filler, want in self._waiting.pop(record.number, []):
            if not self._delay(filler, want):
                self.answers.append((filler, [self._grant(filler, want, may_wait=False)]))

    def _drop(self, record: RegionRecord, holder: Any) -> None:
        record.holders.discard(holder)
        if not record.holders:
            self._find_no_more(record)
            self._uncount(record)
            record.life.become("freed")
            del self._by_number[record.number]
            self.freed.append(record.number)

    def _count(self, record: RegionRecord) -> None:
        """Count what comes back: what was written out is mapped from there, unless it goes to a GPU."""
        record.is_cached = not self.is_gpu
        self.resident_bytes += record.size_bytes
        self.cached_bytes += record.size_bytes * record.is_cached

    def _uncount(self, record: RegionRecord) -> None:
        if record.is_elsewhere or record.life.state == "away":
            return
        if record.life.state == "filling":
            self.filling_bytes -= record.size_bytes
            return
        self.resident_bytes -= record.size_bytes
        if record.is_cached:
            record.is_cached = False
            self.cached_bytes -= record.size_bytes
