"""Draws the state tables of `protocol/states.py` as Mermaid diagrams into docs/states.md."""

from __future__ import annotations

from pathlib import Path

from onecopy.protocol.states import TABLES, Table

TARGET = Path(__file__).parents[1] / "docs" / "states.md"

_HEAD = """# States

Drawn by `scripts/draw-states` from the tables in `protocol/states.py`; a test holds the two together. What has a
state changes it only as drawn here: anything else is an error that tells the object's story.
"""


def document() -> str:
    """Return the whole page."""
    return "\n".join([_HEAD, *(_section(kind, table) for kind, table in TABLES.items())])


def _section(kind: str, table: Table) -> str:
    """Return a heading, a diagram, and under it why each change happens."""
    first = next(iter(table))
    arrows = [f"    {start} --> {end}" for start, ends in table.items() for end in ends]
    ends = [f"    {state} --> [*]" for state, following in table.items() if not following]
    rows = [f"| {start} | {end} | {why} |" for start, ends in table.items() for end, why in ends.items()]
    diagram = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first}", *arrows, *ends, "```"]
    return "\n".join(
        [f"## {kind.capitalize()}\n", *diagram, "\n| from | to | because |\n|---|---|---|", *rows, ""]
    )


if __name__ == "__main__":
    TARGET.write_text(document())
