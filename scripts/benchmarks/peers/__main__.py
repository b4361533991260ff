"""Measures onecopy beside its peers, each in an environment of its own; writes JSON, tables and plots.

What is measured already is kept, so a run that was interrupted goes on where it was. Peers that are compared are
measured in turns, a round of each after the other, and the median of the rounds is quoted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measured

from . import environments, report
from .catalogue import PEERS
from .processes import adopt_orphans, end_all
from .steps import Bench, StepError
from .workloads import BIG_BYTES, QUICK_BIG_BYTES, WORKLOADS

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured of every peer.

    Attributes:
        cells: by measure, which workloads by how many workers.
        rounds: by measure.
        window_s: how long each part of a speed measurement takes.
        bench: what all steps have in common.
        output: the file of the results, without its ending.
    """

    cells: dict[str, tuple[tuple[str, int], ...]]
    rounds: dict[str, int]
    window_s: float
    bench: Bench
    output: Path


#: All of it takes about three hours.
FULL = Plan(
    cells={
        "memory": (("big", 1), ("big", 2), ("big", 4), ("big", 8), ("minilm", 1), ("minilm", 8)),
        "speed": (("small", 2), ("image", 2), ("large", 2), ("minilm", 2)),
        "start": (("big", 8), ("minilm", 8)),
    },
    rounds={"memory": 1, "speed": 3, "start": 3},
    window_s=5.0,
    bench=Bench(BIG_BYTES, timeout_s=300),
    output=RESULTS / "peers",
)
#: Shows that everything works, in a quarter of an hour: small, once, and too short to be quoted.
QUICK = Plan(
    cells={"memory": (("big", 1), ("big", 2)), "speed": (("small", 2), ("image", 2)), "start": (("big", 2),)},
    rounds={"memory": 1, "speed": 1, "start": 1},
    window_s=1.0,
    bench=Bench(QUICK_BIG_BYTES, timeout_s=180),
    output=RESULTS / "peers-quick",
)


class Results:
    """What has been measured, kept in a file at all times.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"peers": {}}

    def rounds(self, peer: str, measure: str, cell: str) -> list[Any]:
        """Return the list that holds the rounds of a cell."""
        return self.values["peers"].setdefault(peer, {}).setdefault(measure, {}).setdefault(cell, [])

    def failed(self, peer: str) -> dict[str, str]:
        """Return what has failed of a peer, with the reason."""
        return self.values["peers"].setdefault(peer, {}).setdefault("failed", {})

    def forget(self, peer: str, measure: str, workloads: Container[str]) -> None:
        """Drop what is known of a measure with these workloads."""
        known = self.values["peers"].get(peer, {}).get(measure, {})
        for cell in [cell for cell in known if cell.partition(" x ")[0] in workloads]:
            del known[cell]

    def begin(self, conditions: dict[str, Any], *, is_quick: bool) -> None:
        """Note what figures depend on from now on; rounds of another form of the package are dropped."""
        before = self.values.get("conditions", {})
        if before.get("compiled", False) != conditions["compiled"]:
            for peer in [name for name, one in PEERS.items() if one.environment == "onecopy"]:
                if self.values["peers"].pop(peer, None):
                    print(f"{peer} is measured anew: its rounds are not of the package as it is now", flush=True)
        self.values |= {"conditions": conditions, "quick": is_quick}

    def save(self) -> None:
        """Write the file, whole or not at all."""
        self._path.parent.mkdir(exist_ok=True)
        unfinished = self._path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.values, indent=1) + "\n")
        unfinished.rename(self._path)


def main() -> None:
    """Measure what is asked for, show all that is known."""
    options = _options()
    plan = QUICK if options.quick else FULL
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that everything is ended then, too
    results = Results(plan.output.with_suffix(".json"))
    results.begin(environments.conditions(), is_quick=options.quick)
    for measure in options.measures if options.again else ():
        for peer in options.peers:
            results.forget(peer, measure, options.workloads)
    try:
        _prepare(options.peers, results)
        for measure in options.measures:
            for peer, workload, workers in _turns(plan, measure, options.peers, options.workloads):
                _measure(plan, results, peer, measure, workload, workers)
    finally:
        end_all()
        results.save()
    plan.output.with_suffix(".txt").write_text(report.show(results.values))
    _draw(plan.output)
    if not options.quick:
        measured.write()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench-peers", description=__doc__)
    parser.add_argument("peers", nargs="*", metavar="peer", help=f"of {', '.join(PEERS)}; default: all")
    parser.add_argument("--measures", nargs="+", choices=list(FULL.cells), default=list(FULL.cells))
    workloads = list(WORKLOADS)
    parser.add_argument("--workloads", nargs="+", choices=workloads, default=workloads, help="default: all")
    parser.add_argument("--quick", action="store_true", help="a short run that shows that everything works")
    parser.add_argument("--again", action="store_true", help="forget what is known of these peers and measures")
    options = parser.parse_args()
    if unknown := set(options.peers) - set(PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    options.peers = options.peers or list(PEERS)
    return options


def _prepare(peers: list[str], results: Results) -> None:
    """Make the environments; a peer whose environment cannot be made has failed."""
    known = results.values.setdefault("environments", {})
    for peer in peers:
        results.failed(peer).pop("environment", None)
        environment = PEERS[peer].environment
        try:
            known[environment] = environments.versions(environment)
        except environments.InstallError as error:
            results.failed(peer)["environment"] = str(error)
    results.save()


def _turns(
    plan: Plan, measure: str, peers: list[str], workloads: Container[str]
) -> Iterator[tuple[str, str, int]]:
    """Yield what is measured, in order: rounds of each cell, and in a round every peer once."""
    for workload, workers in plan.cells[measure]:
        for _ in range(plan.rounds[measure] if workload in workloads else 0):
            for peer in peers:
                if PEERS[peer].has_workers:
                    yield peer, workload, workers
                elif workers == min(count for name, count in plan.cells[measure] if name == workload):
                    yield peer, workload, 1


def _measure(plan: Plan, results: Results, peer: str, measure: str, workload: str, workers: int) -> None:
    """Measure one round of a cell, if it is not known yet."""
    cell = f"{workload} x {workers}"
    rounds, failed = results.rounds(peer, measure, cell), results.failed(peer)
    if len(rounds) >= plan.rounds[measure] or "environment" in failed:
        return
    told: dict[str, Any] = {}
    if measure == "speed":
        in_flight = WORKLOADS[workload].in_flight if PEERS[peer].has_workers else 1
        told = {"window_s": plan.window_s, "in_flight": in_flight, "seed": len(rounds)}
    started_at, load = time.monotonic(), os.getloadavg()[0]
    try:
        values = plan.bench.run(PEERS[peer], measure, workload, workers, spare=int(measure == "start"), **told)
        rounds.append(values | {"load average before": load})
        failed.pop(f"{measure}, {cell}", None)
    except StepError as error:
        failed[f"{measure}, {cell}"] = str(error)
    said = "failed" if f"{measure}, {cell}" in failed else "done"
    print(f"{measure}: {peer}, {cell}: {said} in {time.monotonic() - started_at:.0f} s", flush=True)
    results.save()


def _draw(output: Path) -> None:
    """Draw the plots, where their environment can be made."""
    try:
        python = environments.python_of("plots")
    except environments.InstallError as error:
        print(f"no plots: {error}")
        return
    script = Path(__file__).with_name("plots.py")
    subprocess.run([str(python), str(script), str(output.with_suffix(".json"))], check=True, timeout=300)


if __name__ == "__main__":
    main()
