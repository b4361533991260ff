"""Inputs that are kept: in the repository those that once were got wrong, beside it what the search has found."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from .target import Target

ROOT: Final = Path(__file__).parents[2]
#: Inputs that some version got wrong, each the smallest of its kind; a test tries them all.
REGRESSIONS: Final = ROOT / "tests/fuzzing/corpus"
#: What the search goes on from, by target.
FOUND: Final = ROOT / ".venv/fuzzing-corpus"


def regressions(name: str) -> list[bytes]:
    """Return the inputs of a target that were got wrong once."""
    folder = REGRESSIONS / name
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


def failure(target: Target, data: bytes) -> str:
    """Return what goes wrong with an input, kind and line alone; empty if nothing does."""
    try:
        target.check(data)
    except Exception as error:  # noqa: BLE001 - whatever it is, it should not have been
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        line = last.tb_lineno if last is not None else 0
        return f"{type(error).__name__} in line {line}"
    return ""


def smallest(data: bytes, is_wrong: Callable[[bytes], bool]) -> bytes:
    """Return what is left of an input when no part of it can be taken away without its getting right."""
    size = len(data) // 2
    while size:
        start = 0
        while start < len(data):
            shorter = data[:start] + data[start + size :]
            if is_wrong(shorter):
                data = shorter
            else:
                start += size
        size //= 2
    return data


def keep(name: str, target: Target, data: bytes) -> Path | None:
    """Keep the smallest input that goes wrong as this one does; None if it goes right when it is tried again."""
    wrong = failure(target, data)
    if not wrong:
        return None
    data = smallest(data, lambda shorter: failure(target, shorter) == wrong)
    folder = REGRESSIONS / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(data).hexdigest()[:16]
    path.write_bytes(data)
    print(f"{name}: {wrong}; kept as {os.path.relpath(path)}", file=sys.stderr)
    return path
