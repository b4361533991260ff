"""Memory of processes, measured as it must be: PSS, never RSS.

Reading ``smaps_rollup`` makes the kernel walk all page tables of a process, which takes milliseconds. So it is for
a thread in the background, and where it is done every second only for processes that have done something since.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from typing import Final, NamedTuple

#: A process whose faults and pages have changed by less than this is as it was when it was measured.
_NOTHING_BYTES: Final = 1 << 20


class ProcessMemory(NamedTuple):
    """What one process takes, in bytes.

    ``pss``: its part of anonymous and file pages, shared ones divided among their sharers. ``private``: its
    part of anonymous pages alone. Pages of regions count to neither: they are shared memory, counted once; but
    what evicted weights came back as is a file like others.
    """

    pss: int
    private: int


class _Traces(NamedTuple):
    """What tells, at little cost, whether a process has taken or given memory: page faults, and resident pages."""

    faults: int
    pages: int

    def is_near(self, other: _Traces) -> bool:
        """Whether there is next to nothing between the two."""
        most = _NOTHING_BYTES // mmap.PAGESIZE
        return abs(self.faults - other.faults) < most and abs(self.pages - other.pages) < most


class Sampler:
    """Measures the same processes again and again; for one thread."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[_Traces, ProcessMemory]] = {}

    def measure(self, pids: Iterable[int], *, is_exact: bool) -> dict[int, ProcessMemory]:
        """Measure these processes; the vanished are left out.

        Args:
            pids: which.
            is_exact: measure each; otherwise one that has taken and given less than a megabyte since it was last
                measured is told as it was then. What it shared, and shares no longer because others have ended,
                shows only in an exact measurement.
        """
        found: dict[int, tuple[_Traces, ProcessMemory]] = {}
        for pid in pids:
            traces = _read_traces(pid)
            known = self._known.get(pid)
            if traces is None:
                continue
            if known is not None and not is_exact and traces.is_near(known[0]):
                found[pid] = known
            elif (memory := read_memory(pid)) is not None:
                found[pid] = (traces, memory)
        self._known = found
        return {pid: memory for pid, (_, memory) in found.items()}


def read_memory(pid: int) -> ProcessMemory | None:
    """Return what a process takes, or None if it is gone or not ours to look at."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            lines = file.read().splitlines()[1:]
    except OSError:
        return None
    kilobytes = {name.rstrip(":"): int(value) for name, value, *_ in map(str.split, lines)}
    private = kilobytes.get("Pss_Anon", 0) * 1024
    return ProcessMemory(private + kilobytes.get("Pss_File", 0) * 1024, private)


def _read_traces(pid: int) -> _Traces | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # Of proc(5)'s fields the tenth and the twenty-fourth; the second, a name, may have anything in it.
            words = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return _Traces(int(words[10 - 3]), int(words[24 - 3]))
