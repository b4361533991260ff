"""Which regions there are, what is in them, and who holds them.

A region is held by whoever fills it and by the weight sets that lie in it, and freed with its last holder. What
is filled is found by its size and digest, so that a content which is there already is not stored again, whichever
model it comes from; that they are equal is for the filler to find out. A loader that wants what another is filling
waits for it, but only as long as it has nothing to fill itself: so no two wait for each other.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

from ...protocol.errors import InvalidRequest
from ...protocol.limits import MAX_FDS_AHEAD
from ...protocol.states import Lifecycle

#: Whoever fills regions: a loader by its number, or somebody at the unix socket.
FillerKey: TypeAlias = Any
#: What tells a file in one state from any other.
FileIdentity: TypeAlias = tuple[Any, ...]

GrantState = Literal["fill", "compare", "wait", "file"]


class RegionGrant(NamedTuple):
    """The answer to one that was wanted; with ``fill`` and ``file`` the number is new where ``is_new``."""

    number: int
    size_bytes: int
    state: GrantState
    is_new: bool


class RegionRecord:
    """One region.

    Attributes:
        number: never used twice.
        key: what it is found by; None if it is not to be found.
        filler: who fills it; None once that is done.
        holders: fillers, and weight sets as ``("set", number)``.
    """

    __slots__ = ("filler", "holders", "key", "life", "number", "size_bytes")

    def __init__(self, number: int, size_bytes: int, key: tuple[Any, ...] | None, filler: FillerKey) -> None:
        self.number = number
        self.size_bytes = size_bytes
        self.key = key
        self.filler: FillerKey | None = filler
        self.holders: set[Any] = {filler}
        self.life = Lifecycle("region", number, "filling")

    def __repr__(self) -> str:
        return f"<RegionRecord {self.number}: {self.life.state}, {self.size_bytes:,} bytes>"

    @property
    def weight_sets(self) -> list[int]:
        """The weight sets that lie in it."""
        return [holder[1] for holder in self.holders if type(holder) is tuple and holder[0] == "set"]


class Regions:
    """All regions of a pool.

    What is to be freed collects in `freed` until somebody takes it from there; so do, in `answers`, grants for
    those who waited.
    """

    def __init__(self) -> None:
        self.freed: list[int] = []
        self.answers: list[tuple[FillerKey, list[RegionGrant]]] = []
        self._numbers = 0
        self._by_number: dict[int, RegionRecord] = {}
        self._by_key: dict[tuple[Any, ...], RegionRecord] = {}
        self._held: dict[FillerKey, dict[int, RegionRecord]] = {}
        self._waiting: dict[int, list[tuple[FillerKey, int, bytes]]] = {}

    def __len__(self) -> int:
        return len(self._by_number)

    def __getitem__(self, number: int) -> RegionRecord:
        return self._by_number[number]

    # --- filling --------------------------------------------------------------------------------------------

    def want(self, filler: FillerKey, wants: list[tuple[int, bytes]], *, may_wait: bool) -> list[RegionGrant]:
        """Make or find regions; empty if the answer comes later.

        Args:
            filler: who asks.
            wants: size in bytes and digest of each.
            may_wait: whether it may be told to wait for what another is filling.

        Raises:
            InvalidRequest: a size or digest cannot be, or the filler holds more than anyone needs.
        """
        if len(self._held.get(filler, {})) + len(wants) > MAX_FDS_AHEAD:
            raise InvalidRequest(f"more than {MAX_FDS_AHEAD:,} regions for one model")
        for size_bytes, digest in wants:
            if size_bytes <= 0 or len(digest) not in (0, 16):
                raise InvalidRequest(f"a region of {size_bytes} bytes with a digest of {len(digest)} bytes")
        if may_wait and len(wants) == 1 and self._delay(filler, *wants[0]):
            return []
        several = len(wants) > 1  # who asks for one alone gets it
        return [
            self._grant(filler, *want, may_wait=may_wait and several, is_one_of_several=several) for want in wants
        ]

    def offer(self, filler: FillerKey, identity: FileIdentity, size_bytes: int) -> RegionGrant:
        """Make a file a region, or find the one that it is."""
        key = ("file", *identity)
        record = self._by_key.get(key)
        is_new = record is None
        if record is None:
            record = self._make(filler, size_bytes, key)
            self._fill(record)
        self._hold(filler, record)
        return RegionGrant(record.number, size_bytes, "file", is_new)

    def filled(self, filler: FillerKey, numbers: list[int]) -> None:
        """Note that regions are complete and sealed; those who waited for one may compare."""
        for number in numbers:
            record = self._held.get(filler, {}).get(number)
            if record is not None and record.filler is filler:
                self._fill(record)
                self._settle_waiting(record)

    def let_go(self, filler: FillerKey) -> None:
        """Forget a filler: what it has not filled is given up, what it holds it holds no more."""
        for waiting in self._waiting.values():
            waiting[:] = [one for one in waiting if one[0] != filler]
        for record in list(self._held.pop(filler, {}).values()):
            if record.filler is filler:
                self._find_no_more(record)
            self._drop(record, filler)

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

    def unuse(self, weight_set: int, numbers: tuple[int, ...]) -> None:
        """Let a weight set hold its regions no more."""
        for number in dict.fromkeys(numbers):
            self._drop(self._by_number[number], ("set", weight_set))

    # --- inside ---------------------------------------------------------------------------------------------

    def _grant(
        self, filler: FillerKey, size_bytes: int, digest: bytes, *, may_wait: bool, is_one_of_several: bool = False
    ) -> RegionGrant:
        key = (size_bytes, digest) if digest else None
        record = self._by_key.get(key) if key else None
        if record is not None and record.life.state == "sealed":
            self._hold(filler, record)
            return RegionGrant(record.number, size_bytes, "compare", is_new=False)
        # Two equal contents of an app: it has filled the one when it asks again for the other.
        if record is not None and (may_wait or (record.filler == filler and is_one_of_several)):
            return RegionGrant(0, size_bytes, "wait", is_new=False)
        record = self._make(filler, size_bytes, key if record is None else None)
        return RegionGrant(record.number, size_bytes, "fill", is_new=True)

    def _delay(self, filler: FillerKey, size_bytes: int, digest: bytes) -> bool:
        """Let a filler wait for what another is filling; false if it need not, or has something to fill itself."""
        record = self._by_key.get((size_bytes, digest)) if digest else None
        if record is None or record.life.state != "filling" or record.filler is filler:
            return False
        if any(held.filler is filler for held in self._held.get(filler, {}).values()):
            return False
        self._waiting.setdefault(record.number, []).append((filler, size_bytes, digest))
        return True

    def new_number(self) -> int:
        """Return a number that no region has had."""
        self._numbers += 1
        return self._numbers

    def _make(self, filler: FillerKey, size_bytes: int, key: tuple[Any, ...] | None) -> RegionRecord:
        number = self.new_number()
        record = self._by_number[number] = RegionRecord(number, size_bytes, key, filler)
        if key is not None:
            self._by_key[key] = record
        self._hold(filler, record)
        return record

    def _hold(self, filler: FillerKey, record: RegionRecord) -> None:
        record.holders.add(filler)
        self._held.setdefault(filler, {})[record.number] = record

    def _fill(self, record: RegionRecord) -> None:
        record.life.become("sealed")
        record.filler = None

    def _find_no_more(self, record: RegionRecord) -> None:
        if record.key is not None and self._by_key.get(record.key) is record:
            del self._by_key[record.key]
        self._settle_waiting(record)

    def _settle_waiting(self, record: RegionRecord) -> None:
        """Answer those who waited for a region: the first may have to fill another, and the rest wait for that."""
        for filler, size_bytes, digest in self._waiting.pop(record.number, []):
            if not self._delay(filler, size_bytes, digest):
                self.answers.append((filler, [self._grant(filler, size_bytes, digest, may_wait=False)]))

    def _drop(self, record: RegionRecord, holder: Any) -> None:
        record.holders.discard(holder)
        if not record.holders:
            self._find_no_more(record)
            record.life.become("freed")
            del self._by_number[record.number]
            self.freed.append(record.number)
