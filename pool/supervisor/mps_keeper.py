"""Keeps a daemon of the Multi-Process Service as long as its supervisor lives: ``... .mps_keeper PROGRAM``.

The daemon starts servers, which nothing obliges to end with it. This process is the one to which the kernel gives
those of them whose parent is gone, whatever session they lead. When the daemon ends, or standard input does, whose
other end is the supervisor's, however that goes, it ends the daemon, then whatever is left, and then itself.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Final

#: Of prctl; from linux/prctl.h.
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
#: What the daemon may take to quit, after which it is killed. Its clients are gone by then.
_QUITS_WITHIN_S: Final = 2.0


def main() -> int:
    """Run the daemon until it or the supervisor ends; return its exit code, or as shells tell of a signal."""
    (program,) = sys.argv[1:]
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    daemon = subprocess.Popen(  # noqa: S603 - the driver's program
        [program, "-f"],
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    ended = os.pidfd_open(daemon.pid)
    poller = select.poll()
    for fd in (sys.stdin.fileno(), ended):
        poller.register(fd, select.POLLIN)
    poller.poll()
    _quit(program, daemon)
    _end_children()
    return daemon.returncode if daemon.returncode >= 0 else 128 - daemon.returncode


def _quit(program: str, daemon: subprocess.Popen[bytes]) -> None:
    if daemon.poll() is not None:
        return
    with suppress(OSError, subprocess.SubprocessError):
        subprocess.run([program], input=b"quit -t 1\n", check=True, timeout=_QUITS_WITHIN_S)  # noqa: S603 - as above
        daemon.wait(_QUITS_WITHIN_S)
        return
    daemon.kill()
    daemon.wait()


def _end_children() -> None:
    """End all that has come to this process; what those had started comes to it in turn."""
    while True:
        for pid in _children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def _children() -> list[int]:
    found: list[int] = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            # After the command's name, which may contain anything: state, parent.
            if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                found.append(int(name))
    return found


if __name__ == "__main__":
    sys.exit(main())
