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
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from ...protocol.messages import MapSlot, UnmapSlot, Used
from ...protocol.states import Lifecycle
from .identity import identity_of
from .instructions import EmptyRegion, FreeRegions, GrowRegion, Instruction, MakeRegion, Remember, Report, ToChild
from .regions import Regions
from .weights import WeightSet

#: What a slot may take of which nobody knows yet what it needs. Only pages that are used are memory.
FIRST_BYTES: Final = 64 << 20
#: How much more room is made than what did not fit takes, because of gaps between blocks.
_GAPS: Final = 1.25
#: What runs are remembered to need is rounded up to this.
GRAIN_BYTES: Final = 1 << 20
#: So often may a model keep tensors in one worker: the first time, it may have built something for good.
_MAX_ESCAPES: Final = 2

#: The ring of all models that name none.
DEVICE: Final = "device"
#: What a model says that shall use no slots.
PRIVATE: Final = "private"


class Lease(NamedTuple):
    """Where a run runs: its seat, and its slot there, of which it may use so much; slot 0 is none."""

    seat: int
    slot: int
    limit_bytes: int


class Slot:
    """The memory of one seat in one ring.

    Attributes:
        region: its number.
        size_bytes: its size, as far as it was made so already.
        asked_bytes: the size that was asked for.
        used_bytes: what somebody may have touched of it since it was emptied.
        mapped_by: the workers that have it mapped.
    """

    def __init__(self, region: int, asked_bytes: int) -> None:
        self.region = region
        self.size_bytes = 0
        self.asked_bytes = asked_bytes
        self.used_bytes = 0
        self.mapped_by: set[int] = set()
        self.life = Lifecycle("slot", region, "free")

    def __repr__(self) -> str:
        return f"<Slot {self.region}: {self.life.state}, {self.size_bytes:,} bytes>"


class Ring:
    """The slots that some models share.

    Args:
        fixed_bytes: how large they are; 0: as large as need be.

    Attributes:
        needs_bytes: what each weight set has been seen to need, by number; see `note_need`.
        need_bytes: what the largest of its models needs, as far as that is known.
        size_bytes: how large each slot shall be.
        slots: by seat.
        spilled_bytes: the most that a run took outside of its slot since the slots have their present size.
        spills: how many runs did.
        refusal: why a slot could not be made, or not be made larger, the last time; empty if it could.
    """

    def __init__(self, name: str, fixed_bytes: int) -> None:
        self.name = name
        self._fixed_bytes = fixed_bytes
        self.needs_bytes: dict[int, int] = {}
        self.need_bytes = 0
        self.size_bytes = fixed_bytes or FIRST_BYTES
        self.slots: dict[int, Slot] = {}
        self.spilled_bytes = 0
        self.spills = 0
        self.refusal = ""

    def note_need(self, weight_set: int, need_bytes: int | None) -> None:
        """Note what a weight set needs; None: it is gone."""
        if need_bytes is None:
            self.needs_bytes.pop(weight_set, None)
        else:
            self.needs_bytes[weight_set] = need_bytes
        self.need_bytes = max(self.needs_bytes.values(), default=0)
        self.size_bytes = self._fixed_bytes or max(FIRST_BYTES, self.need_bytes)


