"""What a pool tells of its memory: frozen, readable, and plain with ``to_dict``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

from .views import Status, View, size

#: Parts of a model that are named before the others are only counted.
_NAMED_PARTS: Final = 3


@dataclass(frozen=True)
class ProcessInfo(View):
    """One process: its share of memory, and what of it no other process could share.

    Its role is ``supervisor``, ``zygote``, ``worker``, ``loader``, ``metrics``, or ``carrier``, which copies what
    leaves a GPU and comes back.
    """

    pid: int
    role: str
    pss_bytes: int
    private_bytes: int
    device: str


@dataclass(frozen=True, repr=False)
class WeightsInfo(View):
    """One weight set: a version of a model, and where it lies.

    Attributes:
        device: where it is.
        tier: ``memory``; ``gpu``; ``disk``, once it was evicted; ``file``, if workers map its weights file; empty
            before it is loaded, and once it was evicted from a GPU.
        size_bytes: its one copy.
        own_bytes: what of it no other model lies in: what unloading it would free.
        shared_with: by model, the bytes that both lie in.
        private_bytes: what it took a worker besides, when it was last thawed: Python objects, vocabularies, and
            what lies outside of torch's storages.
        opaque: those parts of it, by path, and why they cannot be shared.
        workers, attached: how many workers and other processes hold it.
        is_rebuilt: whether each worker builds it anew around the one copy, because it cannot be pickled.
        is_pinned: whether it stays in memory, whatever else is needed.
        evictions, returns: how often it was moved out of memory, and back.
        return_s: how long the last return took.
    """

    model: str
    device: str
    state: str
    tier: str
    size_bytes: int
    own_bytes: int
    shared_with: dict[str, int]
    private_bytes: int
    opaque: dict[str, str]
    workers: int
    attached: int
    is_rebuilt: bool
    is_pinned: bool
    evictions: int
    returns: int
    return_s: float

    def __str__(self) -> str:
        text = f"{self.model}: {size(self.size_bytes)} in {self.workers} workers"
        if self.tier == "disk":
            text = f"{self.model}: {size(self.size_bytes)} on the disk"
        if self.attached:
            text += f" and {self.attached} attached processes"
        if self.is_pinned:
            text += ", pinned"
        if self.evictions:
            text += f", evicted {self.evictions} times"
        shared = ", ".join(f"{size(count)} with {name}" for name, count in self.shared_with.items())
        if shared:
            text += f"; {size(self.own_bytes)} its own, {shared}"
        return f"{text}; {self.opaque_parts}" if self.opaque else text

    @property
    def opaque_parts(self) -> str:
        """What is private to each worker, in a sentence that names the first few; empty if nothing is."""
        if not self.opaque:
            return ""
        named = ", ".join(list(self.opaque)[:_NAMED_PARTS])
        more = len(self.opaque) - _NAMED_PARTS
        reasons = "; ".join(dict.fromkeys(self.opaque.values()))
        return f"private to each worker: {named}{f' and {more} more' if more > 0 else ''} ({reasons})"


@dataclass(frozen=True, repr=False)
class DeviceInfo(View):
    """The memory of one device, in bytes, and what the pool takes of it.

    Attributes:
        total_bytes: what the machine has, or the container may take.
        available_bytes: what the system could give without swapping or killing, for anybody.
        budget_bytes: the most that the pool may take; 0: all but the reserve.
        reserve_bytes: what it leaves free.
        limit_bytes: the most that it may take, by both.
        used_bytes: what it takes, or has promised to what is being loaded.
        free_bytes: how much more it may take now, as far as the system has it.
        accounts: what is taken for what: ``weights``, ``loading`` (what is being filled, and what those take who
            fill it), ``slots``, ``mailboxes``, private memory of ``workers`` and of ``others``.
        evicted_bytes: weights that are on the disk alone.
        disk_bytes: what the pool takes on the disk: those, and what was read back and would leave at no cost.
    """

    name: str
    total_bytes: int
    available_bytes: int
    budget_bytes: int
    reserve_bytes: int
    limit_bytes: int
    used_bytes: int
    free_bytes: int
    accounts: dict[str, int]
    evicted_bytes: int
    disk_bytes: int

    def __str__(self) -> str:
        accounts = ", ".join(f"{name} {size(taken)}" for name, taken in self.accounts.items() if taken)
        text = f"{self.name}: {size(self.used_bytes)} of {size(self.limit_bytes)} ({accounts or 'nothing'})"
        text += f", {size(self.free_bytes)} free"
        return f"{text}; {size(self.evicted_bytes)} evicted to the disk" if self.evicted_bytes else text


@dataclass(frozen=True, repr=False)
class Memory(View):
    """What the pool takes, in bytes.

    Attributes:
        total_bytes: the processes' proportional share of anonymous and file pages, and all regions once. Weights
            that came back from the disk are file pages, and count as far as a process has touched them: the system
            can take the rest at any time.
        weights_bytes: the one copy of all weights that are in memory.
        weights_bytes_unshared: what private copies in the workers that hold them would take.
        slots_bytes: the slots that runs take their memory from, as far as it was ever used.
        mailboxes_bytes: the memory in which large arrays of local clients travel, as far as it was ever used.
        spilled_bytes: the most that a run took outside of its slot since that has its present size, for each ring.
        app_held_bytes: what this app still holds of objects that it passed in, besides the one copy.
        weights: each weight set.
        processes: each process of the pool; the app itself is not one.
        devices: each device, and how much the pool may take of it.
    """

    total_bytes: int
    weights_bytes: int
    weights_bytes_unshared: int
    slots_bytes: int
    mailboxes_bytes: int
    spilled_bytes: int
    weights: tuple[WeightsInfo, ...]
    processes: tuple[ProcessInfo, ...]
    devices: tuple[DeviceInfo, ...]
    app_held_bytes: int = 0

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> Self:
        """Return the view of what a supervisor told."""
        processes = tuple(ProcessInfo.from_wire(one) for one in values["processes"])
        weights = tuple(WeightsInfo.from_wire(one) for one in values["weights"])
        devices = tuple(DeviceInfo.from_wire(one) for one in values["devices"])
        return super().from_wire({**values, "processes": processes, "weights": weights, "devices": devices})

    def __str__(self) -> str:
        unshared = size(self.weights_bytes_unshared)
        weights = f"weights {size(self.weights_bytes)}, unshared {unshared}"
        used = f"slots {size(self.slots_bytes)}, mailboxes {size(self.mailboxes_bytes)}"
        lines = [f"{size(self.total_bytes)} in all; {weights}; {used}"]
        lines += [f"  {one}" for one in self.devices]
        lines += [f"  {one}" for one in self.weights]
        lines += [
            f"  {one.role:<10} {one.pid:>7}  {size(one.pss_bytes):>10}  private {size(one.private_bytes):>10}"
            for one in self.processes
        ]
        return "\n".join(lines)


class Told(NamedTuple):
    """What a pool told at one moment.

    Attributes:
        at_s: when, on any monotonic clock.
        memory: what it takes; it may be a little older.
    """

    at_s: float
    status: Status
    memory: Memory
