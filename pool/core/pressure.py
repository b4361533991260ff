"""Workers whose private memory grows too much: they are replaced between their runs.

What a worker keeps of runs that are over, caches of libraries, fragments of its heap, goes back to the system with
the worker alone.
"""

from __future__ import annotations

from typing import Final

from .events import MemoryMeasured
from .fleet import Fleet
from .instructions import Instruction, Report
from .ledger import Ledger

#: When memory runs short, a worker is replaced that has so many times as much as the one that has least, ...
FAT: Final = 2.0
#: ... and at most one in this time, because a new one first takes memory too.
PAUSE_S: Final = 10.0

_NEVER: Final = float("-inf")


class Pressure:
    """Looks at what was measured.

    Args:
        ledger: what there is.
        fleet: who replaces workers.
        max_private_bytes: what a worker may have; 0: however much.
        out: where instructions go.
    """

    def __init__(self, ledger: Ledger, fleet: Fleet, max_private_bytes: int, out: list[Instruction]) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._max_private_bytes = max_private_bytes
        self._out = out
        self._last_at = _NEVER

    def look(self, event: MemoryMeasured, now: float) -> None:
        """Have workers replaced that have too much."""
        if self._max_private_bytes:
            for child, size_bytes in event.workers.items():
                if size_bytes > self._max_private_bytes:
                    self._replace(child, f"{size_bytes:,} bytes, and may have {self._max_private_bytes:,}")
        if self._ledger.free_bytes < 0 and event.workers and now - self._last_at >= PAUSE_S:
            fattest = max(event.workers, key=lambda child: event.workers[child])
            most_bytes, least_bytes = event.workers[fattest], min(event.workers.values())
            if most_bytes > FAT * least_bytes:
                self._last_at = now
                self._replace(fattest, f"{most_bytes:,} bytes, another {least_bytes:,}, and memory runs short")

    def _replace(self, child: int, reason: str) -> None:
        worker = self._fleet.workers.get(child)
        if worker is None or worker.is_outdated or worker.life.state not in ("idle", "busy"):
            return
        self._fleet.workers.outdate(worker)
        self._out.append(Report(f"worker {worker.pid} is replaced: its private memory has {reason}"))
