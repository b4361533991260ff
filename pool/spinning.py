"""Waiting without sleep, for a moment: a small request that is alone in a pool is answered sooner.

A process that sleeps between two messages finds its code and data displaced from the caches by whoever ran
meanwhile, and its core perhaps halted. Measured on two cores, requests of 1 kB that follow one another take four
fifths of the time if the supervisor does not sleep in between, and of that three quarters if the client does not
either: the worker wakes up on a core that is awake. They sleep where others have use for their cores.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Final

#: For so long a supervisor looks again and again; a wait that was longer is expected to be followed by others that
#: are. Far longer than it waits for a small request while nobody sleeps: where cores are slow, or share what they
#: compute with, everything takes thrice as long if all sleep, and would be expected to for ever.
SPIN_S: Final = 1e-3
#: So long does a client: a worker runs meanwhile, and the supervisor twice.
CLIENT_SPIN_S: Final = 2e-3
#: More calls than these, in one message, run for longer than it takes to wake up: the worker needs the core more.
#: Of 32 quick calls under way on two cores, 4 % more are answered if the client sleeps then.
CLIENT_SPIN_CALLS: Final = 8
#: A core that was offered to others and is back only after this was of use to them: they have it, for so long.
TAKEN_S: Final = 500e-6
REST_S: Final = 10e-3

#: Lets others have the core. Threads of this process go on meanwhile, which `os.sched_yield` keeps from it before
#: Python 3.12.
give_core: Callable[[], object] = os.sched_yield if sys.version_info >= (3, 12) else ctypes.CDLL(None).sched_yield

Poll = Callable[[float | None], list[tuple[int, int]]]


class Spinner:
    """Waits for what an epoll tells; looks again and again first, if the last wait was as short as that.

    Args:
        poll: the epoll's.
        may_spin: tells whether it may look so now.
        clock: the monotonic one.
        spin_s: for how long.
    """

    def __init__(
        self,
        poll: Poll,
        may_spin: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        spin_s: float = SPIN_S,
    ) -> None:
        self._poll = poll
        self._may_spin = may_spin
        self._clock = clock
        self._spin_s = spin_s
        self._was_short = False
        self._rests_until = 0.0

    def wait(self, timeout_s: float | None) -> list[tuple[int, int]]:
        """Return what there is as soon as there is something, or nothing after a time.

        Args:
            timeout_s: that time, which looking may exceed a little; None: there is no end to it.
        """
        if timeout_s == 0:
            return self._poll(0)
        began_at = self._clock()
        found: list[tuple[int, int]] = []
        if self._was_short and began_at >= self._rests_until and self._may_spin():
            found = self._look(began_at)
        found = found or self._poll(timeout_s)
        self._was_short = self._clock() - began_at < self._spin_s
        return found

    def _look(self, began_at: float) -> list[tuple[int, int]]:
        """Look until there is something, or it takes too long; let others run in between."""
        now = began_at
        while now - began_at < self._spin_s:
            if found := self._poll(0):
                return found
            give_core()
            before, now = now, self._clock()
            if now - before > TAKEN_S:
                self._rests_until = now + REST_S
        return []
