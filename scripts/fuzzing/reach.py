"""How much of the parsers is reached by the inputs that were found: each is tried once more, branches counted."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Final

import coverage

from .corpus import FOUND, ROOT, regressions

#: What reads no bytes from outside: memory and pickles of models, tables, folders.
_OTHERS: Final = (
    "contents", "culprit", "filling", "frozen", "granter", "leftovers", "mapping", "marks", "origins", "pieces",
    "reducers", "skeleton", "states",
)  # fmt: skip


def main(names: Sequence[str]) -> None:
    """Print the branch coverage of protocol/ by the inputs of these targets, file by file."""
    counter = coverage.Coverage(
        branch=True,
        data_file=None,
        source=[str(ROOT / "protocol")],
        omit=[str(ROOT / "protocol" / f"{name}.py") for name in _OTHERS],
        config_file=False,
    )
    counter.start()
    from .targets import TARGETS  # the parsers are imported while they are counted

    for name in names:
        target = TARGETS[name]
        folder = FOUND / name
        found = [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []
        for data in [*target.seeds(), *regressions(name), *found]:
            with contextlib.suppress(Exception):  # what goes wrong was told already
                target.check(data)
    counter.stop()
    counter.report(skip_empty=True, file=sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
