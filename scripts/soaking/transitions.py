"""Which changes of state the supervisor has made: counted where they are made, read from outside.

The supervisor maps a small file and counts in it; whoever has the path reads. It is told to by the environment,
see `counted`, and nothing of the product knows of it.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Final, NamedTuple

from onecopy.protocol.states import TABLES, observe

#: The variable that names the file.
VARIABLE: Final = "ONECOPY_SOAK_TRANSITIONS"
_COUNT: Final = struct.Struct("=Q")


class Transition(NamedTuple):
    """A line of a table of `protocol.states`."""

    kind: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.before} -> {self.after}"


ALL: Final = [
    Transition(kind, before, after)
    for kind, table in TABLES.items()
    for before, nexts in table.items()
    for after in nexts
]
#: What pools on a GPU alone do: a storm is on the processor.
_ON_GPUS: Final = {Transition("weight set", "evicted", "building")}


class Transitions:
    """The counts of a file.

    Args:
        path: the file; made if it is not there.
    """

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, len(ALL) * _COUNT.size)
            self._map = mmap.mmap(fd, len(ALL) * _COUNT.size)
        finally:
            os.close(fd)

    def read(self) -> dict[Transition, int]:
        """Return how often each that can be made here was made so far."""
        counts = {one: _COUNT.unpack_from(self._map, index * _COUNT.size)[0] for index, one in enumerate(ALL)}
        return {one: count for one, count in counts.items() if one not in _ON_GPUS}

    def count_here(self) -> None:
        """Count what this process does from now on."""
        places = {one: index * _COUNT.size for index, one in enumerate(ALL)}
        counts = self._map

        def count(kind: str, before: str, after: str) -> None:
            place = places[kind, before, after]
            _COUNT.pack_into(counts, place, _COUNT.unpack_from(counts, place)[0] + 1)

        observe(count)

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()
