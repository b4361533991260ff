"""What a pool tells of itself as tables on a terminal. Needs rich, so only the command line imports this."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .memory_views import DeviceInfo, Memory, WeightsInfo
from .views import LOAD_WORDS, ModelInfo, Status, size

#: Width where there is no terminal to fit: nothing is to be folded in a file or pipe.
_WIDE: Final = 400


def show_status(status: Status) -> None:
    """Print the pool as a whole."""
    state = "stopping" if status.is_stopping else "serving"
    say(
        f"pool {status.name}, pid {status.pid}: {state} for {status.uptime_s:.0f} s; "
        f"{status.unanswered} unanswered, {status.retried} retried, {status.clients} clients, "
        f"{status.slots} slots of {status.threads} threads"
    )
    workers = [
        (str(one.pid), one.device, one.state, f"{one.runs:,}", str(one.outstanding), ", ".join(one.models))
        for one in status.workers
    ]
    table(["worker", "device", "state", "runs>", "holds>", "models"], workers)
    show_models(status.models)
    for ring in status.rings:
        say(str(ring))
    say(str(status.mailboxes))
    for text in status.fallbacks:
        say(f"fallback: {text}")
    for text in status.notes[-5:]:
        say(f"note: {text}")


def show_models(models: Sequence[ModelInfo]) -> None:
    """Print the models, and under them why one could not be loaded."""
    rows = [
        (
            one.name, one.device, one.state, one.method, size(one.weights_bytes), str(one.workers),
            f"{one.queued:,}", str(one.running), f"{one.answered:,}", f"{one.failed:,}",
            _milliseconds(one.expected_s),
        )
        for one in models
    ]  # fmt: skip
    columns = [
        "model", "device", "state", "method", "weights>", "workers>", "queued>", "running>", "answered>",
        "failed>", "a run>",
    ]  # fmt: skip
    table(columns, rows)
    _show_loads(models)
    for one in models:
        if one.error:
            say(f"{one.name}: {one.error.get('message', '')}")


def _show_loads(models: Sequence[ModelInfo]) -> None:
    """Print what loads took, and in brackets what was predicted, as far as anything was."""
    rows = [
        (
            one.name, one.device,
            *(_beside(one.actual.figure(name), one.predicted.figure(name)) for name in LOAD_WORDS),
        )
        for one in models
        if any(map(one.predicted.figure, LOAD_WORDS))
    ]  # fmt: skip
    if rows:
        table(["took (predicted)", "device", *(f"{word}>" for word in LOAD_WORDS.values())], rows)


def _beside(actual: str, predicted: str) -> str:
    return f"{actual} ({predicted})".lstrip() if predicted else actual


def show_memory(memory: Memory) -> None:
    """Print what the pool takes: weights by model, then processes; and what of a model each worker has alone."""
    say(
        f"{size(memory.total_bytes)} in all; weights {size(memory.weights_bytes)}, "
        f"without sharing they would take {size(memory.weights_bytes_unshared)}; "
        f"slots {size(memory.slots_bytes)}, mailboxes {size(memory.mailboxes_bytes)}"
    )
    columns = ["device", "used>", "of>", "free>", "reserve>", "used by", "evicted>", "on disk>"]
    table(columns, map(_device_row, memory.devices))
    columns = [
        "model", "device", "state", "lies in", "size>", "own>", "shared with", "private per worker>", "workers>",
        "attached>", "evicted>",
    ]  # fmt: skip
    table(columns, map(_weights_row, memory.weights))
    rows = [
        (one.role, str(one.pid), size(one.pss_bytes), size(one.private_bytes), one.device)
        for one in memory.processes
    ]
    table(["process", "pid>", "its share>", "private>", "device"], rows)
    for one in memory.weights:
        if one.is_rebuilt:
            say(f"{one.model}: each worker builds it anew around the one copy, because it cannot be pickled")
        if one.opaque:
            say(f"{one.model}: {one.opaque_parts}")


def _device_row(one: DeviceInfo) -> Sequence[str]:
    accounts = ", ".join(f"{name} {size(taken)}" for name, taken in one.accounts.items() if taken)
    return (
        one.name, size(one.used_bytes), size(one.limit_bytes), size(one.free_bytes), size(one.reserve_bytes),
        accounts, size(one.evicted_bytes), size(one.disk_bytes),
    )  # fmt: skip


def _weights_row(one: WeightsInfo) -> Sequence[str]:
    shared = ", ".join(f"{name} {size(size_bytes)}" for name, size_bytes in one.shared_with.items())
    return (
        one.model, one.device, f"{one.state}, pinned" if one.is_pinned else one.state, one.tier,
        size(one.size_bytes), size(one.own_bytes), shared, size(one.private_bytes), str(one.workers),
        str(one.attached), str(one.evictions),
    )  # fmt: skip


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.1f} ms"


def table(columns: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows; a column whose title ends with ``>`` is aligned to the right."""
    console().print(grid(columns, rows))


def grid(columns: Iterable[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return rows as a table; a column whose title ends with ``>`` is aligned to the right."""
    table = Table(box=None, pad_edge=False)
    for title in columns:
        table.add_column(title.rstrip(">"), justify="right" if title.endswith(">") else "left")
    for row in rows:
        table.add_row(*map(Text, row))  # Text: what a user named is no markup
    return table


def say(text: str) -> None:
    """Print a sentence, on one line however long."""
    console().print(Text(text), soft_wrap=True)


def console() -> Console:
    """Return what prints: as wide as the terminal, or so wide that nothing is folded."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDE)
