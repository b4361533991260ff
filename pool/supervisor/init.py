"""The first process of a container, where that is what the supervisor was started as.

The kernel gives it every process whose parent has ended, such as those that models leave behind, and expects it to
take them off the table of processes once they end. A supervisor knows its children and waits for none else, so a
fork of it serves, and this one waits.
"""

from __future__ import annotations

import os
import signal
from typing import Final

_PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def serve_in_a_fork() -> None:
    """Return in a fork, and never here: this process passes signals on to it, and exits as it does.

    Everything else in the container is ended by the kernel then.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)  # none may come while nobody is there to get it
    served = os.fork()
    if served == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        return
    for number in _PASSED_ON:
        signal.signal(number, lambda number, _: os.kill(served, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    while True:
        pid, status = os.wait()
        if pid == served:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)  # as shells tell of signals
