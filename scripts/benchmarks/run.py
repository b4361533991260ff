"""Runs the measurements; writes ``scripts/benchmarks/results/``, a table on the terminal, and those of the README.

Machines drift, so what is compared is measured in turns within one run, a block of each after the other, and
medians are quoted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import activations
import batching
import budget
import forwards
import measured
import memory
import psutil
import small_requests
import tensors
import torch
import two_models
import weights
import zmq
from onecopy.pool import Pool
from onecopy.pool.abilities import is_compiled
from rich.console import Console
from rich.table import Table
from turns import Echo

RESULTS = Path(__file__).parent / "results"


def start() -> dict[str, Any]:
    """How long it takes until the supervisor serves, and what it takes of memory."""
    times, sizes = [], []
    for _ in range(5):
        started_at = time.perf_counter()
        with Pool({"echo": Echo()}, workers=1) as pool:
            times.append(time.perf_counter() - started_at)
            pool.run("echo", 1)
            sizes += [one.pss_bytes for one in pool.memory().processes if one.role == "supervisor"]
    return {"serves after, s": statistics.median(times), "supervisor, MB": statistics.median(sizes) / 1e6}


def conditions() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory, GB": round(psutil.virtual_memory().total / 1e9, 1),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "compiled": is_compiled(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyzmq": zmq.__version__,
        "libzmq": zmq.zmq_version(),
    }


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "small": small_requests.measure,
    "start": start,
    "memory": memory.measure,
    "weights": weights.measure,
    "forwards": forwards.measure,
    "activations": activations.measure,
    "tensors": tensors.measure,
    "batching": batching.measure,
    "budget": budget.measure,
    "two models": two_models.measure,
}


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--output", default=str(RESULTS / "cpu.json"))
    parser.add_argument("--write", action="store_true", help="only write the README's tables, from what is known")
    options = parser.parse_args()
    if options.write:
        measured.write()
        return
    output = Path(options.output)
    report = json.loads(output.read_text()) if output.exists() else {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["ONECOPY_CACHE_DIR"] = cache  # nothing is known of earlier runs
        for part in options.parts:
            report[part] = PARTS[part]()
            report.setdefault("conditions", {})[part] = conditions()
            show(part, report[part])
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    if output.parent == RESULTS:
        measured.write()


def show(title: str, values: dict[str, Any]) -> None:
    """Print a part of the report."""
    table = Table("", "", title=title, title_justify="left")

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{prefix}, {key}" if prefix else str(key), inner)
        else:
            table.add_row(prefix, f"{value:,.2f}" if isinstance(value, float) else str(value))

    add("", values)
    Console().print(table)


if __name__ == "__main__":
    main()