class Workspace:
    """All rings of one device.

    Args:
        seats: how many workers may have work at once.
        slot_bytes: how large each slot is; 0: as large as need be.
        regions: who numbers regions.
        history: needs that earlier pools have seen, in bytes, by identity of the weight set and signature.
        out: where instructions go.

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
    ) -> None:
        self.seats = seats
        self._slot_bytes = slot_bytes
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

    @property
    def is_making(self) -> bool:
        """Whether slots were ordered of which nothing is known yet."""
        return bool(self._making)

    @property
    def needed_bytes(self) -> int:
        """What all slots together will take, as far as it is known what their models need."""
        return self.seats * sum(min(ring.need_bytes, ring.size_bytes) for ring in self.rings.values())

    # --- weight sets ----------------------------------------------------------------------------------------

    def join(self, version: WeightSet) -> None:
        """A weight set is going to run: make slots for it, as large as it is known to need."""
        name = version.workspace
        if name == PRIVATE or self.without:
            return
        ring = self.rings.setdefault(name, Ring(name, self._slot_bytes))
        identity = self._identities[version.number] = identity_of(
            version.load.name, version.manifest, [self._regions[number].key for number in version.regions]
        )
        known = self._history.get(identity, {})
        ring.note_need(version.number, max(known.values(), default=0))
        self._resize(ring)

    def leave(self, version: WeightSet) -> None:
        """A weight set is gone: what only it needed goes back."""
        self.stateful.discard(version.number)
        self._identities.pop(version.number, None)
        for key in [key for key in self._escapes if key[1] == version.number]:
            del self._escapes[key]
        ring = self.rings.get(version.workspace)
        if ring is None or version.number not in ring.needs_bytes:
            return
        ring.note_need(version.number, None)
        self._leases.clear()
        for seat in list(ring.slots):
            self._tidy(ring, seat)
        if not ring.slots:
            self._dissolve(ring)

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
        if slot.life.state == "free":
            slot.life.become("leased")
        if child not in slot.mapped_by:
            slot.mapped_by.add(child)
            self._out.append(ToChild(child, MapSlot(slot.region), [], (slot.region,)))
        limit_bytes = min(slot.size_bytes, ring.size_bytes)
        slot.used_bytes = max(slot.used_bytes, limit_bytes)
        lease = Lease(seat, slot.region, limit_bytes)
        self._leases.setdefault(child, {})[ring.name] = lease
        return lease

    def rise(self, child: int) -> None:
        """A worker has answered all it was handed, and left its slots as it found them."""
        for ring, seat in self._leased(child):
            ring.slots[seat].life.become("free")
            self._tidy(ring, seat)

    def died(self, child: int) -> None:
        """A worker is gone; the slots that it had leased are replaced."""
        for key in [key for key in self._escapes if key[0] == child]:
            del self._escapes[key]
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
        if used.escaped_bytes:
            self._escaped(child, version)
        need_bytes = float(used.footprint_bytes)
        seat = self._seats.get(child)
        if used.spilled_bytes and seat in ring.slots:
            ring.spills += 1
            ring.spilled_bytes = max(ring.spilled_bytes, used.spilled_bytes)
            had_bytes = min(ring.slots[seat].size_bytes, ring.size_bytes)
            # Memory of a model that forks is private without any lack of room: it must not grow run after run.
            most_bytes = 2 * (used.footprint_bytes + used.spilled_bytes)
            need_bytes = min(had_bytes + used.spilled_bytes * _GAPS, most_bytes)
        need_bytes = -(-int(need_bytes) // GRAIN_BYTES) * GRAIN_BYTES
        self._out.append(Remember(self._identities[version.number], used.signature, need_bytes))
        if need_bytes > ring.needs_bytes[version.number]:
            ring.note_need(version.number, need_bytes)
            self._resize(ring)
        return need_bytes

    def _escaped(self, child: int, version: WeightSet) -> None:
        key = (child, version.number)
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
            ring.refusal = ""

    def region_failed(self, region: int, reason: str) -> None:
        """A slot could not be made, or not be made larger: it is as it was."""
        self._making.discard(region)
        if region in self._by_region:
            ring, seat = self._by_region[region]
            ring.refusal = reason
            self._out.append(Report(f"workspace {ring.name!r}: runs take private memory instead: {reason}"))
            if not ring.slots[seat].size_bytes:
                self._by_region.pop(region)
                ring.slots.pop(seat).life.become("freed")

    def _resize(self, ring: Ring) -> None:
        """See to it that each seat has a slot that is large enough."""
        for seat in range(self.seats):
            slot = ring.slots.get(seat)
            if slot is None:
                self._make(ring, seat)
            elif slot.asked_bytes < ring.size_bytes:
                slot.asked_bytes = ring.size_bytes
                self._out.append(GrowRegion(slot.region, ring.size_bytes))

    def _make(self, ring: Ring, seat: int) -> None:
        slot = ring.slots[seat] = Slot(self._regions.new_number(), ring.size_bytes)
        self._by_region[slot.region] = (ring, seat)
        self._making.add(slot.region)
        self._out.append(MakeRegion(slot.region, ring.size_bytes, "slot"))

    def _tidy(self, ring: Ring, seat: int) -> None:
        """Give back what no model needs any more of a slot, if nobody sits there."""
        slot = ring.slots[seat]
        if slot.life.state != "free":
            return
        if not ring.needs_bytes:
            self._free(ring, seat)
            if not ring.slots:
                self._dissolve(ring)
        elif slot.used_bytes > ring.size_bytes:
            slot.used_bytes = ring.need_bytes
            self._out.append(EmptyRegion(slot.region, ring.need_bytes))

    def _free(self, ring: Ring, seat: int) -> None:
        slot = ring.slots.pop(seat)
        del self._by_region[slot.region]
        for child in sorted(slot.mapped_by):
            self._out.append(ToChild(child, UnmapSlot(slot.region), [], ()))
        slot.life.become("freed")
        self._making.discard(slot.region)
        self._out.append(FreeRegions((slot.region,)))

    def _dissolve(self, ring: Ring) -> None:
        self.rings.pop(ring.name, None)
