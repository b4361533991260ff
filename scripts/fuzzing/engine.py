"""One target for some time, guided by what its inputs reach.

``python -m fuzzing.engine TARGET OPTION...``, the options being libFuzzer's.

This is a process of its own: libFuzzer ends the one that it runs in, and what it watches must be imported by it.
"""

from __future__ import annotations

import sys
from random import Random

import atheris

#: What is watched: branches here are what the search goes after.
WATCHED = ["onecopy.protocol", "onecopy.pool", "onecopy.workers"]

with atheris.instrument_imports(include=WATCHED, enable_loader_override=False):
    from .targets import TARGETS


def main() -> None:
    """Search until the time is up or something goes wrong."""
    target = TARGETS[sys.argv[1]]

    def change(data: bytes, max_bytes: int, seed: int) -> bytes:
        random = Random(seed)
        changed = atheris.Mutate(data, max_bytes) if random.random() < 0.4 else target.changed(data, random)
        return changed[:max_bytes]

    atheris.Setup([sys.argv[0], *sys.argv[2:]], target.check, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
