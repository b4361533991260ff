"""What is compiled in wheels may be: mypyc does not tell of all that it cannot do."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[1]

#: What a compiled class may extend besides other compiled ones.
ALLOWED = {"NamedTuple", "Protocol", "ABC", "Exception", "Generic"}


@pytest.fixture(scope="module")
def compiled() -> set[Path]:
    """The files that `setup.py` has compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(setuptools, "setup", lambda **_: None)
        modules = runpy.run_path("setup.py")["COMPILED"]
    return {ROOT / folder / f"{name}.py" for folder, names in modules.items() for name in names}


def classes(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each class in a file, and the names of those that it extends."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            bases = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
            yield node.name, [ast.unparse(base).rpartition(".")[2] for base in bases]


def test_every_file_is_there(compiled: set[Path]):
    assert len(compiled) > 50
    assert all(path.is_file() for path in compiled)


def test_compiled_classes_extend_compiled_ones_alone(compiled: set[Path]):
    """The memory of one that extends an interpreted class is laid out wrongly, and nobody says so."""
    found = [one for path in compiled for one in classes(path)]
    allowed = ALLOWED | {name for name, _ in found}
    assert not [(name, bases) for name, bases in found if not allowed.issuperset(bases)]


def test_no_interpreted_class_extends_a_compiled_one(compiled: set[Path]):
    """Compiled code calls the methods of its own classes directly, and does not look for others."""
    names = {
        name for path in compiled for name, bases in classes(path) if not {"NamedTuple", "Protocol"} & {*bases}
    }
    others = {
        path for folder in ("pool", "protocol", "workers") for path in (ROOT / folder).rglob("*.py")
    } - compiled
    assert not [(path, name) for path in others for name, bases in classes(path) if names & {*bases}]


def test_compiled_modules_ask_for_no_attribute_that_may_fail_otherwise(compiled: set[Path]):
    """In compiled code `hasattr` is false whatever a property raises."""
    asked = {path.name for path in compiled if "hasattr(" in path.read_text()}
    assert asked <= {"parts.py", "streams.py", "values.py"}  # for ``__next__`` alone
