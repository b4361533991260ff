"""How many workers run at once: as many as bring the most done, found by trying.

More runs at once are not always more work done: those that are bound by memory, or by a cache that they share,
hold each other up. So while there is more to do than can be done, one worker more or fewer is tried for a while
now and then, and kept only if clearly more was done: hill climbing with hysteresis.
"""

from __future__ import annotations

from typing import Final

#: How long is looked at before two numbers are compared, and over how many attempts at least.
WINDOW_S: Final = 2.0
LEAST_ATTEMPTS: Final = 50
#: So much more must be done for another number to be kept.
GAIN: Final = 1.05
#: Pauses before the first trial and between others, and the longest, to which failed ones double it: what short
#: jobs could gain they would lose in trials.
FIRST_PAUSE_S: Final = 30.0
LONGEST_PAUSE_S: Final = 600.0


class Concurrency:
    """The number of workers that may run at once.

    Args:
        most: how many there can be.
        is_adaptive: whether fewer may be better; else it stays at that.

    Attributes:
        limit: how many there may be now.
        is_adaptive: whether that may change.
    """

    def __init__(self, most: int, *, is_adaptive: bool) -> None:
        self.limit = most
        self._most = most
        self.is_adaptive = is_adaptive and most > 1
        self._kept = most
        self._step = -1
        self._rate = 0.0  # what was done in a second with the number that is kept, while another is tried
        self._pause_s = FIRST_PAUSE_S
        self._try_at = 0.0  # 0: nothing was compared yet
        self._began_at: float | None = None
        self._done_s = 0.0
        self._attempts = 0
        self._last = "nothing else was tried yet: there was not more to do than could be done for long enough"

    @property
    def note(self) -> str:
        """Why it is what it is, in a sentence."""
        if not self.is_adaptive:
            return "fixed"
        return self._last if self.limit == self._kept else f"trying whether {self.limit} do more than {self._kept}"

    def ended(self, work_s: float, now: float, *, is_saturated: bool) -> None:
        """Take in that an attempt ended.

        Args:
            work_s: how much it was, on a scale that does not depend on how many run at once.
            now: when.
            is_saturated: whether something waits for a worker.
        """
        if not self.is_adaptive:
            return
        if not is_saturated:  # what is done now is what there is to do
            self._give_up_trial(now)
            return
        if self._began_at is None:
            self._began_at = now
            return
        self._done_s += work_s
        self._attempts += 1
        elapsed_s = now - self._began_at
        if elapsed_s >= WINDOW_S and self._attempts >= LEAST_ATTEMPTS:
            self._compare(self._done_s / elapsed_s, now)
            self._forget()

    def _compare(self, rate: float, now: float) -> None:
        self._try_at = self._try_at or now + FIRST_PAUSE_S
        if self.limit == self._kept:
            if now >= self._try_at:
                self._rate = rate
                self.limit = self._next()
            return
        ratio = rate / self._rate if self._rate else 1.0
        self._last = f"{self.limit} at once were tried, and did {ratio:.2f} times what {self._kept} do"
        if ratio > GAIN:
            self._kept = self.limit
            self._pause_s, self._try_at = FIRST_PAUSE_S, now
        else:
            self._step = -self._step
            self._try_at = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        self.limit = self._kept

    def _next(self) -> int:
        """Return the number that is tried next."""
        if not 1 <= self._kept + self._step <= self._most:
            self._step = -self._step
        return self._kept + self._step

    def _give_up_trial(self, now: float) -> None:
        if self.limit != self._kept:
            self.limit = self._kept
            self._try_at = now + FIRST_PAUSE_S
        self._forget()

    def _forget(self) -> None:
        self._began_at, self._done_s, self._attempts = None, 0.0, 0
