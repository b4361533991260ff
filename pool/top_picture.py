"""What `onecopy top` shows, as a function of what a pool told: nothing here asks, waits or prints.

Needs rich, so only the command line imports this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from .memory_views import DeviceInfo, Memory, Told
from .tables import grid
from .views import ModelInfo, RingInfo, Status, WorkerInfo, size

#: Accounts of a device that are no one's but one process's.
_PRIVATE: Final = ("workers", "others")


def picture(now: Told, before: Told | None) -> Group:
    """Return what is to be seen.

    Args:
        now: the newest.
        before: what was told the last time, for rates; None: there are no rates yet.
    """
    status, memory = now.status, now.memory
    parts: list[RenderableType] = [Text(_head(status, memory))]
    columns = ["device", "used>", "of>", "weights>", "slots>", "mailboxes>", "private>", "free>", "on disk>"]
    parts += _section(columns, map(_device, memory.devices))
    parts += _section(["slots", "device", "number>", "up to>", "taken>", "spills>"], map(_ring, status.rings))
    columns = ["model", "device", "state", "queued>", "running>", "answered/s>", "answered>", "failed>", "p50>"]
    rates = _rates(now, before)
    parts += _section(columns, (_model(one, rates) for one in status.models))
    notes = [f"fallback: {text}" for text in status.fallbacks]
    notes += [f"{one.name}: {one.error.get('message', '')}" for one in status.models if one.error]
    parts += [Text(), *map(Text, notes)] if notes else []
    private_bytes = {one.pid: one.private_bytes for one in memory.processes}
    workers = sorted(status.workers, key=lambda one: (one.state != "busy", one.pid))
    columns = ["worker>", "device", "state", "runs", "holds>", "done>", "private>"]
    parts += _section(columns, (_worker(one, private_bytes) for one in workers))
    return Group(*parts)


def _head(status: Status, memory: Memory) -> str:
    state = "stopping" if status.is_stopping else "serving"
    return (
        f"onecopy {status.name}, pid {status.pid}: {state} for {_duration(status.uptime_s)}; "
        f"{status.clients} clients, {status.unanswered:,} unanswered, {status.retried:,} retried\n"
        f"{len(status.workers)} workers ({status.workers_note}); "
        f"{status.concurrency} of {status.slots} run at once ({status.concurrency_note})\n"
        f"{size(memory.total_bytes)} in all; weights {size(memory.weights_bytes)}, "
        f"without sharing {size(memory.weights_bytes_unshared)}"
    )


def _section(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[RenderableType]:
    return [Text(), grid(columns, rows)]


def _device(one: DeviceInfo) -> Sequence[str]:
    private_bytes = sum(one.accounts.get(account, 0) for account in _PRIVATE)
    weights_bytes = one.accounts.get("weights", 0) + one.accounts.get("loading", 0)
    return (
        one.name, size(one.used_bytes), size(one.limit_bytes), size(weights_bytes),
        size(one.accounts.get("slots", 0)), size(one.accounts.get("mailboxes", 0)), size(private_bytes),
        size(one.free_bytes), size(one.disk_bytes),
    )  # fmt: skip


def _ring(one: RingInfo) -> Sequence[str]:
    return (
        one.name, one.device, str(one.slots), size(one.size_bytes), size(one.allocated_bytes), f"{one.spills:,}"
    )  # fmt: skip


def _model(one: ModelInfo, rates: dict[tuple[str, str], float]) -> Sequence[str]:
    rate = rates.get((one.name, one.device))
    median_s = one.run_times.quantile_s(0.5)
    return (
        one.name, one.device, one.state, f"{one.queued:,}", str(one.running),
        "" if rate is None else f"{rate:,.1f}", f"{one.answered:,}", f"{one.failed:,}",
        "" if median_s is None else f"{median_s * 1000:,.1f} ms",
    )  # fmt: skip


def _worker(one: WorkerInfo, private_bytes: dict[int, int]) -> Sequence[str]:
    private = private_bytes.get(one.pid)
    return (
        str(one.pid or ""), one.device, one.state, one.running, str(one.outstanding), f"{one.runs:,}",
        "" if private is None else size(private),
    )  # fmt: skip


def _rates(now: Told, before: Told | None) -> dict[tuple[str, str], float]:
    """Return how many calls each model on each device answered a second since the last time."""
    if before is None or now.at_s <= before.at_s:
        return {}
    passed_s = now.at_s - before.at_s
    answered = {(one.name, one.device): one.answered for one in before.status.models}
    return {
        key: max(0, one.answered - answered[key]) / passed_s  # fewer: another one of that name
        for one in now.status.models
        if (key := (one.name, one.device)) in answered
    }


def _duration(seconds: float) -> str:
    minutes, rest_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest_s:02}"
