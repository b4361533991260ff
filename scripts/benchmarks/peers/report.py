"""The results as tables: a row for each peer, medians of the rounds."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from .catalogue import PEERS
from .workloads import FEW

_WIDTH = 150
_NONE = "-"
#: Answers differ in their last bits with how weights lie in memory.
_NEAR = 1e-4

_LOOPS = ("at_rest", "few", "busy", "half_load")
#: By measure: the columns of a cell, each with how it is read from the record of a round.
COLUMNS: dict[str, dict[str, Callable[[dict[str, Any]], float]]] = {
    "memory": {
        "MB": lambda one: one["total_bytes"] / 1e6,
        "anonymous": lambda one: one["anonymous_bytes"] / 1e6,
        "files": lambda one: one["file_bytes"] / 1e6,
        "shared": lambda one: one["shared_bytes"] / 1e6,
        "processes": lambda one: one["processes"],
        "(client)": lambda one: one["client_bytes"] / 1e6,
    },
    "speed": {
        "rest p50": lambda one: one["at_rest"]["p50_ms"],
        "p99": lambda one: one["at_rest"]["p99_ms"],
        "p99.9": lambda one: one["at_rest"]["p99.9_ms"],
        "few/s": lambda one: one["few"]["rate"],
        "busy/s": lambda one: one["busy"]["rate"],
        "half p50": lambda one: one["half_load"]["p50_ms"],
        "half p99": lambda one: one["half_load"]["p99_ms"],
        "half p99.9": lambda one: one["half_load"]["p99.9_ms"],
    },
    "start": {
        "first answer, s": lambda one: one["first_s"],
        "all workers, s": lambda one: one["all_s"],
        "one more, s": lambda one: one["one_more_s"],
    },
}

TITLES = {
    "memory": "Memory of {}: shares of anonymous and file pages, shared memory once; beside it the client's; MB",
    "speed": (
        f"Speed of {{}}: latency at rest (one request at a time), ms; answers a second with few ({FEW}) and with"
        " many under way; latency at half of the latter (from when they were due), ms"
    ),
    "start": "Start of {}: seconds until the first worker, all of them, and one more have answered",
}


def show(results: dict[str, Any]) -> str:
    """Print all tables; return them as text."""
    text = io.StringIO()
    for console in (Console(width=_WIDTH), Console(file=text, width=_WIDTH)):
        console.print(_conditions(results), highlight=False)
        for measure in COLUMNS:
            for cell in cells(results, measure):
                console.print(table(results, measure, cell))
        for line in failures(results) + lost(results) + disagreements(results):
            console.print(line, highlight=False, markup=False)
    return text.getvalue()


def cells(results: dict[str, Any], measure: str) -> list[str]:
    """Return the cells of a measure that there are results of, but for those of processes without workers."""
    return list(
        dict.fromkeys(
            cell
            for peer, values in results["peers"].items()
            for cell, rounds in values.get(measure, {}).items()
            if rounds and (peer not in PEERS or PEERS[peer].has_workers)
        )
    )


def rounds_of(results: dict[str, Any], peer: str, measure: str, cell: str) -> list[dict[str, Any]]:
    """Return the rounds of a peer that stand in a cell: for a process without workers, its only ones."""
    if peer in PEERS and not PEERS[peer].has_workers:
        cell = f"{cell.partition(' x ')[0]} x 1"
    return results["peers"].get(peer, {}).get(measure, {}).get(cell, [])


def table(results: dict[str, Any], measure: str, cell: str) -> Table:
    """Return a cell of a measure as a table."""
    columns = COLUMNS[measure]
    shown = Table("", title=TITLES[measure].format(cell), title_justify="left")
    for name in columns:
        shown.add_column(name, justify="right")
    for peer, about in PEERS.items():
        if rounds := rounds_of(results, peer, measure, cell):
            shown.add_row(about.about, *(number(median(rounds, read)) for read in columns.values()))
    return shown


def median(rounds: Iterable[dict[str, Any]], read: Callable[[dict[str, Any]], float]) -> float | None:
    """Return the median of a value over rounds; None where it was not measured."""
    values: list[float] = []
    for one in rounds:
        try:
            values.append(read(one))
        except KeyError:
            continue
    return statistics.median(values) if values else None


def number(value: float | None) -> str:
    """Return a figure with three digits that count, as tables show it."""
    if value is None:
        return _NONE
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def failures(results: dict[str, Any]) -> list[str]:
    """Return a line for each thing that could not be measured, with the last line of the reason."""
    return [
        f"{peer}: {what}: {reason.strip().splitlines()[-1]}"
        for peer, values in results["peers"].items()
        for what, reason in values.get("failed", {}).items()
    ]


def lost(results: dict[str, Any]) -> list[str]:
    """Return a line for each loop in which requests failed or were not answered."""
    return [
        f"{peer}: {cell}: {one[loop]['failed']} failed, {one[loop]['unanswered']} unanswered: {loop}"
        for cell in cells(results, "speed")
        for peer in results["peers"]
        for one in rounds_of(results, peer, "speed", cell)
        for loop in _LOOPS
        if one.get(loop, {}).get("failed") or one.get(loop, {}).get("unanswered")
    ]


def disagreements(results: dict[str, Any]) -> list[str]:
    """Return a line for each peer whose answers are not those of the others."""
    lines: list[str] = []
    for cell in cells(results, "speed"):
        found = {peer: rounds_of(results, peer, "speed", cell) for peer in results["peers"]}
        sums = {peer: rounds[-1]["answer"] for peer, rounds in found.items() if rounds and "answer" in rounds[-1]}
        usual = statistics.median(sums.values())
        lines += [
            f"{peer}: {cell}: its answer adds up to {one}, that of others to {usual}"
            for peer, one in sums.items()
            if not math.isclose(one, usual, rel_tol=_NEAR, abs_tol=_NEAR)
        ]
    return lines


def _conditions(results: dict[str, Any]) -> str:
    said = ", ".join(f"{name}: {value}" for name, value in results["conditions"].items())
    return f"{said}{'; a quick run: not to be quoted' if results['quick'] else ''}"
