"""What came of a run: a live line, tables, and JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from onecopy.pool.abilities import is_compiled
from rich.console import Console
from rich.table import Table

from .storm import GROWTH, ROLES, Storm

#: What has more columns than a terminal is folded there, and nowhere else.
_CONSOLE: Final = Console() if sys.stdout.isatty() else Console(width=160)


def live_line(storm: Storm, elapsed_s: float) -> str:
    """Say how it goes, in a line."""
    books = storm.books
    return (
        f"{elapsed_s:6.0f} s  {storm.killer.kills:5,} kills  {books.accepted:9,} accepted  "
        f"{books.unanswered:6,} open  {books.wrong} wrong"
    )


def results(storm: Storm, command: str) -> dict[str, Any]:
    """Return everything that is to be known, in plain values."""
    counts = storm.figures.get("transitions", {})
    return {
        "command": command,
        "violations": storm.books.wrong,
        "violations in words": storm.books.violations,
        "acts": dict(sorted(storm.attack.done.items())),
        "acts that cannot be done here": storm.attack.skipped,
        "kills": storm.killer.kills,
        "jobs finished": storm.jobs.finished,
        "requests": {"accepted": storm.books.accepted, **dict(storm.books.outcomes.most_common())},
        "transitions": counts,
        "transitions covered": f"{sum(count > 0 for count in counts.values())} of {len(counts)}",
        "memory": {name: _counted(storm.figures.get(name, {})) for name in ("before", "after")},
        "growth": storm.figures.get("growth"),
        "growth allowed": GROWTH,
        "compiled": is_compiled(),
    }


def _counted(figures: dict[str, Any]) -> dict[str, Any]:
    """Return what was measured at rest without the names of what was open: folders of this machine are in them."""
    return figures | {"descriptors": sum(figures["descriptors"].values())} if figures else {}


def show(found: dict[str, Any]) -> None:
    """Print tables."""
    for name in ("acts", "requests"):
        table = Table(name, "how many")
        for key, count in found[name].items():
            table.add_row(key, f"{count:,}")
        _CONSOLE.print(table)
    for act, reason in found["acts that cannot be done here"].items():
        _CONSOLE.print(f"not done: {act}: {reason}", markup=False)
    missing = [name for name, count in found["transitions"].items() if not count]
    _CONSOLE.print(f"transitions covered: {found['transitions covered']}; not: {', '.join(missing) or 'none'}")
    before, after = found["memory"]["before"], found["memory"]["after"]
    if after:
        table = Table("at rest", "before", "after")
        for part in ("own", "private", "region", "file", "total", *ROLES):
            table.add_row(f"{part}, MB", *(f"{one[f'{part}_bytes'] / 1e6:,.1f}" for one in (before, after)))
        table.add_row("descriptors", *(str(one["descriptors"]) for one in (before, after)))
        _CONSOLE.print(table)
        _CONSOLE.print(f"private memory and regions have grown by {found['growth']:.2%}")
    for text in found["violations in words"]:
        _CONSOLE.print(f"WRONG: {text}", style="red", markup=False)
    verdict = "everything is accounted for" if not found["violations"] else f"{found['violations']} VIOLATIONS"
    _CONSOLE.print(f"{found['kills']:,} kills, {found['requests']['accepted']:,} requests: {verdict}")
    if found["violations"]:
        _CONSOLE.print(f"again: {found['command']}", markup=False)


def write(found: dict[str, Any], path: str) -> None:
    """Write JSON."""
    Path(path).write_text(json.dumps(found, indent=1) + "\n")
