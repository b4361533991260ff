"""What a pool tells of itself: frozen, readable, and plain with ``to_dict``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self


class View:
    """Base of all views; those that have sentences for people show them in a notebook, too."""

    def __repr__(self) -> str:
        return str(self)

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> Self:
        """Return the view of what a supervisor told; keys that a newer one adds are left out."""
        names = {field.name for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
        return cls(**{key: value for key, value in values.items() if key in names})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, repr=False)
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
class LoadInfo(View):
    """What a load takes; None: not known.

    Attributes:
        weights_bytes: the memory of its one copy; a weights file that workers map takes none.
        loader_bytes: the most private memory that its loader was measured to have.
        load_s: from the start of the loader to the moment when workers could run it.
        private_bytes: the most that a worker took besides when it thawed it.
        need_bytes: the most that a run took of a slot.
        return_s: how long its return from the disk took.
    """

    weights_bytes: int | None = None
    loader_bytes: int | None = None
    load_s: float | None = None
    private_bytes: int | None = None
    need_bytes: int | None = None
    return_s: float | None = None

    def figure(self, name: str) -> str:
        """Return one of them for people; empty if it is not known."""
        value = getattr(self, name)
        if value is None:
            return ""
        return f"{value:.2f} s" if name.endswith("_s") else size(value)

    def beside(self, predicted: LoadInfo) -> list[str]:
        """Return what took how much, with what was predicted in brackets, where both are known."""
        return [
            f"{word} {self.figure(name)} ({predicted.figure(name)})"
            for name, word in LOAD_WORDS.items()
            if self.figure(name) and predicted.figure(name)
        ]


#: What the figures of a load are called.
LOAD_WORDS: Final = {
    "weights_bytes": "weights", "loader_bytes": "loader", "load_s": "load", "private_bytes": "each worker",
    "need_bytes": "a run", "return_s": "return",
}  # fmt: skip


@dataclass(frozen=True)
class RunTimes(View):
    """How long the runs of a model took.

    Attributes:
        bounds_s: in seconds, from short to long.
        counts: how many took up to each, and more than the bound before; the last: more than any.
    """

    bounds_s: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def quantile_s(self, part: float) -> float | None:
        """Return what this part of the runs took at most, in seconds; None before the first run.

        It is read off the bounds as if runs lay evenly between each two; those beyond all count as the last bound.
        """
        rest = part * sum(self.counts)
        if not rest:
            return None
        lower_s = 0.0
        for upper_s, count in zip(self.bounds_s, self.counts, strict=False):
            if rest <= count:
                return lower_s + (upper_s - lower_s) * rest / count
            rest -= count
            lower_s = upper_s
        return lower_s


@dataclass(frozen=True, repr=False)
class ModelInfo(View):
    """One model on one device.

    Attributes:
        device: where it is.
        state: ``declared`` (loaded when needed), ``building``, ``adopting``, ``ready``, ``failed``; ``evicting``,
            ``evicted`` (out of memory until it is needed), ``returning``.
        weights_bytes: its one copy, in memory or not.
        workers: how many hold it.
        queued: how many calls wait for a worker.
        running: how many attempts workers have.
        answered, failed: how many calls ended, and how.
        expected_s: what a call takes, in seconds; None before the first.
        share: its part of the workers' time, relative to others'.
        worker_s: how much of the workers' time it has had.
        run_times: how long its runs took.
        is_warm: whether workers shall have it ready before the first request.
        batch: its batches.
        error: why it could not be loaded.
        predicted: what it was expected to take, as earlier loads of it have.
        actual: what it took here.
    """

    name: str
    device: str
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
    predicted: LoadInfo = LoadInfo()
    actual: LoadInfo = LoadInfo()
    run_times: RunTimes = RunTimes()
    is_warm: bool = False

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> Self:
        """Return the view of what a supervisor told."""
        figures = {key: LoadInfo.from_wire(values.get(key, {})) for key in ("predicted", "actual")}
        parts = {
            **figures,
            "batch": BatchInfo.from_wire(values["batch"]),
            "run_times": RunTimes.from_wire(values.get("run_times", {})),
        }
        return super().from_wire({**values, **parts})

    def __str__(self) -> str:
        text = (
            f"{self.name}: {self.state}, {size(self.weights_bytes)} in {self.workers} workers, "
            f"{self.queued} queued, {self.running} running, {self.answered} answered, {self.failed} failed"
        )
        if self.batch.most > 1:
            text = f"{text}, {self.batch}"
        beside = ", ".join(self.actual.beside(self.predicted))
        return f"{text}; took (predicted): {beside}" if beside else text


@dataclass(frozen=True)
class WorkerInfo(View):
    """One worker process.

    Attributes:
        pid: 0 until it is forked.
        device: whose models it runs.
        outstanding: requests that it holds.
        running: the model that it is at; empty if it is idle.
        is_thawed: whether it has every warm model ready that it was given.
        models: those it was given.
    """

    pid: int
    device: str
    state: str
    runs: int
    outstanding: int
    is_thawed: bool
    models: list[str]
    running: str = ""


@dataclass(frozen=True, repr=False)
class RingInfo(View):
    """The slots that some models share.

    Attributes:
        name: ``device``, or what the models' ``workspace`` says.
        device: where it is.
        slots: how many there are.
        size_bytes: how large each may become.
        allocated_bytes: what all of them take.
        spilled_bytes: the most that a run took outside of its slot since the slots have their present size.
        spills: how many runs did not fit.
        needs_bytes: by model, what a run of it is known to need; 0: not known yet, or below a megabyte.
        stateful: models that keep tensors between runs, and run outside of slots for that.
    """

    name: str
    device: str
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


@dataclass(frozen=True, repr=False)
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


@dataclass(frozen=True, repr=False)
class Status(View):
    """The pool as a whole.

    Attributes:
        slots: how many workers may run at once, at most, on all devices together.
        workers_note: why there are as many workers as there are.
        concurrency: how many may now.
        concurrency_note: why that is so.
        sessions: how many sessions workers have.
        threads: threads that torch uses in one run, unless a device has a number of its own.
        unanswered: requests accepted and not answered.
        retried: attempts that were repeated because a worker died.
        zygote_pid: that of the first device.
        zygotes: by device, the process that its workers are forked from; 0: none now.
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
    workers_note: str
    concurrency: int
    concurrency_note: str
    sessions: int
    threads: int
    clients: int
    unanswered: int
    retried: int
    zygote_pid: int
    zygotes: dict[str, int]
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
        lines += [f"  {len(self.workers)} workers ({self.workers_note})"]
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
