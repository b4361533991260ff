"""How a process of the pool makes sure that it ends with its supervisor.

All of them inherit the read end of one pipe; only the supervisor holds its write end. When the supervisor is
gone, however it went, the kernel raises a signal here: no code of this process has to run, so it ends even if
it is stopped or stuck in a model.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys


class Lifeline:
    """Asks the kernel for a signal when the supervisor is gone.

    Args:
        life_fd: the inherited read end.
        signum: what the signal shall be.
        owner: who gets it: a process id, or the negative of a process group's.
    """

    def __init__(self, life_fd: int, signum: int, owner: int) -> None:
        # Owner and signal belong to the open file, and forked processes share open files: so open it anew.
        self._fd = os.open(f"/proc/self/fd/{life_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(self._fd, fcntl.F_SETOWN, owner)
        self.set_signal(signum)
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | os.O_ASYNC)
        self.check()

    def set_signal(self, signum: int) -> None:
        """Choose another signal."""
        fcntl.fcntl(self._fd, fcntl.F_SETSIG, signum)

    def check(self) -> None:
        """Exit if the supervisor has gone already."""
        if self.is_cut:
            sys.exit(0)

    @property
    def is_cut(self) -> bool:
        """Whether the supervisor is gone."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(0))


def arm_child(life_fd: int) -> Lifeline:
    """Make a forked child the leader of a process group that ends as one with the supervisor."""
    os.setpgid(0, 0)
    return Lifeline(life_fd, signal.SIGKILL, -os.getpid())
