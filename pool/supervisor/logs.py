"""What the pool's processes print: line by line, with who printed it, equal lines once with a count."""

from __future__ import annotations

import datetime
import json
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple, TypeAlias

#: How long equal lines of several processes are collected before they are told.
COLLECT_S: Final = 0.05
#: Lines that are kept for who asks later.
KEPT_LINES: Final = 2000
#: A line longer than this is cut into several.
_MAX_LINE_BYTES: Final = 8192


#: ``warning``: what the supervisor says of something that is not as it should be. All else is ``info``, such as
#: what a model prints, whatever it is: nobody here could tell.
Level: TypeAlias = Literal["info", "warning"]


class Line(NamedTuple):
    """One line, or several equal ones.

    Attributes:
        pid, role: the process, or the first of several.
        model, request: what was running, by its client's number of it; empty and 0 if nothing was.
        times: how many equal ones there were at once.
        at_s: when the first came, in seconds since 1970.
    """

    pid: int
    role: str
    model: str
    request: int
    text: str
    times: int
    level: Level
    at_s: float

    def __str__(self) -> str:
        about = f" {self.model}#{self.request}" if self.request else ""
        times = f" (x{self.times})" if self.times != 1 else ""
        return f"[{self.role} {self.pid}{about}] {self.text}{times}"

    def to_json(self) -> str:
        """Return it as a JSON object, on one line."""
        at = datetime.datetime.fromtimestamp(self.at_s, datetime.UTC)
        return json.dumps(
            {
                "time": at.isoformat(timespec="milliseconds"),
                "level": self.level,
                "role": self.role,
                "pid": self.pid,
                "model": self.model or None,
                "request": self.request or None,
                "text": self.text,
                "times": self.times,
            }
        )


class Logs:
    """Collects output and tells it, a moment later, to whoever listens.

    Args:
        tell: called with a list of lines.
        call_in: calls a function after so many seconds.
    """

    def __init__(
        self, tell: Callable[[list[Line]], None], call_in: Callable[[float, Callable[[], None]], None]
    ) -> None:
        self._tell = tell
        self._call_in = call_in
        self._partial: dict[Any, bytes] = {}
        self._collected: dict[tuple[str, str], Line] = {}
        self.kept: deque[Line] = deque(maxlen=KEPT_LINES)

    def printed(self, key: Any, data: bytes, source: Callable[[], tuple[int, str, str, int]]) -> None:
        """Take in what a process wrote; ``source`` tells pid, role, model and request for a line."""
        *lines, rest = (self._partial.pop(key, b"") + data).split(b"\n")
        while len(rest) > _MAX_LINE_BYTES:
            lines.append(rest[:_MAX_LINE_BYTES])
            rest = rest[_MAX_LINE_BYTES:]
        if rest:
            self._partial[key] = rest
        for line in lines:
            self.add(source(), line.decode(errors="replace").rstrip("\r"))

    def ended(self, key: Any, source: Callable[[], tuple[int, str, str, int]]) -> None:
        """Take in the end of a process: its last line may lack an end."""
        rest = self._partial.pop(key, b"")
        if rest:
            self.add(source(), rest.decode(errors="replace"))

    def add(self, source: tuple[int, str, str, int], text: str, level: Level = "info") -> None:
        """Take in one line."""
        if not self._collected:
            self._call_in(COLLECT_S, self.flush)
        pid, role, model, request = source
        seen = self._collected.get((role, text))
        if seen is None:
            self._collected[(role, text)] = Line(pid, role, model, request, text, 1, level, time.time())
        else:
            self._collected[(role, text)] = seen._replace(times=seen.times + 1)

    def flush(self) -> None:
        """Tell what was collected."""
        lines = list(self._collected.values())
        self._collected.clear()
        if lines:
            self.kept.extend(lines)
            self._tell(lines)
