"""Looks at what workers are at: ends what they run for nobody, and nothing else; tells whom a call keeps waiting.

A worker may have begun an attempt, may hold it behind others, or may just have answered it. A message tells which
it is, and a number in shared memory that there is such a message: a worker looks at that before it begins another.
And who shall be killed is first stopped: what a stopped worker has begun it cannot answer any more, and it begins
nothing else.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from typing import Final

from ...protocol import messages
from ...protocol.marks import INTERRUPT_SIGNAL
from ..core import instructions
from .processes import Child, Processes

#: How often it is looked whether a worker has stopped: it does so as soon as it gets a core.
_LOOK_S: Final = 0.001
#: Until when that is waited for. What cannot stop for so long is stuck in the kernel.
_STOP_S: Final = 5.0


class Interrupts:
    """Carries out `instructions.Interrupt` and `instructions.TellLate`.

    Args:
        processes: whose attempts these are.
        to_client: sends messages.
        call_at: calls at a time of the monotonic clock.
        note: takes sentences for the log.
    """

    def __init__(
        self,
        processes: Processes,
        to_client: Callable[[instructions.ToClient], None],
        call_at: Callable[[float, Callable[[], None]], None],
        note: Callable[[str], None],
    ) -> None:
        self._processes = processes
        self._to_client = to_client
        self._call_at = call_at
        self._note = note

    def interrupt(self, order: instructions.Interrupt) -> None:
        """End an attempt, if it is under way; later, if that is still to come."""
        child = self._processes.children.get(order.child)
        if child is None:
            return
        child.marks.interrupts += 1
        self._processes.send(order.child, messages.Interrupt(order.attempt), [], [])
        if child.marks.begun != order.attempt:
            return
        if order.kill:
            self._kill(child, order.attempt, time.monotonic() + _STOP_S)
        else:
            _signal(child, INTERRUPT_SIGNAL)

    def tell_late(self, order: instructions.TellLate) -> None:
        """Tell a client at which of its calls a worker is."""
        child = self._processes.children.get(order.child)
        call = child.marks.call if child is not None else 0
        if child is not None and call and child.marks.begun == order.attempt:
            message = messages.Late(order.request, call - 1)
            self._to_client(instructions.ToClient(order.client, message, []))

    def _kill(self, child: Child, attempt: int, until: float) -> None:
        """Kill a worker that has begun an attempt, once it has stopped; if it has answered it, let it go on."""
        if child.is_dead or child.number not in self._processes.children:
            return
        _signal(child, signal.SIGSTOP)
        if _is_stopped(child.pid):
            if child.marks.begun == attempt:
                self._processes.signal(child.number, signal.SIGKILL)
            else:
                _signal(child, signal.SIGCONT)
        elif time.monotonic() < until:
            self._call_at(time.monotonic() + _LOOK_S, lambda: self._kill(child, attempt, until))
        else:
            self._note(f"worker {child.pid} cannot be stopped, so it is not killed: its run may go on for a while")
            _signal(child, signal.SIGCONT)
            _signal(child, INTERRUPT_SIGNAL)


def _signal(child: Child, signum: int) -> None:
    """Signal a worker, but nothing that it started."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(child.pidfd, signum)


def _is_stopped(pid: int) -> bool:
    """Whether the first thread of a process has stopped; it is the one that runs models."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] == b"T"
    except (FileNotFoundError, ProcessLookupError):
        return False
