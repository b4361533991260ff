"""Writes the README's tables of figures from the files in ``scripts/benchmarks/results``; nobody types them.

`scripts/bench` measures most of them; `scripts/soak`, `scripts/simulate` and `scripts/demo` write theirs with
``--json``, `scripts/bench-peers` by itself. What was not measured has no row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import measured_peers
from measured_rows import PARTS, package

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- written by scripts/bench: begin -->", "<!-- end -->"


def write(readme: Path = README) -> None:
    """Put the tables between the marks of the README."""
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}\n{tables()}{END}{after}")


def tables() -> str:
    """Return what stands there, as the results are now."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    known = found.pop("cpu", {}) | found
    rows = [row for part, tell in PARTS.items() if part in known for row in tell(known[part])]
    paragraphs = [_conditions(known["conditions"]), _table(("what", "onecopy", "beside it"), rows)]
    if "peers" in known:
        paragraphs.append(measured_peers.about(known["peers"]))
        paragraphs.append(_table(*measured_peers.table(known["peers"])))
        paragraphs += [
            f"![{what}]({path.relative_to(README.parent)})"
            for what in ("memory", "speed")
            if (path := RESULTS / f"peers-{what}.svg").exists()
        ]
    return "".join(f"\n{paragraph}\n" for paragraph in paragraphs) + "\n"


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(columns)
    lines = [f"| {' | '.join(line)} |" for line in (names, *rows)]
    return "\n".join([lines[0], "|---" * len(names) + "|", *lines[1:]])


def _conditions(by_part: dict[str, dict[str, Any]]) -> str:
    """Tell what figures depend on, and of which parts of the benchmark where they were not measured in one run."""
    parts: dict[str, list[str]] = {}
    for part, one in by_part.items():
        parts.setdefault(_told(one), []).append(part)
    if len(parts) == 1:
        return next(iter(parts))
    return " ".join(f"Of {', '.join(names)}: {told}" for told, names in parts.items())


def _told(one: dict[str, Any]) -> str:
    return (
        f"{one['cores']} cores ({one['machine']}, a virtual machine), {one['memory, GB']:.0f} GB, "
        f"Linux {one['kernel'].partition('-')[0]}, Python {one['python']}, torch {one['torch']}, "
        f"pyzmq {one['pyzmq']} with libzmq {one['libzmq']}; "
        f"{package(one)}."
    )
