"""Starting a supervisor that belongs to this process, and seeing to its end."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from typing import Final

from ..protocol.channel import Channel
from ..protocol.errors import PoolError, SupervisorLost, from_record
from ..protocol.leftovers import remove_if_abandoned
from ..protocol.messages import Configure, Refused, Serving, StopPool
from .control import ControlSocket
from .settings import Settings
from .supervisor.logs import Line

#: A supervisor starts in a tenth of a second; one that takes this long never will.
_START_S: Final = 30.0
#: What it may take to end once nothing is left to answer: children get 4 s, see `core.fleet`.
_END_S: Final = 10.0


class OwnedSupervisor:
    """A supervisor process whose pool lives as long as this process, or until `end`.

    It is started by ``exec``, never by forking this process alone: an app has threads, perhaps CUDA. It leads
    a session of its own, so that Ctrl-C reaches the app and nobody else.

    Raises:
        SupervisorLost: it did not come up; the message has what it said.
        PoolError: it refused to serve.
    """

    def __init__(self, settings: Settings) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._pid = os.getpid()
        command = [sys.executable, "-P", "-m", "onecopy.pool.supervisor", "--owner-fd", str(theirs.fileno())]
        self.process = subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), start_new_session=True
        )
        theirs.close()
        ours.settimeout(_START_S)
        self._channel = Channel(ours)
        self.directory = ""
        try:
            self._channel.send(Configure(settings.to_wire()))
            delivery = self._channel.receive()
        except OSError:  # it took too long, or died
            delivery = None
        if delivery is None or not isinstance(delivery.message, Serving):
            self.kill()
            if delivery is not None and isinstance(delivery.message, Refused):
                raise from_record(delivery.message.error)
            raise SupervisorLost(
                f"the supervisor did not start (exit code {self.process.returncode}); what it said is above"
            )
        ours.settimeout(None)
        self.directory = delivery.message.directory
        self._log: ControlSocket | None = None
        self._log_thread: threading.Thread | None = None

    def follow_logs(self) -> None:
        """Write what workers print to this process's stderr, in a thread."""
        self._log = ControlSocket(self.directory)
        self._log_thread = threading.Thread(
            target=_write_lines, args=(self._log,), name="onecopy-logs", daemon=True
        )
        self._log_thread.start()

    def stop(self, *, drain: bool) -> None:
        """Tell it to end; with ``drain`` after everything accepted is answered."""
        if os.getpid() != self._pid:  # a forked child, which has the sockets of its parent's pool
            return
        with contextlib.suppress(OSError):
            self._channel.send(StopPool(drain))

    def end(self) -> None:
        """Wait until it has ended, and everything with it; may be called again."""
        if os.getpid() != self._pid:  # a forked child has nothing to end
            return
        self._join_log()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_S)
        self.kill()

    def kill(self) -> None:
        """End it at once, if it has not ended; the kernel ends its children."""
        self.process.kill()
        self.process.wait()
        self._channel.close()
        if self.directory:
            remove_if_abandoned(self.directory)  # it was killed, and perhaps its zygote too

    def _join_log(self) -> None:
        if self._log is None or self._log_thread is None:
            return
        self._log_thread.join(_END_S)  # it ends when the supervisor hangs up, after the last line
        if self._log_thread.is_alive():
            self._log.shut()
            self._log_thread.join()
        self._log.close()
        self._log = None


def _write_lines(control: ControlSocket) -> None:
    with contextlib.suppress(PoolError, OSError, ValueError):
        for line in control.lines(follow=True):
            print(Line(*line), file=sys.stderr, flush=True)  # noqa: T201 - this is the caller's log
