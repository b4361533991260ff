"""What a process's end tells: its wait status, in words."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess


def describe_status(status: int) -> str:
    """Return what a wait status means, such as ``SIGKILL`` or ``exit code 3``."""
    if os.WIFSIGNALED(status):
        with contextlib.suppress(ValueError):
            return signal.Signals(os.WTERMSIG(status)).name
        return f"signal {os.WTERMSIG(status)}"
    return f"exit code {os.waitstatus_to_exitcode(status)}"


def status_of(process: subprocess.Popen[bytes]) -> int:
    """Return the wait status of a process that has ended."""
    code = process.returncode
    return -code if code < 0 else code << 8
