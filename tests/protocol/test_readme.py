"""`protocol/README.md` says what the code does: tables, examples, and the client that it shows."""

import itertools
import json
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from onecopy.pool import Pool
from onecopy.protocol import errors, limits
from onecopy.protocol.errors import PoolError
from onecopy.protocol.messages import NUMBERS
from onecopy.protocol.tensors import ITEMSIZE_BYTES

ROOT = Path(__file__).parents[2]
README = (ROOT / "protocol" / "README.md").read_text()
VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())

TYPES = {
    int: "int", float: "float", str: "str", bytes: "bytes", bool: "bool", list[Any]: "list",
    list[int]: "list of int", list[str]: "list of str", dict[str, Any]: "map",
}  # fmt: skip


def rows(heading):
    """The cells of every table under a heading."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|") and not line.startswith("|--")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def fields_of(kind):
    hints = typing.get_type_hints(kind)
    return [f"`{name}: {'record' if name == 'error' else TYPES[hints[name]]}`" for name in kind._fields]


def test_the_tables_of_messages_are_those_of_the_code():
    told = {row[0]: row[1:3] for row in rows("Messages") if row[0].isdecimal()}
    assert told == {
        str(number): [f"`{kind.__name__}`", ", ".join(fields_of(kind))]
        for kind, number in NUMBERS.items()
        if number < 40 or 50 <= number < 60
    }


def test_the_table_of_dtypes_is_that_of_the_code():
    cells = [cell.strip("`") for row in rows("Values") for cell in row]
    told = {name: int(size) for name, size in itertools.pairwise(cells) if name in ITEMSIZE_BYTES}
    assert told == ITEMSIZE_BYTES


def test_the_table_of_errors_is_that_of_the_code():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PoolError)]
    assert [row[:2] for row in rows("Errors")[1:]] == [[f"`{kind.code}`", kind.fault] for kind in kinds]


def test_the_limits_are_those_of_the_code():
    told = [
        int(number.replace(",", "")) for row in rows("Limits")[1:] for number in re.findall(r"[\d,]{3,}", row[1])
    ]
    assert told == [
        limits.MAX_HEADER_BYTES, limits.MAX_BUFFER_BYTES, limits.MAX_BUFFERS, limits.MAX_FDS,
        limits.MAX_FDS_AHEAD, limits.MAX_NAME_BYTES, limits.MAX_REQUESTS_PER_CLIENT, limits.MAX_CALLS,
        limits.MAX_CREDIT, limits.MAX_SESSION_CHARACTERS, limits.MAX_OUTBOX_MESSAGES,
        limits.MAX_OUTBOX_BYTES, limits.MAX_CLIENTS,
    ]  # fmt: skip
    assert f"`priority` is from -{limits.MAX_PRIORITY} to {limits.MAX_PRIORITY}" in README
    assert f"`retries` (0 to {limits.MAX_RETRIES})" in README
    assert f"This is wire version **{limits.WIRE_VERSION}**" in README
    assert f"at most {limits.MAX_DEPTH} nested" in README
    assert f"at most {limits.MAX_DIMENSIONS}\nlengths" in README
    assert f"Arrays up to\n{limits.INLINE_ARRAY_BYTES // 1024} KiB" in README


def test_the_bytes_of_the_example_are_vectors():
    told = set(re.findall(r"\b[0-9a-f]{14,}\b", README.split("\n## By hand\n", 1)[1].split("\n## ", 1)[0]))
    told -= {"3fe0000000000000", "0000000000000000"}  # parts of the longer ones
    known = {vector["hex"] for section in ("headers", "values", "streams") for vector in VECTORS[section]}
    assert len(told) == 4
    assert told <= known


class Doubled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor([2.0, 3.0, 4.0, 5.0]))

    def forward(self, x):
        return x * self.factor


@pytest.fixture
def served():
    with Pool(Doubled(), workers=1) as pool:
        yield pool


def test_the_client_that_it_shows_works(served: Pool, tmp_path: Path):
    [program] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert program.count("\n") <= 36
    path = tmp_path / "client.py"
    path.write_text(program)
    folder = served._connection.directory
    done = subprocess.run(
        [sys.executable, "-I", str(path), folder], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "F32 [1, 4] 2.0 3.0 4.0 5.0\n"
