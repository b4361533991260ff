"""Draws the results as SVG beside them: ``python plots.py RESULTS.json``, in an environment with matplotlib."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot

_OURS = "onecopy"
#: The process without workers, which would dwarf the others: the table has it.
_ALONE = "plain"


def main() -> None:
    """Draw everything there is."""
    path = Path(sys.argv[1])
    mpl.rcParams["svg.hashsalt"] = "peers"  # the same results give the same file
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text
    peers: dict[str, Any] = json.loads(path.read_text())["peers"]
    memory(peers, path.with_name(f"{path.stem}-memory.svg"))
    speed(peers, path.with_name(f"{path.stem}-speed.svg"))


def memory(peers: dict[str, Any], path: Path) -> None:
    """Draw memory over workers, a line for each peer, a picture for each model."""
    workloads = sorted({cell.split(" x ")[0] for one in peers.values() for cell in one.get("memory", {})})
    figure, axes = pyplot.subplots(
        1, max(1, len(workloads)), figsize=(7 * max(1, len(workloads)), 5), squeeze=False
    )
    for axis, workload in zip(axes[0], workloads, strict=False):
        for name, values in peers.items():
            points = sorted(
                (int(workers), statistics.median(one["total_bytes"] for one in rounds) / 1e6)
                for cell, rounds in values.get("memory", {}).items()
                for kind, workers in [cell.split(" x ")]
                if kind == workload and rounds
            )
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=name, linewidth=3 if name == _OURS else 1)
        axis.set(title=f"memory, {workload}", xlabel="workers", ylabel="MB", ylim=(0, None))
        axis.legend(fontsize="small")
    _save(figure, path)


def speed(peers: dict[str, Any], path: Path) -> None:
    """Draw throughput and latencies, a row for each workload, a bar for each peer that has workers."""
    peers = {name: values for name, values in peers.items() if name != _ALONE}
    cells = list(
        dict.fromkeys(cell for one in peers.values() for cell, found in one.get("speed", {}).items() if found)
    )
    shown = {
        "answers/s": ("busy", "rate"),
        "p50 at rest, ms": ("at_rest", "p50_ms"),
        "p99 at half load, ms": ("half_load", "p99_ms"),
    }
    figure, axes = pyplot.subplots(
        max(1, len(cells)), len(shown), figsize=(15, 4 * max(1, len(cells))), squeeze=False
    )
    for row, cell in zip(axes, cells, strict=False):
        for axis, (title, (loop, key)) in zip(row, shown.items(), strict=True):
            bars = {
                name: statistics.median(found)
                for name, values in peers.items()
                if (found := [one[loop][key] for one in values.get("speed", {}).get(cell, []) if key in one[loop]])
            }
            colours = ["tab:red" if name.startswith(_OURS) else "tab:blue" for name in bars]
            axis.barh(list(bars), list(bars.values()), color=colours)
            axis.set(title=f"{cell}: {title}")
            axis.invert_yaxis()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
