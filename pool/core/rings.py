"""The slots that some models share, and how large each has to be.

Where a slot can grow, only those of its pages that are used are memory: it may be larger than it need be. On a GPU
a slot keeps the size that it was made with, and all of that is taken: it is replaced by one of another size. So
sizes there go in steps, or a need that grows little by little would replace slots again and again.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ...protocol.states import Lifecycle

#: What a slot may take of which nobody knows yet what it needs.
FIRST_BYTES: Final = 64 << 20
#: A slot that keeps its size is replaced once one so many times smaller would do: never between two steps only.
_TOO_LARGE: Final = 2

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
        is_kept: whether a worker keeps it because something lives there; nobody is to use it any more.
    """

    def __init__(self, region: int, asked_bytes: int) -> None:
        self.region = region
        self.size_bytes = 0
        self.asked_bytes = asked_bytes
        self.used_bytes = 0
        self.mapped_by: set[int] = set()
        self.is_kept = False
        self.life = Lifecycle("slot", region, "free")

    def __repr__(self) -> str:
        return f"<Slot {self.region}: {self.life.state}, {self.size_bytes:,} bytes>"


class Ring:
    """The slots that some models share.

    Args:
        fixed_bytes: how large they are; 0: as large as need be.
        keeps_size: whether they keep the size that they are made with.

    Attributes:
        needs_bytes: what each weight set has been seen to need, by number; see `note_need`.
        need_bytes: what the largest of its models needs, as far as that is known.
        size_bytes: how large each slot shall be.
        slots: by seat.
        spilled_bytes: the most that a run took outside of its slot since the slots have their present size.
        spills: how many runs did.
        refusal: why some slot could not be made, or not be made larger; empty once all are as they shall be.
    """

    def __init__(self, name: str, fixed_bytes: int, *, keeps_size: bool = False) -> None:
        self.name = name
        self._fixed_bytes = fixed_bytes
        self._keeps_size = keeps_size
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
        self.size_bytes = slot_bytes(self.need_bytes, self._fixed_bytes, keeps_size=self._keeps_size)

    def limit_bytes(self, slot: Slot) -> int:
        """Return how much of a slot a run may use: no more than shall be memory."""
        return slot.size_bytes if self._keeps_size else min(slot.size_bytes, self.size_bytes)

    def is_unfit(self, slot: Slot) -> bool:
        """Whether another has to be made in the place of one that keeps its size."""
        too_large_bytes = _TOO_LARGE * self.size_bytes
        return slot.is_kept or not self.size_bytes <= slot.asked_bytes < too_large_bytes

    def lacks_memory(self, seats: int) -> bool:
        """Whether some seat has no slot yet, or one that is too small."""
        slots = self.slots.values()
        return len(slots) < seats or any(slot.size_bytes < self.size_bytes for slot in slots)

    def taken_bytes(self, seats: int) -> int:
        """Return what the slots of all seats take, or will as soon as what is known to be needed is used."""
        if self._keeps_size:
            return sum(max(slot.asked_bytes, self.size_bytes) for slot in self.slots.values())
        return seats * min(self.need_bytes, self.size_bytes)


def slot_bytes(need_bytes: int, fixed_bytes: int, *, keeps_size: bool) -> int:
    """Return how large each slot of a ring shall be.

    Args:
        need_bytes: what the largest of its models needs, as far as that is known.
        fixed_bytes: how large they are; 0: as large as need be.
        keeps_size: whether they keep the size that they are made with.
    """
    size_bytes = max(FIRST_BYTES, need_bytes)
    return fixed_bytes or (_stepped(size_bytes) if keeps_size else size_bytes)


def _stepped(size_bytes: int) -> int:
    """Round up to the next of the four steps that there are from each power of two to the next."""
    step_bytes = 1 << (size_bytes.bit_length() - 3)
    return -(-size_bytes // step_bytes) * step_bytes
