"""The README's tables are those of the results, and nothing in them was typed."""

import json

import measured
import pytest
from measured_rows import PARTS, _rate


def test_the_readme_tells_what_was_measured():
    between = measured.README.read_text().partition(measured.BEGIN)[2].partition(measured.END)[0]
    assert between == f"\n{measured.tables()}", "run scripts/bench --write"


def test_every_part_that_is_measured_has_rows():
    known = json.loads((measured.RESULTS / "cpu.json").read_text())
    others = {path.stem for path in measured.RESULTS.glob("*.json")}
    assert known.keys() - {"conditions"} <= PARTS.keys()
    assert others - {"cpu", "peers", "peers-quick"} <= PARTS.keys()


@pytest.mark.parametrize(
    ("per_second", "told"), [(358549.6, "359,000/s"), (89.4, "89/s"), (10481.2, "10,500/s"), (999.6, "1,000/s")]
)
def test_rates_have_three_digits(per_second, told):
    assert _rate(per_second) == told


def test_what_stands_around_the_tables_stays(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{measured.BEGIN}\nold\n{measured.END}\nafter\n")
    measured.write(readme)
    assert readme.read_text() == f"before\n{measured.BEGIN}\n{measured.tables()}{measured.END}\nafter\n"
