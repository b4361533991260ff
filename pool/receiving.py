"""Which thread receives: a role that passes between those who wait.

Whoever waits for an answer takes the role if it is free, handles everything that arrives, and hands it on to
another waiter when its own answer is there. A switch of threads would cost more than all decoding. Only when
nobody waits, but answers are due (callbacks, asyncio, ``concurrent.futures.wait``), a background thread takes
the role, after a short delay in which a waiter may come.

A signal handler may raise in whoever waits, as Ctrl-C does, and the role must be free afterwards. So that it was
taken is noted by the very call that takes it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

#: How long the background thread leaves receiving to a thread that may be about to wait.
_DOZE_S: Final = 0.002
#: How long it goes on dozing when nothing is due, before it sleeps until it is called.
_AWAKE_S: Final = 0.05


class Waitable(Protocol):
    """What can be waited for."""

    @property
    def condition(self) -> threading.Condition:
        """Notified when `done` may have changed."""
        ...

    def done(self) -> bool:
        """Whether waiting is over."""
        ...


class Receiver:
    """Has exactly one thread receive at a time.

    Args:
        read: handles what has arrived; true if there may be more.
        sleep: returns when something may have arrived, or after so many milliseconds.
        is_due: whether an answer is still to come.
        is_over: whether no answer will come any more.
    """

    def __init__(
        self,
        read: Callable[[], bool],
        sleep: Callable[[float | None], None],
        *,
        is_due: Callable[[], bool],
        is_over: Callable[[], bool],
    ) -> None:
        self._read = read
        self._sleep = sleep
        self._is_due = is_due
        self._is_over = is_over
        self.role = threading.Lock()
        self._followers: dict[Waitable, None] = {}
        self._starting = threading.Lock()
        self._pump: threading.Thread | None = None
        self._pump_wanted = threading.Event()
        self._pump_hurry = threading.Event()

    @property
    def is_active(self) -> bool:
        """Whether some thread receives, and may be asleep."""
        return self.role.locked()

    def read_once(self) -> None:
        """Handle what has arrived, unless another thread does."""
        held: list[bool] = []
        try:
            held.extend(map(self.role.acquire, (False,)))
            if held[0]:
                self._read()
        finally:
            if held == [True]:
                self.role.release()
                self._wake_follower()

    def wait(self, waitable: Waitable, timeout: float | None = None) -> None:
        """Return when the waitable is done, or after ``timeout`` seconds; receive meanwhile if nobody does."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._followers[waitable] = None
        try:
            while self._is_to_be_awaited(waitable, deadline):
                continue
        finally:
            self._followers.pop(waitable, None)
            if self._followers and not self.role.locked():
                self._wake_follower()  # this one was woken to take the role, and left without

    def _is_to_be_awaited(self, waitable: Waitable, deadline: float | None) -> bool:
        """Wait for a while, or receive; return whether there is a reason to go on."""
        held: list[bool] = []
        try:
            with waitable.condition:
                if waitable.done():
                    return False
                left_s = None if deadline is None else deadline - time.monotonic()
                if left_s is not None and left_s <= 0:
                    return False
                held.extend(map(self.role.acquire, (False,)))
                if not held[0]:
                    waitable.condition.wait(left_s)
            if held[0]:
                self._receive_until(waitable.done, deadline)
        finally:
            if held == [True]:
                self.role.release()
                self._wake_follower()
        return True

    def keep_receiving(self, *, urgent: bool = False) -> None:
        """See to it that answers are received although nobody waits for them; within 2 ms, or at once."""
        if not self._pump_wanted.is_set() or (urgent and not self._pump_hurry.is_set()):
            with self._starting:
                if self._pump is None:
                    pump = threading.Thread(target=self._run_pump, name="onecopy-receiver", daemon=True)
                    pump.start()
                    self._pump = pump
            self._pump_wanted.set()
            if urgent:
                self._pump_hurry.set()

    def wake_up(self) -> None:
        """Let the background thread look around, because something ended."""
        self._pump_wanted.set()
        self._pump_hurry.set()

    def join(self) -> None:
        """Wait for the background thread, once nothing is to be received any more."""
        self.wake_up()
        if self._pump is not None and self._pump is not threading.current_thread():
            self._pump.join()

    def _run_pump(self) -> None:
        idle_since = time.monotonic()
        while not self._is_over():
            self._pump_wanted.wait()
            self._pump_hurry.wait(_DOZE_S)
            self._pump_hurry.clear()
            if self._is_due():
                idle_since = time.monotonic()
                if self.role.acquire(blocking=False):
                    try:
                        self._receive_until(lambda: not self._is_due(), None)
                    finally:
                        self.role.release()
                        self._wake_follower()
            elif time.monotonic() - idle_since > _AWAKE_S:
                self._pump_wanted.clear()
                if self._is_due():  # submitted just before the flag was cleared
                    self._pump_wanted.set()

    def _wake_follower(self) -> None:
        """Have one that still waits take the role over."""
        for follower in list(self._followers):
            if not follower.done():
                with follower.condition:
                    follower.condition.notify_all()
                return

    def _receive_until(self, done: Callable[[], bool], deadline: float | None) -> None:
        """Handle what arrives until done, too late, or the supervisor is lost."""
        timeout_ms = None
        has_more = False
        while not (done() or self._is_over()):
            if deadline is not None:
                timeout_ms = (deadline - time.monotonic()) * 1000
                if timeout_ms <= 0:
                    return
            if not has_more:
                self._sleep(timeout_ms)
            has_more = self._read()
