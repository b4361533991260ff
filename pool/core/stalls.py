"""Streams whose readers take nothing: each keeps a worker and its slot from everybody else, so not for ever."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from .requests import Request

#: How long a stream waits for its reader.
STALL_S: Final = 60.0


class Stalls:
    """The streams that wait for their readers, those first that do for longest."""

    def __init__(self) -> None:
        self._late_at: OrderedDict[Request, float] = OrderedDict()

    def begin(self, request: Request, now: float) -> None:
        """A stream waits for its reader."""
        self._late_at[request] = now + STALL_S

    def end(self, request: Request) -> None:
        """A stream goes on, or is over."""
        self._late_at.pop(request, None)

    def late(self, now: float) -> list[Request]:
        """Return the streams that have waited for too long."""
        late: list[Request] = []
        for request, late_at in self._late_at.items():
            if late_at > now:
                break
            late.append(request)
        return late

    def wake_at(self) -> float:
        """Return when the next one will have; infinity for never."""
        return next(iter(self._late_at.values()), float("inf"))
