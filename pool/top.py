"""`onecopy top`: how a pool does, again and again, until q is pressed.

What processes take is measured by the supervisor, which costs milliseconds for each. So it is asked for that less
often where there are many: for a twentieth of the time at most.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Generator
from typing import Final

from rich.console import Console, RenderableType
from rich.live import Live

from .client import Pool
from .memory_views import Memory, Told
from .tables import console
from .top_picture import picture

#: What part of the time memory may be measured.
_MEASURING: Final = 0.05


class Watcher:
    """Asks a pool how it does.

    Args:
        pool: which.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._memory: Memory | None = None
        self._measure_at = 0.0

    def look(self) -> Told:
        """Return how the pool does now."""
        started_at = time.monotonic()
        if self._memory is None or started_at >= self._measure_at:
            self._memory = self._pool.memory()
            now = time.monotonic()
            self._measure_at = now + (now - started_at) / _MEASURING
        return Told(time.monotonic(), self._pool.status(), self._memory)


def show_once(pool: Pool) -> None:
    """Print one picture."""
    console().print(picture(Watcher(pool).look(), None))


def show(pool: Pool, interval_s: float) -> None:
    """Show a picture on the terminal until q or Ctrl-C is pressed; without one, print picture after picture."""
    screen, watcher = console(), Watcher(pool)
    before = watcher.look()
    with contextlib.suppress(KeyboardInterrupt), _keys() as has_keys, _drawn_on(screen) as draw:
        draw(picture(before, None))
        while not _quit_within(interval_s, has_keys=has_keys):
            now = watcher.look()
            draw(picture(now, before))
            before = now


@contextlib.contextmanager
def _drawn_on(screen: Console) -> Generator[Callable[[RenderableType], None]]:
    """Yield what shows a picture, on a terminal in the place of the one before."""
    if not screen.is_terminal:
        yield screen.print
        return
    with Live(console=screen, screen=True, auto_refresh=False) as live:
        yield lambda drawn: live.update(drawn, refresh=True)


@contextlib.contextmanager
def _keys() -> Generator[bool]:
    """Have keys come at once and unseen; tell whether there is anything to press them on."""
    if not sys.stdin.isatty():
        yield False
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield True
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _quit_within(seconds: float, *, has_keys: bool) -> bool:
    """Wait; true as soon as q is pressed."""
    until = time.monotonic() + seconds
    while (rest_s := until - time.monotonic()) > 0:
        if not has_keys:
            time.sleep(rest_s)
        elif select.select([sys.stdin], [], [], rest_s)[0]:
            keys = os.read(sys.stdin.fileno(), 64)
            if not keys or b"q" in keys.lower():  # none: the terminal is gone
                return True
    return False
