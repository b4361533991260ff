"""What a pool tells of itself: frozen, readable, and plain with ``to_dict``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

#: Parts of a model that are named before the others are only counted.
_NAMED_PARTS: Final = 3


class View:
    """Base of all views."""

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> Self:
        """Return the view of what a supervisor told; keys that a newer one adds are left out."""
        names = {field.name for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
        return cls(**{key: value for key, value in values.items() if key in names})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class BatchInfo(View):
    """The batches of a model.

    Attributes:
        most: how many calls may run as one.
        limit: how many do now, at most.
        wait_s: how long a batch that is not full waits while every worker is busy.
        mean: how many calls those so far had on average; 0 before the first.
        note: why that is so.
    """

    most: int
    limit: int
    wait_s: float
    mean: float
    note: str

    def __str__(self) -> str:
        return f"batches of up to {self.limit} of {self.most}, {self.mean:.1f} on average ({self.note})"


@dataclass(frozen=True)
class ModelInfo(View):
    """One model.

    Attributes:
        state: ``declared`` (loaded when needed), ``building``, ``adopting``, ``ready``, ``failed``.
        weights_bytes: its one copy.
        workers: how many hold it.
        queued: how many calls wait for a worker.
        running: how many attempts workers have.
        answered, failed: how many calls ended, and how.
        expected_s: what a call takes, in seconds; None before the first.
        share: its part of the workers' time, relative to others'.
        worker_s: how much of the workers' time it has had.
        batch: its batches.
        error: why it could not be loaded.
    """

    name: str
    state: str
    source: str
    method: str
    weights_bytes: int
    workers: int
    queued: int
    running: int
    answered: int
    failed: int
    expected_s: float | None
    share: float
    worker_s: float
    batch: BatchInfo
    error: dict[str, Any] | None

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> Self:
        """Return the view of what a supervisor told."""
        return super().from_wire({**values, "batch": BatchInfo.from_wire(values["batch"])})

    def __str__(self) -> str:
        text = (
            f"{self.name}: {self.state}, {size(self.weights_bytes)} in {self.workers} workers, "
            f"{self.queued} queued, {self.running} running, {self.answered} answered, {self.failed} failed"
        )
        return f"{text}, {self.batch}" if self.batch.most > 1 else text


@dataclass(frozen=True)
class ProcessInfo(View):
    """One process: its share of memory, and what of it no other process could share."""

    pid: int
    role: str
    pss_bytes: int
    private_bytes: int
    device: str


@dataclass(frozen=True)
class WeightsInfo(View):
    """One weight set: a version of a model, as it lies in memory.

    Attributes:
        size_bytes: its one copy.
        own_bytes: what of it no other model lies in: what unloading it would free.
        shared_with: by model, the bytes that both lie in.
        private_bytes: what it took a worker besides, when it was last thawed: Python objects, vocabularies, and
            what lies outside of torch's storages.
        opaque: those parts of it, by path, and why they cannot be shared.
        workers, attached: how many workers and other processes hold it.
        is_rebuilt: whether each worker builds it anew around the one copy, because it cannot be pickled.
    """

    model: str
    state: str
    size_bytes: int
    own_bytes: int
    shared_with: dict[str, int]
    private_bytes: int
    opaque: dict[str, str]
    workers: int
    attached: int
    is_rebuilt: bool

    def __str__(self) -> str:
        text = f"{self.model}: {size(self.size_bytes)} in {self.workers} workers"
        if self.attached:
            text += f" and {self.attached} attached processes"
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


@dataclass(frozen=True)
class Memory(View):
    """What the pool takes, in bytes.

    Attributes:
        total_bytes: the processes' proportional share of anonymous and file pages, and all regions once.
        weights_bytes: the one copy of all weights.
        weights_bytes_unshared: what private copies in the workers that hold them would take.
        slots_bytes: the slots that runs take their memory from, as far as it was ever used.
        mailboxes_bytes: the memory in which large arrays of local clients travel, as far as it was ever used.
        spilled_bytes: the most that a run took outside of its slot since that has its present size, for each ring.
        app_held_bytes: what this app still holds of objects that it passed in, besides the one copy.
        weights: each weight set.
        processes: each process of the pool; the app itself is not one.
    """

    total_bytes: int
    weights_bytes: int
    weights_bytes_unshared: int
    slots_bytes: int
    mailboxes_bytes: int
    spilled_bytes: int
    weights: tuple[WeightsInfo, ...]
    processes: tuple[ProcessInfo, ...]
    app_held_bytes: int = 0

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> Self:
        """Return the view of what a supervisor told."""
        processes = tuple(ProcessInfo.from_wire(one) for one in values["processes"])
        weights = tuple(WeightsInfo.from_wire(one) for one in values["weights"])
        return super().from_wire({**values, "processes": processes, "weights": weights})

    def __str__(self) -> str:
        unshared = size(self.weights_bytes_unshared)
        weights = f"weights {size(self.weights_bytes)}, unshared {unshared}"
        used = f"slots {size(self.slots_bytes)}, mailboxes {size(self.mailboxes_bytes)}"
        lines = [f"{size(self.total_bytes)} in all; {weights}; {used}"]
        lines += [f"  {one}" for one in self.weights]
        lines += [
            f"  {one.role:<10} {one.pid:>7}  {size(one.pss_bytes):>10}  private {size(one.private_bytes):>10}"
            for one in self.processes
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class WorkerInfo(View):
    """One worker process.

    Attributes:
        outstanding: requests that it holds.
        is_thawed: whether it has every warm model ready that it was given.
        models: those it was given.
    """

    pid: int
    state: str
    runs: int
    outstanding: int
    is_thawed: bool
    models: list[str]


@dataclass(frozen=True)
class RingInfo(View):
    """The slots that some models share.

    Attributes:
        name: ``device``, or what the models' ``workspace`` says.
        slots: how many there are.
        size_bytes: how large each may become.
        allocated_bytes: what all of them take.
        spilled_bytes: the most that a run took outside of its slot since the slots have their present size.
        spills: how many runs did not fit.
        needs_bytes: by model, what a run of it is known to need; 0: not known yet, or below a megabyte.
        stateful: models that keep tensors between runs, and run outside of slots for that.
    """

    name: str
    slots: int
    size_bytes: int
    allocated_bytes: int
    spilled_bytes: int
    spills: int
    needs_bytes: dict[str, int]
    stateful: list[str]

    def __str__(self) -> str:
        text = f"{self.slots} slots of up to {size(self.size_bytes)} take {size(self.allocated_bytes)}"
        if self.spills:
            text += f"; {self.spills:,} runs did not fit, the last by up to {size(self.spilled_bytes)}"
        if self.stateful:
            text += f"; outside, because they keep tensors: {', '.join(self.stateful)}"
        return f"workspace {self.name}: {text}"


@dataclass(frozen=True)
class MailboxesInfo(View):
    """The memory in which large arrays of local clients travel.

    Attributes:
        clients: how many clients have some.
        granted_bytes: how much they have together; only what was used of it is memory.
        total_bytes: how much they may have.
        refused: how often one asked for more in vain.
        inline: how many requests of local clients came with large arrays through sockets.
    """

    clients: int
    granted_bytes: int
    total_bytes: int
    refused: int
    inline: int

    def __str__(self) -> str:
        text = f"{size(self.granted_bytes)} of {size(self.total_bytes)} for {self.clients} clients"
        if self.inline or self.refused:
            text += f"; {self.inline:,} requests with arrays in sockets, {self.refused:,} refused"
        return f"mailboxes: {text}"


@dataclass(frozen=True)
class Status(View):
    """The pool as a whole.

    Attributes:
        slots: how many workers may run at once, at most.
        concurrency: how many may now.
        concurrency_note: why that is so.
        sessions: how many sessions workers have.
        threads: threads that torch uses in one run.
        unanswered: requests accepted and not answered.
        retried: attempts that were repeated because a worker died.
        rings: the slots that runs take their memory from.
        mailboxes: the memory in which large arrays travel.
        fallbacks: what is done in a second-best way, and why.
        notes: what happened lately that somebody may want to know.
    """

    name: str
    pid: int
    uptime_s: float
    is_stopping: bool
    slots: int
    concurrency: int
    concurrency_note: str
    sessions: int
    threads: int
    clients: int
    unanswered: int
    retried: int
    zygote_pid: int
    workers: tuple[WorkerInfo, ...]
    models: tuple[ModelInfo, ...]
    rings: tuple[RingInfo, ...]
    mailboxes: MailboxesInfo
    fallbacks: list[str]
    notes: list[str]

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> Self:
        """Return the view of what a supervisor told."""
        workers = tuple(WorkerInfo.from_wire(one) for one in values["workers"])
        models = tuple(ModelInfo.from_wire(one) for one in values["models"])
        rings = tuple(RingInfo.from_wire(one) for one in values["rings"])
        mailboxes = MailboxesInfo.from_wire(values["mailboxes"])
        parts = {"workers": workers, "models": models, "rings": rings, "mailboxes": mailboxes}
        return super().from_wire({**values, **parts})

    def __str__(self) -> str:
        lines = [f"pool {self.name}, pid {self.pid}, up {self.uptime_s:.0f} s, {self.unanswered} unanswered"]
        lines += [f"  {self.concurrency} of {self.slots} run at once ({self.concurrency_note})"]
        lines += [f"  worker {one.pid}: {one.state}, {one.runs} runs" for one in self.workers]
        lines += [f"  {model}" for model in self.models]
        lines += [f"  {ring}" for ring in self.rings]
        lines += [f"  {self.mailboxes}"]
        lines += [f"  fallback: {text}" for text in self.fallbacks]
        return "\n".join(lines)


def size(size_bytes: float) -> str:
    """Return a number of bytes for people, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size_bytes) < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"
