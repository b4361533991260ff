"""How a run ends that nobody waits for any more: at its next safe point.

That is before it begins, between the calls of a batch, between the items of a stream, and in the midst of a call
wherever the model calls one of its modules. For the last a signal comes, and only then torch is asked to look
before each module: a run that nobody gives up pays nothing for this.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook

from ..protocol.errors import RequestCancelled
from ..protocol.marks import INTERRUPT_SIGNAL, Marks
from ..protocol.messages import Record
from .inbox import Inbox


class Interrupted(BaseException):
    """The run is given up. Not an ``Exception``: a model that goes on after errors must not go on after this."""


def cancelled() -> Record:
    """Return what a run that was given up is answered with."""
    return RequestCancelled("the request was cancelled while it ran").to_record()


class Interrupts:
    """Tells the run that is under way that it is given up; made by the thread that runs.

    Args:
        marks: where the supervisor notes that there is something to be read about that.
        inbox: where that is read.
    """

    def __init__(self, marks: Marks, inbox: Inbox) -> None:
        self._marks = marks
        self._inbox = inbox
        self._attempt = 0
        self._hook: Any = None
        self._thread = threading.get_ident()
        signal.signal(INTERRUPT_SIGNAL, self._signalled)
        signal.siginterrupt(INTERRUPT_SIGNAL, False)  # or system calls of C code would fail

    def is_given_up(self, attempt: int) -> bool:
        """Whether nobody waits for an attempt; those before it are over."""
        inbox = self._inbox
        if self._marks.interrupts != inbox.interrupts:
            inbox.read_interrupts(self._marks.interrupts)
            inbox.given_up = {one for one in inbox.given_up if one >= attempt}
        return attempt in inbox.given_up

    def start(self, attempt: int) -> None:
        """From here on a module may be where the attempt ends.

        Raises:
            Interrupted: it is given up already.
        """
        self._attempt = attempt
        self.check()

    def check(self) -> None:
        """Be a safe point.

        Raises:
            Interrupted: the attempt is given up.
        """
        if self.is_given_up(self._attempt):
            raise Interrupted

    def at(self, call: int) -> None:
        """Be a safe point before one of many calls; which of them, from 1.

        Raises:
            Interrupted: the attempt is given up.
        """
        self._marks.call = call
        self.check()

    def end(self) -> None:
        """What runs from here on runs to its end."""
        self._attempt = self._marks.call = 0
        self._remove_hook()

    def _signalled(self, *_: Any) -> None:
        # This may be in the midst of anything, such as reading; a module is called in the midst of the model only.
        if self._attempt and self._hook is None:
            self._hook = register_module_forward_pre_hook(self._before_module)

    def _before_module(self, *_: Any) -> None:
        if self._attempt and threading.get_ident() == self._thread:
            self.check()
            self._remove_hook()

    def _remove_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
