"""What was done to a pool, and which errors that allows: what a failure may say in its defence."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

#: A death is noted before the signal is sent, and a request asked before it is: what lies between, in seconds.
_SLACK_S: Final = 0.5
#: Stands for every model.
ANY: Final = "*"
_NEVER: Final = float("inf")


@dataclass
class Span:
    """A time in which an error is allowed, from its beginning until the act has no effect any more."""

    from_s: float
    to_s: float = _NEVER


class Acts:
    """Everything that was done, on one clock, in seconds."""

    def __init__(self) -> None:
        self._deaths: list[float] = []
        self._spans: defaultdict[tuple[str, str], list[Span]] = defaultdict(list)

    def died(self, at: float, count: int = 1) -> None:
        """Note that so many workers were killed, or may have been."""
        for _ in range(count):
            insort(self._deaths, at)

    def allow(self, code: str, model: str, at: float) -> Span:
        """Note that requests for a model, or for any (``ANY``), may fail with an error from now on.

        It is over when `to_s` of what is returned has passed.
        """
        span = Span(at)
        self._spans[code, model].append(span)
        return span

    def deaths(self, from_s: float, to_s: float) -> int:
        """Return how many workers died in a time."""
        return bisect_right(self._deaths, to_s + _SLACK_S) - bisect_left(self._deaths, from_s - _SLACK_S)

    def allows(self, code: str, model: str, from_s: float, to_s: float) -> bool:
        """Whether an error was allowed at any time between the two."""
        spans = [*self._spans.get((code, model), ()), *self._spans.get((code, ANY), ())]
        return any(span.from_s - _SLACK_S <= to_s and from_s <= span.to_s + _SLACK_S for span in spans)
