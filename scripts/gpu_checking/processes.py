"""How no process stays behind: children die with their parent, and what detached itself falls to the run."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

#: Options of prctl(2), from linux/prctl.h.
_SET_PDEATHSIG: Final = 1
_SET_CHILD_SUBREAPER: Final = 36


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends."""
    _prctl(_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, a daemon's too."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def end_group(leader: int) -> None:
    """Kill a process group; that it is gone already is no mistake."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def end_children(timeout_s: float = 5.0) -> None:
    """Kill and reap every child of this process, and what they leave to it in turn."""
    deadline = time.monotonic() + timeout_s
    while (children := _children()) and time.monotonic() < deadline:
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
            except (ProcessLookupError, ChildProcessError):
                continue
        time.sleep(0.01)


def _children() -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            after_name = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(after_name[1]) == os.getpid():
            found.append(int(entry.name))
    return found


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), f"prctl({option})")
