"""docs/states.md shows the state tables as they are."""

import subprocess
import sys
from pathlib import Path

from onecopy.protocol.states import TABLES

ROOT = Path(__file__).parents[1]


def test_the_diagrams_are_those_of_the_tables():
    code = "import drawing; print(drawing.document(), end='')"
    drawn = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "scripts", capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert (ROOT / "docs" / "states.md").read_text() == drawn, "run scripts/draw-states"


def test_every_change_of_every_table_is_drawn():
    text = (ROOT / "docs" / "states.md").read_text()
    sections = dict(part.split("\n", 1) for part in text.split("\n## ")[1:])
    for kind, table in TABLES.items():
        section = sections[kind.capitalize()]
        for start, ends in table.items():
            assert f"    {start} --> [*]\n" in section or ends
            for end, why in ends.items():
                assert f"    {start} --> {end}\n" in section
                assert f"| {start} | {end} | {why} |\n" in section
        assert section.count(" --> ") == 1 + sum(map(len, table.values())) + sum(not one for one in table.values())
