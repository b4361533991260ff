"""One zygote: the process from which a device's children are forked; started, told what to do, replaced."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from ...protocol.channel import Channel, Delivery
from ...protocol.messages import Leave
from .. import environment
from .reactor import Reactor
from .statuses import describe_status, status_of

_EXIT_S: Final = 2.0


class ZygoteProcess:
    """The zygote of a device, or none.

    Args:
        reactor: whose epoll watches it.
        directory: the runtime folder, which it removes if this process is killed.
        life_read: the pipe that ends with this process.
        cores: those that it and its children may use; empty: any.
        said: called with what it sent.
        printed: called with what it wrote to stdout or stderr.
        ended: called when it is gone, whoever ended it.
        died: called with the cause when it is gone that nobody ended.

    Attributes:
        environment: what one that is started from now on has in its environment besides.
    """

    def __init__(
        self,
        reactor: Reactor,
        directory: str,
        life_read: int,
        cores: Sequence[int],
        *,
        said: Callable[[Delivery], None],
        printed: Callable[[bytes], None],
        ended: Callable[[], None],
        died: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._directory = directory
        self._life_read = life_read
        self._cores = cores
        self._said = said
        self._printed = printed
        self._ended = ended
        self._died = died
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._fds: list[int] = []
        self.environment: dict[str, str] = {}

    @property
    def pid(self) -> int:
        """Its process id, or 0."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start it; one that runs is ended first."""
        if self._process is not None:
            self._process.kill()
            self._let_go()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        output, output_write = os.pipe2(os.O_CLOEXEC)
        command = [sys.executable, "-P", "-m", "onecopy.workers.zygote"]
        arguments = [str(theirs.fileno()), str(self._life_read), self._directory]
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output_write,
            stderr=output_write,
            pass_fds=(theirs.fileno(), self._life_read),
            env=environment.zygote_environment() | self.environment,
            start_new_session=True,
        )
        theirs.close()
        os.close(output_write)
        if self._cores:  # its children inherit that
            with contextlib.suppress(ProcessLookupError):  # it is dead already, which will be noticed
                os.sched_setaffinity(self._process.pid, self._cores)
        ours.setblocking(False)
        os.set_blocking(output, False)
        self._channel = Channel(ours)
        pidfd = os.pidfd_open(self._process.pid)
        self._fds = [pidfd, output]
        self._reactor.watch(ours.fileno(), self._readable, self._channel.flush)
        self._reactor.watch(output, lambda: self._read_output(output))
        self._reactor.watch(pidfd, self._exited)

    def tell(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Send it a message; if it is just dying, its death will be told."""
        if self._channel is not None:
            with contextlib.suppress(OSError):
                self._channel.send(message, fds=fds)
                self._reactor.wants_to_write(self._channel)

    def close(self) -> None:
        """End it, quietly."""
        if self._process is None:
            return
        assert self._channel is not None
        self._reactor.forget(self._channel.fileno())
        self.tell(Leave())  # or it would take this for a death, and wait for the lock
        self._channel.close()
        try:
            self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _readable(self, *, until_empty: bool = False) -> None:
        channel, process = self._channel, self._process
        assert channel is not None
        assert process is not None
        try:
            for delivery in channel.arrived(until_empty=until_empty):
                self._said(delivery)
                if self._channel is not channel:  # it was replaced because of that
                    return
        except (OSError, ValueError):  # it died with orders unread, or whatever it was, it is no zygote any more
            process.kill()
        if channel.is_at_end:
            self._reactor.forget(channel.fileno())

    def _exited(self) -> None:
        process = self._process
        assert process is not None
        self._readable(until_empty=True)
        if self._process is not process:
            return
        process.wait()
        cause = describe_status(status_of(process))
        self._let_go()
        self._died(cause)

    def _let_go(self) -> None:
        """Let go of one that is gone."""
        assert self._process is not None
        assert self._channel is not None
        self._process.wait()
        self._reactor.forget(self._channel.fileno())
        self._channel.close()
        self._read_output(self._fds[1])
        for fd in self._fds:
            self._reactor.forget(fd)
            os.close(fd)
        self._process, self._channel, self._fds = None, None, []
        self._ended()

    def _read_output(self, fd: int) -> None:
        for data in self._reactor.drain(fd):
            self._printed(data)
