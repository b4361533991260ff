"""The workspace: memory for what runs compute with, in slots that workers use one after the other.

::

    seats            0        1      …    K-1        a worker that has work sits on one
    ring "device"  slot     slot          slot       each slot as large as the largest need of the ring's models
    ring "speech"  slot     slot          slot       models with a workspace of their own

At most K workers have work at once, so K seats suffice, and in each ring a seat has one slot. To sit on a seat is
to lease its slots: the lease ends when the worker has answered all it was handed, or dies. What a dead worker had
leased is never used again, because its last write might come late: the next one there gets new memory.

How much a model needs is learned from its runs, remembered across pools, and found out ahead with an example.
Slots grow between two runs, in place; what does not fit meanwhile is in the worker's private memory, and counted.
A model that keeps tensors after its runs, twice in one worker, runs outside of slots from then on.

A slot in the memory of a GPU cannot grow: it is replaced when whoever sits there rises, or is handed more. The new
one is made after every worker was told to let go of the old one, whose memory comes back when all of them have.
What a model keeps there cannot be moved out: its worker keeps the slot, and the seat gets another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ...protocol.messages import MapSlot, UnmapSlot, Used
from .identity import identity_of
from .instructions import EmptyRegion, FreeRegions, GrowRegion, Instruction, MakeRegion, Remember, Report, ToChild
from .regions import Regions
from .rings import PRIVATE, Lease, Ring, Slot
from .weights import WeightSet

#: How much more room is made than what did not fit takes, because of gaps between blocks.
_GAPS: Final = 1.25
#: What runs are remembered to need is rounded up to this.
GRAIN_BYTES: Final = 1 << 20
#: So often may a model keep tensors in one worker: the first time, it may have built something for good.
_MAX_ESCAPES: Final = 2


class Workspace:
    """All rings of one device.

    Args:
        seats: how many workers may have work at once.
        slot_bytes: how large each slot is; 0: as large as need be.
        regions: who numbers regions.
        history: needs that earlier pools have seen, in bytes, by identity of the weight set and signature.
        out: where instructions go.
        keeps_size: whether a slot keeps the size that it is made with, all of which is taken then.

    Attributes:
        without: why there are no slots, as the zygote told; empty if there are.
        stateful: weight sets that keep tensors between runs, and so run outside.
    """

    def __init__(
        self,
        seats: int,
        slot_bytes: int,
        regions: Regions,
        history: Mapping[str, Mapping[str, int]],
        out: list[Instruction],
        keeps_size: bool = False,
    ) -> None:
        self.seats = seats
        self._slot_bytes = slot_bytes
        self._keeps_size = keeps_size
        self.rings: dict[str, Ring] = {}
        self.stateful: set[int] = set()
        self.without = "the zygote is not up yet"
        self._regions = regions
        self._history = history
        self._out = out
        self._free_seats = list(range(seats - 1, -1, -1))  # the last was used most recently: its pages are there
        self._seats: dict[int, int] = {}
        self._leases: dict[int, dict[str, Lease]] = {}  # by worker and ring; those that would be the same again
        self._by_region: dict[int, tuple[Ring, int]] = {}
        self._escapes: dict[tuple[int, int], int] = {}
        self._identities: dict[int, str] = {}
        self._making: set[int] = set()
        self._kept_bytes: dict[
            tuple[int, int], int
        ] = {}  # slots that workers keep, for what weight sets keep there
        self._letting_go: set[int] = set()  # workers that were told to unmap a slot, and have not answered since

    @property
    def is_making(self) -> bool:
        """Whether slots were ordered of which nothing is known yet."""
        return bool(self._making)

    @property
    def needed_bytes(self) -> int:
        """What all slots together will take, as far as it is known what their models need."""
        in_rings_bytes = sum(ring.taken_bytes(self.seats) for ring in self.rings.values())
        return in_rings_bytes + sum(self._kept_bytes.values())

    # --- weight sets ----------------------------------------------------------------------------------------

    def join(self, version: WeightSet) -> None:
        """A weight set is going to run: make slots for it, as large as it is known to need."""
        name = version.workspace
        if name == PRIVATE or self.without:
            return
        ring = self.rings.setdefault(name, Ring(name, self._slot_bytes, keeps_size=self._keeps_size))
        identity = self._identities[version.number] = identity_of(
            version.load.name, version.manifest, [self._regions[number].key for number in version.regions]
        )
        known = self._history.get(identity, {})
        before_bytes = ring.needs_bytes.get(version.number, 0)  # of one that was evicted
        ring.note_need(version.number, max(before_bytes, *known.values(), 0))
        self._resize(ring)

    def leave(self, version: WeightSet) -> None:
        """A weight set is gone: what only it needed goes back, and what it took may be enough for a slot."""
        self.stateful.discard(version.number)
        self._identities.pop(version.number, None)
        for key in [key for key in self._escapes if key[1] == version.number]:
            del self._escapes[key]
            self._kept_bytes.pop(key, None)
        ring = self.rings.get(version.workspace)
        if ring is not None and version.number in ring.needs_bytes:
            ring.note_need(version.number, None)
            self._leases.clear()
            for seat in list(ring.slots):
                self._tidy(ring, seat)
            if not ring.slots and not ring.needs_bytes:
                self._dissolve(ring)
        self._try_again()

    # --- leases ---------------------------------------------------------------------------------------------

    def lease(self, child: int, version: WeightSet) -> Lease:
        """Return where a worker runs a weight set; it sits down if it does not sit yet."""
        leases = self._leases.get(child)
        if leases is not None and version.workspace in leases and version.number not in self.stateful:
            return leases[version.workspace]
        seat = self._seats.get(child)
        if seat is None:
            seat = self._seats[child] = self._free_seats.pop()
        ring = self.rings.get(version.workspace)
        slot = ring.slots.get(seat) if ring is not None else None
        if ring is None or slot is None or not slot.size_bytes or version.number in self.stateful:
            return Lease(seat, 0, 0)
        if self._keeps_size and ring.is_unfit(slot):  # one that is always handed more would never rise
            self._replace(ring, seat)
            return Lease(seat, 0, 0)
        if slot.life.state == "free":
            slot.life.become("leased")
        if child not in slot.mapped_by:
            slot.mapped_by.add(child)
            self._out.append(ToChild(child, MapSlot(slot.region, slot.size_bytes), [], (slot.region,)))
        limit_bytes = ring.limit_bytes(slot)
        slot.used_bytes = max(slot.used_bytes, limit_bytes)
        lease = Lease(seat, slot.region, limit_bytes)
        self._leases.setdefault(child, {})[ring.name] = lease
        return lease

    def rise(self, child: int) -> None:
        """A worker has answered all it was handed, and left its slots as it found them."""
        has_let_go = child in self._letting_go
        self._letting_go.discard(child)
        for ring, seat in self._leased(child):
            ring.slots[seat].life.become("free")
            self._tidy(ring, seat)
        if has_let_go:
            self._try_again()

    def died(self, child: int) -> None:
        """A worker is gone; the slots that it had leased are replaced."""
        for key in [key for key in self._escapes if key[0] == child]:
            del self._escapes[key]
            self._kept_bytes.pop(key, None)
        self._letting_go.discard(child)
        for ring in self.rings.values():
            for slot in ring.slots.values():
                slot.mapped_by.discard(child)
        for ring, seat in self._leased(child):
            ring.slots[seat].life.become("lost")
            self._free(ring, seat)
            if ring.needs_bytes:
                self._make(ring, seat)
            elif not ring.slots:
                self._dissolve(ring)
        self._try_again()

    def _leased(self, child: int) -> list[tuple[Ring, int]]:
        """Take a worker's seat away; return where it had leased a slot."""
        seat = self._seats.pop(child, None)
        if seat is None:
            return []
        self._free_seats.append(seat)
        self._leases.pop(child, None)
        rings = self.rings.values()
        return [(one, seat) for one in rings if seat in one.slots and one.slots[seat].life.state == "leased"]

    # --- what runs take -------------------------------------------------------------------------------------

    def used(self, child: int, version: WeightSet, used: Used) -> int:
        """A worker tells what a run took; return what it needs, 0 if there is no slot for it."""
        ring = self.rings.get(version.workspace)
        if ring is None or version.number not in ring.needs_bytes:
            return 0
        slot = ring.slots.get(self._seats.get(child, -1))
        if used.escaped_bytes:
            self._escaped(child, version, slot)
        least_bytes = float(used.footprint_bytes)
        if used.spilled_bytes and slot is not None:
            ring.spills += 1
            ring.spilled_bytes = max(ring.spilled_bytes, used.spilled_bytes)
            had_bytes = ring.limit_bytes(slot)
            # Memory of a model that forks is private without any lack of room: it must not grow run after run.
            most_bytes = 2 * (used.footprint_bytes + used.spilled_bytes)
            least_bytes = min(had_bytes + used.spilled_bytes * _GAPS, most_bytes)
        need_bytes = -(-int(least_bytes) // GRAIN_BYTES) * GRAIN_BYTES
        self._out.append(Remember(self._identities[version.number], used.signature, need_bytes))
        if need_bytes > ring.needs_bytes[version.number]:
            ring.note_need(version.number, need_bytes)
            self._resize(ring)
        return need_bytes

    def _escaped(self, child: int, version: WeightSet, slot: Slot | None) -> None:
        key = (child, version.number)
        if self._keeps_size and slot is not None and not slot.is_kept:
            slot.is_kept = True
            self._kept_bytes[key] = self._kept_bytes.get(key, 0) + slot.size_bytes
            self._leases.pop(child, None)
        self._escapes[key] = self._escapes.get(key, 0) + 1
        if self._escapes[key] == _MAX_ESCAPES and version.number not in self.stateful:
            self.stateful.add(version.number)
            text = "keeps tensors between its runs; it runs outside of the workspace from now on"
            self._out.append(Report(f"{version.load.name} {text}"))

    # --- memory ---------------------------------------------------------------------------------------------

    def region_made(self, region: int, size_bytes: int) -> None:
        """A slot has this size now."""
        self._making.discard(region)
        if region in self._by_region:
            ring, seat = self._by_region[region]
            ring.slots[seat].size_bytes = size_bytes
            self._leases.clear()
            ring.spilled_bytes = 0
            if not ring.lacks_memory(self.seats):
                ring.refusal = ""
            self._tidy(ring, seat)  # what is needed may have changed meanwhile

    def region_failed(self, region: int, reason: str) -> None:
        """A slot could not be made, or not be made larger: it is as it was, until something else is freed."""
        self._making.discard(region)
        if region in self._by_region:
            ring, seat = self._by_region[region]
            if not ring.refusal:
                self._out.append(Report(f"workspace {ring.name!r}: runs take private memory instead: {reason}"))
            ring.refusal = reason
            slot = ring.slots[seat]
            slot.asked_bytes = slot.size_bytes
            if not slot.size_bytes:
                self._by_region.pop(region)
                ring.slots.pop(seat).life.become("freed")

    def _try_again(self) -> None:
        """Something was freed: ask again for what was refused."""
        for ring in self.rings.values():
            if ring.refusal and ring.needs_bytes:
                self._resize(ring)

    def _resize(self, ring: Ring) -> None:
        """See to it that each seat has a slot that is large enough."""
        if self._keeps_size:
            self._leases.clear()
            for seat in [seat for seat, slot in ring.slots.items() if self._is_replaceable(ring, slot)]:
                self._free(ring, seat)  # all of them first: the new ones may need their memory
        for seat in range(self.seats):
            slot = ring.slots.get(seat)
            if slot is None:
                self._make(ring, seat)
            elif slot.asked_bytes < ring.size_bytes and not self._keeps_size:
                slot.asked_bytes = ring.size_bytes
                self._out.append(GrowRegion(slot.region, ring.size_bytes))

    def _is_replaceable(self, ring: Ring, slot: Slot) -> bool:
        """Whether one that keeps its size is to be replaced, and can be now."""
        return ring.is_unfit(slot) and slot.life.state == "free" and bool(slot.size_bytes)

    def _replace(self, ring: Ring, seat: int) -> None:
        """Give a seat another slot; who runs in the old one does so to the end, and unmaps it then."""
        slot = ring.slots[seat]
        if slot.life.state == "leased":
            slot.life.become("lost")
        self._leases.clear()
        self._free(ring, seat)
        self._make(ring, seat)

    def _make(self, ring: Ring, seat: int) -> None:
        slot = ring.slots[seat] = Slot(self._regions.new_number(), ring.size_bytes)
        self._by_region[slot.region] = (ring, seat)
        self._making.add(slot.region)
        self._out.append(MakeRegion(slot.region, ring.size_bytes, "slot"))

    def _tidy(self, ring: Ring, seat: int) -> None:
        """Give back what no model needs any more of a slot, or replace it, if nobody sits there."""
        slot = ring.slots[seat]
        if slot.life.state != "free":
            return
        if not ring.needs_bytes:
            self._free(ring, seat)
            if not ring.slots:
                self._dissolve(ring)
        elif self._keeps_size:
            if self._is_replaceable(ring, slot):
                self._replace(ring, seat)
        elif slot.used_bytes > ring.size_bytes:
            slot.used_bytes = ring.need_bytes
            self._out.append(EmptyRegion(slot.region, ring.need_bytes))

    def _free(self, ring: Ring, seat: int) -> None:
        slot = ring.slots.pop(seat)
        del self._by_region[slot.region]
        for child in sorted(slot.mapped_by):
            self._out.append(ToChild(child, UnmapSlot(slot.region), [], ()))
        self._letting_go |= slot.mapped_by
        slot.life.become("freed")
        self._making.discard(slot.region)
        self._out.append(FreeRegions((slot.region,)))

    def _dissolve(self, ring: Ring) -> None:
        self.rings.pop(ring.name, None)
