"""Every claim of docs/claims.md has an example and tests, and every test that the documents name is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
NAMES_TESTS = ["docs/claims.md", "docs/security.md"]
HEADER = ["claim", "example", "tests", "on a GPU"]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
EXAMPLE = re.compile(r"`(\w+\.py)`")
#: Of a claim that makes a difference on a GPU: shown there, or what a stand-in for the driver shows.
ON_A_GPU = re.compile(
    r"not of GPUs|unproven: (none|`tests/[\w/]+\.py::\w+`)|proven: `scripts/gpu-check( --pools)?` [TFP]\d+"
)


class Claim(NamedTuple):
    """A row of the table."""

    claim: str
    example: str
    tests: str
    on_a_gpu: str


def rows() -> list[list[str]]:
    """Every row of every table, headers included."""
    text = (ROOT / "docs" / "claims.md").read_text()
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"
    ]


def claims() -> list[Claim]:
    found = [row for row in rows() if row != HEADER and not set("".join(row)) <= set("-|")]
    assert all(len(row) == len(Claim._fields) for row in found), "a row has another number of cells"
    return [Claim(*row) for row in found]


CLAIMS = claims()


@cache
def functions_of(path: str) -> set[str]:
    """The tests of a file."""
    file = ROOT / path
    if not file.is_file():
        return set()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, functions)}


def test_there_are_claims_under_the_same_header_everywhere():
    assert len(CLAIMS) > 30
    assert len({claim.claim for claim in CLAIMS}) == len(CLAIMS)
    assert sum(row == HEADER for row in rows()) == (ROOT / "docs" / "claims.md").read_text().count("\n## ")


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.claim[:50])
def test_a_claim_has_an_example_and_tests_and_says_how_it_stands_on_a_gpu(claim):
    examples = EXAMPLE.findall(claim.example)
    assert examples
    assert all((ROOT / "scripts" / "examples" / name).is_file() for name in examples), claim.example
    assert TEST.findall(claim.tests)
    assert re.sub(TEST, "", claim.tests).strip() == "", "what is no test stands among the tests"
    assert ON_A_GPU.fullmatch(claim.on_a_gpu), claim.on_a_gpu


@pytest.mark.parametrize("document", NAMES_TESTS)
def test_every_test_that_a_document_names_is_there(document):
    named = TEST.findall((ROOT / document).read_text())
    assert len(named) > 20
    assert [f"{path}::{name}" for path, name in named if name not in functions_of(path)] == []


def test_every_example_shows_a_claim_and_is_tried_by_a_test():
    shown = {name for claim in CLAIMS for name in EXAMPLE.findall(claim.example)}
    examples = {path.name for path in (ROOT / "scripts" / "examples").glob("*.py")} - {"showing.py"}
    tried = "".join(path.read_text() for path in (ROOT / "tests" / "examples").glob("test_*.py"))
    assert {name for name in examples if f'"{Path(name).stem}"' not in tried} == set()
    assert examples - shown == set()
