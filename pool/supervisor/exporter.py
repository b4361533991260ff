"""The process that serves metrics, if anybody wants any: its socket, its start, its end.

The socket is bound here, so that an address in use is told at once. The process is a client of this pool, and none
of its children: it reads what anyone may ask for, and ends when this process does, whose end of its standard input
closes then.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

from ...protocol.errors import PoolError
from ..checks import ConfigError
from ..settings import Settings, read_address
from .logs import Level
from .reactor import Reactor
from .statuses import describe_status, status_of

#: One that died is started anew after this.
_AGAIN_S: Final = 10.0
_BACKLOG: Final = 32


class Exporter:
    """Serves metrics.

    Args:
        settings: where to; nowhere, if they do not say.
        directory: the runtime folder, where the process joins the pool.
        reactor: whose epoll watches it.
        note: takes sentences for the log.

    Attributes:
        pid: the process, or 0.
    """

    def __init__(
        self, settings: Settings, directory: str, reactor: Reactor, note: Callable[[str, Level], None]
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._reactor = reactor
        self._note = note
        self._listener: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1

    @property
    def pid(self) -> int:
        """Its process id, or 0."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Listen, and start the process.

        Raises:
            ConfigError: what it needs is not installed.
            PoolError: the address is in use or cannot be bound.
        """
        if not self._settings.metrics:
            return
        if importlib.util.find_spec("prometheus_client") is None:
            raise ConfigError("metrics need prometheus-client: pip install 'onecopy[metrics]'")
        host, port = read_address("metrics", self._settings.metrics, is_public=self._settings.metrics_public)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            message = f"cannot serve metrics at {self._settings.metrics}: {error.strerror or error}"
            raise PoolError(message) from error
        host, port = self._listener.getsockname()[:2]
        self._note(f"metrics at http://{f'[{host}]' if ':' in host else host}:{port}/metrics", "info")
        self._spawn()

    def close(self) -> None:
        """End the process, and listen no more."""
        if self._process is not None:
            self._process.kill()
            self._let_go()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _spawn(self) -> None:
        if self._listener is None:
            return
        fd = self._listener.fileno()
        command = [sys.executable, "-P", "-m", "onecopy.pool.metrics_server"]
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [*command, f"--fd={fd}", f"--endpoint=ipc://{self._directory}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(fd,),
            start_new_session=True,
        )
        self._pidfd = os.pidfd_open(self._process.pid)
        self._reactor.watch(self._pidfd, self._ended)

    def _ended(self) -> None:
        assert self._process is not None
        self._process.wait()
        cause = describe_status(status_of(self._process))
        self._let_go()
        text = f"the process that serves metrics died ({cause}); another is started in {_AGAIN_S:g} s"
        self._note(text, "warning")
        self._reactor.call_at(time.monotonic() + _AGAIN_S, self._spawn)

    def _let_go(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.wait()
        self._process.stdin.close()
        self._reactor.forget(self._pidfd)
        os.close(self._pidfd)
        self._process, self._pidfd = None, -1
