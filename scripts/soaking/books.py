"""Books on requests, kept by somebody who knows nothing of how a pool works.

Each request that a pool has accepted is answered once, rightly, or fails once, for a reason that is known. The
books are told what was asked and what came of it, and say where that is not so. They are the same for a real pool
and for a simulated one: what an answer should be is told by who asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from .acts import Acts

#: What sums of times are off by.
_ROUNDING_S: Final = 1e-6
#: Complaints that are kept word by word; the rest are counted.
_KEPT: Final = 50


class Key(NamedTuple):
    """Whose request it is, and which of theirs."""

    client: Hashable
    number: int


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was accepted.

    Attributes:
        at: when it was sent, in seconds.
        model: what it asks for.
        what: from which its right answer is recomputed; it starts with its tag.
        retries: how many deaths of its worker it survives.
        timeout_s: when it may fail for being late; 0: never.
        may: the errors that it asks for itself.
        is_stream: whether one death may end it, because it had begun.
    """

    at: float
    model: str
    what: tuple[Any, ...]
    retries: int = 0
    timeout_s: float = 0.0
    may: tuple[str, ...] = ()
    is_stream: bool = False


class Books:
    """What is owed, what was paid, and what is wrong with it.

    Args:
        complaint: returns what is wrong with an answer: a sentence, or nothing.
        acts: tells which errors were allowed.

    Attributes:
        outcomes: how many requests ended how: ``answered``, the code of an error, ``cancelled``, ``client gone``.
        accepted: how many there were.
        violations: what must not have happened, the first few in words.
        wrong: how often that was.
    """

    def __init__(self, complaint: Callable[[Asked, Any, float], str], acts: Acts) -> None:
        self._complaint = complaint
        self._acts = acts
        self._open: dict[Key, Asked] = {}
        self._closed: dict[Hashable, set[int]] = {}
        self.outcomes: Counter[str] = Counter()
        self.accepted = 0
        self.violations: list[str] = []
        self.wrong = 0

    @property
    def unanswered(self) -> int:
        """How many requests are open."""
        return len(self._open)

    def is_open(self, key: Key) -> bool:
        """Whether a request has not ended."""
        return key in self._open

    def is_owed(self, client: Hashable) -> bool:
        """Whether a client waits for anything."""
        return any(key.client == client for key in self._open)

    def asked(self, key: Key, asked: Asked) -> None:
        """Note a request."""
        if key in self._open or key.number in self._closed.get(key.client, ()):
            self.complain(f"{key} was asked twice")
            return
        self.accepted += 1
        self._open[key] = asked

    def answered(self, key: Key, answer: Any, at: float) -> None:
        """Note an answer."""
        asked = self._close(key, f"answered with {answer!r:.200}")
        if asked is None:
            return
        self.outcomes["answered"] += 1
        if wrong := self._complaint(asked, answer, at):
            self.complain(f"{key} for {asked.model}, {asked.what!r:.200}: {wrong}")

    def failed(self, key: Key, code: str, at: float, message: str = "") -> None:
        """Note an error."""
        asked = self._close(key, f"failed with {code}: {message}")
        if asked is None:
            return
        self.outcomes[code] += 1
        if reason := self._indefensible(asked, code, at):
            self.complain(
                f"{key} for {asked.model}, {asked.what!r:.200} failed with {code}: {reason}; {message:.300}"
            )

    def given_up(self, key: Key) -> None:
        """Note that its client wants no answer any more."""
        if self._close(key, "given up") is not None:
            self.outcomes["cancelled"] += 1

    def left(self, client: Hashable) -> None:
        """Note that a client is no more: nobody is owed what it asked."""
        for key in [key for key in self._open if key.client == client]:
            del self._open[key]
            self.outcomes["client gone"] += 1
        self._closed.pop(client, None)

    def settle(self, client: Hashable = None) -> None:
        """A client has ended in good order, or all have: what it has open is lost."""
        for key in [key for key in self._open if client is None or key.client == client]:
            asked = self._open.pop(key)
            self.outcomes["lost"] += 1
            self.complain(f"{key} for {asked.model}, {asked.what!r:.200}, was never answered")
        self._closed.pop(client, None)

    def check_sums(self) -> None:
        """See that as many have ended, or are open, as were accepted."""
        known = sum(self.outcomes.values()) + len(self._open)
        if known != self.accepted:
            self.complain(f"{self.accepted:,} were accepted, and {known:,} are known")

    def complain(self, text: str) -> None:
        """Note what must not have happened."""
        self.wrong += 1
        if len(self.violations) < _KEPT:
            self.violations.append(text)

    def _close(self, key: Key, how: str) -> Asked | None:
        asked = self._open.pop(key, None)
        closed = self._closed.setdefault(key.client, set())
        if asked is None:
            is_over = key.number in closed
            self.complain(f"{key} was {how}, and {'had ended before' if is_over else 'nobody had asked'}")
        else:
            closed.add(key.number)
        return asked

    def _indefensible(self, asked: Asked, code: str, at: float) -> str:
        """Return why an error should not be; nothing if it may."""
        if code == "deadline_exceeded" and asked.timeout_s:
            late_s = at - asked.at
            return (
                "" if late_s + _ROUNDING_S >= asked.timeout_s else f"after {late_s:.3f} of {asked.timeout_s:.3f} s"
            )
        if code in asked.may or self._acts.allows(code, asked.model, asked.at, at):
            return ""
        if code == "worker_died":
            deaths = self._acts.deaths(asked.at, at)
            needed = 1 if asked.is_stream else asked.retries + 1
            return "" if deaths >= needed else f"{deaths} workers died meanwhile, and it survives {asked.retries}"
        return "nothing that was done allows that"
