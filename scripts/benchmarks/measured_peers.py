"""What the README says of `scripts/bench-peers`: a row for each peer, with the cells that tell most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from measured_rows import package
from peers.catalogue import PEERS
from peers.report import lost, median, number, rounds_of
from peers.workloads import FEW

#: By column: the measure, its cell, and how the figure is read from the record of a round.
_COLUMNS: dict[str, tuple[str, str, Callable[[dict[str, Any]], float]]] = {
    "1 GB of weights, 8 workers, MB": ("memory", "big x 8", lambda one: one["total_bytes"] / 1e6),
    "MiniLM, 8 workers, MB": ("memory", "minilm x 8", lambda one: one["total_bytes"] / 1e6),
    "small: p50 at rest, ms": ("speed", "small x 2", lambda one: one["at_rest"]["p50_ms"]),
    "small: p99 at half load, ms": ("speed", "small x 2", lambda one: one["half_load"]["p99_ms"]),
    f"small: answers/s, {FEW} under way": ("speed", "small x 2", lambda one: one["few"]["rate"]),
    "small: answers/s": ("speed", "small x 2", lambda one: one["busy"]["rate"]),
    "602 kB: p50 at rest, ms": ("speed", "image x 2", lambda one: one["at_rest"]["p50_ms"]),
    "602 kB: answers/s": ("speed", "image x 2", lambda one: one["busy"]["rate"]),
    "MiniLM: answers/s": ("speed", "minilm x 2", lambda one: one["busy"]["rate"]),
    "8 workers ready, s": ("start", "big x 8", lambda one: one["all_s"]),
}


def about(results: dict[str, Any]) -> str:
    """Return what the table is of."""
    one = results["conditions"]
    failing = sorted({PEERS[line.partition(":")[0]].about for line in lost(results)})
    return (
        "Beside peers, by `scripts/bench-peers`: each in an environment of its own, the same models and "
        f"requests, two workers with a thread each where speed is measured ({one['cpu']}, {one['cores']} cores; "
        f"onecopy: {package(one)}, with `warm=True`). "
        "What is small is 64 numbers through an MLP; 602 kB are an image through one light convolution. Peers and "
        "cells that were not measured yet are not shown"
        + (f"; `peers.txt` tells which requests of {', '.join(failing)} failed." if failing else ".")
    )


def table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns of which anything was measured, and a row for each peer that has a figure there."""
    figures = {
        column: {peer: median(rounds_of(results, peer, measure, cell), read) for peer in PEERS}
        for column, (measure, cell, read) in _COLUMNS.items()
    }
    columns = [one for one, known in figures.items() if any(value is not None for value in known.values())]
    rows = [
        [about.about, *(number(figures[column][peer]) for column in columns)]
        for peer, about in PEERS.items()
        if any(figures[column][peer] is not None for column in columns)
    ]
    return ["", *columns], rows
