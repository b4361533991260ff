"""What the core's events cost: in real time, and in steps, which are the same on every machine."""

from __future__ import annotations

import gc
import sys
from array import array
from collections.abc import Generator
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any

from onecopy.pool.core.events import Event
from onecopy.pool.supervisor.__main__ import COLLECT_AFTER

from .machine import Machine


@contextmanager
def collecting_as_the_supervisor() -> Generator[None]:
    """Let garbage be collected as seldom as in the process that the core is made for."""
    before = gc.get_threshold()
    gc.set_threshold(*COLLECT_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*before)


class Meter:
    """Times each event of a machine, from now on: to handle it, and to say when the next timer is due.

    Attributes:
        times_ns: what each event took, by its kind, in their order.
    """

    def __init__(self, machine: Machine) -> None:
        self.times_ns: dict[type, array[int]] = {}
        self._handle = machine.core.handle
        self._wake_at = machine.core.wake_at
        machine.handle = self.handle

    def handle(self, event: Event, now: float) -> list[Any]:
        """Do what `Core.handle` does."""
        started_ns = perf_counter_ns()
        out = self._handle(event, now)
        self._wake_at()
        ended_ns = perf_counter_ns()
        self.times_ns.setdefault(type(event), array("q")).append(ended_ns - started_ns)
        return out

    def clear(self) -> None:
        """Forget what was measured."""
        for times_ns in self.times_ns.values():
            del times_ns[:]


class StepCounter:
    """Counts the steps that a machine's events take, from now on: lines of Python, calls and returns. Slow.

    Attributes:
        steps: how many they were.
    """

    def __init__(self, machine: Machine) -> None:
        self.steps = 0
        self._handle = machine.core.handle
        machine.handle = self.handle

    def handle(self, event: Event, now: float) -> list[Any]:
        """Do what `Core.handle` does."""
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            return self._handle(event, now)
        finally:
            sys.settrace(before)

    def _trace(self, _frame: object, _what: str, _argument: object) -> Any:
        self.steps += 1
        return self._trace
