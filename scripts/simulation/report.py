"""What was simulated, as tables on a terminal."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from .scenario import Scenario

#: What has more columns than a terminal is folded there, and nowhere else.
_CONSOLE = Console() if sys.stdout.isatty() else Console(width=200)


def machine_of(scenario: Scenario) -> str:
    """Say what machine is simulated, and what of it a real one would not be."""
    models = f"{len(scenario.each_model):,} models"
    if scenario.devices == 1:
        return f"Simulated: {scenario.workers:,} workers, {models}."
    return (
        f"Simulated: {scenario.devices:,} devices of {scenario.workers:,} workers, {models}. The core knows one "
        f"device: they are one ring of {scenario.seats:,} seats, and any worker can run any model."
    )


def show(part: str, found: dict[str, Any]) -> None:
    """Print a part: single values in one table, then what has columns, by columns."""
    single = {key: value for key, value in found.items() if not isinstance(value, dict)}
    tables: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for key, value in found.items():
        if isinstance(value, dict):
            is_nested = any(isinstance(one, dict) for one in value.values())
            rows = {f"{key}: {name}": one for name, one in value.items()} if is_nested else {key: value}
            for name, row in rows.items():
                tables.setdefault(tuple(row), {})[name] = row
    _CONSOLE.print(f"\n[bold]{part}[/bold]")
    if single:
        table = Table(show_header=False)
        for key, value in single.items():
            table.add_row(key, _text(value))
        _CONSOLE.print(table)
    for columns, rows in tables.items():
        table = Table("", *columns)
        for name, row in rows.items():
            table.add_row(name, *map(_text, row.values()))
        _CONSOLE.print(table)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.4g}"
