"""What supervisor and worker tell one another by memory alone.

Both map one page, in which each child has a line of three numbers: the attempt that the worker has begun, which
the supervisor can ask for at any moment, even once the worker is dead; if that is of many calls, which of them it
is at; and how many `Interrupt` messages there were for it, so that a worker needs to look for them only if there
are more than it has read::

    │ begun │ call │ interrupts │      by the worker │ by the supervisor

A number is written at once, or not at all.
"""

from __future__ import annotations

import mmap
import signal
from typing import Final

_NUMBERS: Final = 3
LINE_BYTES: Final = 8 * _NUMBERS

#: Sent to a worker that has begun an attempt which is given up. The first real-time signals are the C library's.
INTERRUPT_SIGNAL: Final = signal.SIGRTMIN + 3


class Marks:
    """The line of one child.

    Args:
        page: the shared memory.
        index: which line of it.
    """

    def __init__(self, page: mmap.mmap, index: int) -> None:
        self._line = memoryview(page).cast("q")[index * _NUMBERS : (index + 1) * _NUMBERS]

    @property
    def begun(self) -> int:
        """The attempt that the worker has begun and not answered, or 0."""
        return self._line[0]

    @begun.setter
    def begun(self, attempt: int) -> None:
        self._line[0] = attempt

    @property
    def call(self) -> int:
        """Which call the worker is at of an attempt of many, from 1; 0: of none, or all at once."""
        return self._line[1]

    @call.setter
    def call(self, number: int) -> None:
        self._line[1] = number

    @property
    def interrupts(self) -> int:
        """How many `Interrupt` messages there were."""
        return self._line[2]

    @interrupts.setter
    def interrupts(self, count: int) -> None:
        self._line[2] = count

    def clear(self) -> None:
        """Make the line ready for another child."""
        self.begun = self.call = self.interrupts = 0
