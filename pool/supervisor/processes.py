"""The pool's processes: starting the zygote, giving children their sockets, noticing deaths.

A child's death is made known once three things are done: the process is gone (its pidfd tells), everything
that it had sent is handled, and the zygote has told the exit status, or is gone itself.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from ...protocol.channel import Channel, Delivery
from ...protocol.errors import InvalidRequest
from ...protocol.marks import LINE_BYTES, Marks
from ...protocol.messages import ForkChild, Leave
from .. import environment
from ..settings import Settings
from .reactor import Reactor

#: How long an exit status is waited for after the pidfd has told the death.
_STATUS_S: Final = 1.0
_ZYGOTE_EXIT_S: Final = 2.0


class Child:
    """A forked process, from the order to fork it to its end."""

    def __init__(self, number: int, role: str, channel: Channel, output_fd: int, index: int, marks: Marks) -> None:
        self.number = number
        self.role = role
        self.channel = channel
        self.output_fd = output_fd
        self.index = index  # of its line in the page of marks
        self.marks = marks
        self.pid = 0
        self.pidfd = -1
        self.is_dead = False
        self.cause = ""
        self.ran_last: tuple[int, str] = (
            0,
            "",
        )  # request and model of its last answer, for what it printed just before

    def __repr__(self) -> str:
        return f"<Child {self.number} {self.role} pid={self.pid}>"


class Processes:
    """The zygote and its children.

    Args:
        reactor: whose epoll watches them.
        settings: how many workers, and with how many threads.
        directory: the runtime folder, which the zygote removes if this process is killed.
        deliver: called with a child and what it sent.
        died: called with a child when it is gone: cause and the attempt it had begun.
        printed: called with a child (None: the zygote) and what it wrote to stdout or stderr.
        zygote_said, zygote_died: the same for the zygote.
    """

    def __init__(
        self,
        reactor: Reactor,
        settings: Settings,
        directory: str,
        *,
        deliver: Callable[[Child, Delivery], None],
        died: Callable[[Child, str, int], None],
        printed: Callable[[Child | None, bytes], None],
        zygote_said: Callable[[Delivery], None],
        zygote_died: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._directory = directory
        self._deliver = deliver
        self._died = died
        self._printed = printed
        self._zygote_said = zygote_said
        self._zygote_died = zygote_died
        self.children: dict[int, Child] = {}
        self._unflushed: dict[int, Child] = {}  # those with messages that will be sent together
        self._zygote: subprocess.Popen[bytes] | None = None
        self._zygote_channel: Channel | None = None
        self._zygote_fds: list[int] = []
        self._life_read, self._life_write = os.pipe2(os.O_CLOEXEC)
        places = 2 * settings.workers + 64  # workers that are replaced live beside their successors
        self._marks_fd = os.memfd_create("onecopy-marks", os.MFD_CLOEXEC)
        os.ftruncate(self._marks_fd, places * LINE_BYTES)
        self._marks = mmap.mmap(self._marks_fd, places * LINE_BYTES)
        self._free_places = list(range(places - 1, -1, -1))

    # --- the zygote -----------------------------------------------------------------------------------------

    @property
    def zygote_pid(self) -> int:
        """The zygote's process id, or 0."""
        return self._zygote.pid if self._zygote else 0

    def start_zygote(self) -> None:
        """Start a zygote; one that runs is ended first."""
        if self._zygote is not None:
            self._zygote.kill()
            self._zygote_ended()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        output, output_write = os.pipe2(os.O_CLOEXEC)
        command = [sys.executable, "-P", "-m", "onecopy.workers.zygote"]
        arguments = [str(theirs.fileno()), str(self._life_read), self._directory]
        self._zygote = subprocess.Popen(  # noqa: S603 - our own module
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output_write,
            stderr=output_write,
            pass_fds=(theirs.fileno(), self._life_read),
            env=environment.zygote_environment(),
            start_new_session=True,
        )
        theirs.close()
        os.close(output_write)
        ours.setblocking(False)
        os.set_blocking(output, False)
        self._zygote_channel = Channel(ours)
        pidfd = os.pidfd_open(self._zygote.pid)
        self._zygote_fds = [pidfd, output]
        self._reactor.watch(ours.fileno(), self._zygote_readable, self._zygote_channel.flush)
        self._reactor.watch(output, lambda: self._read_output(None, output))
        self._reactor.watch(pidfd, self._zygote_exited)

    def tell_zygote(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Send the zygote a message; if it is just dying, its death will be told."""
        if self._zygote_channel is not None:
            with contextlib.suppress(OSError):
                self._zygote_channel.send(message, fds=fds)
                self._reactor.wants_to_write(self._zygote_channel)

    def _zygote_readable(self, *, until_empty: bool = False) -> None:
        channel, zygote = self._zygote_channel, self._zygote
        assert channel is not None
        assert zygote is not None
        try:
            for delivery in channel.arrived(until_empty=until_empty):
                self._zygote_said(delivery)
                if self._zygote_channel is not channel:  # it was replaced because of that
                    return
        except (OSError, ValueError):  # it died with orders unread, or whatever it was, it is no zygote any more
            zygote.kill()
        if channel.is_at_end:
            self._reactor.forget(channel.fileno())

    def _zygote_exited(self) -> None:
        zygote = self._zygote
        assert zygote is not None
        self._zygote_readable(until_empty=True)
        if self._zygote is not zygote:
            return
        zygote.wait()
        cause = describe_status(_status_of(zygote))
        self._zygote_ended()
        self._zygote_died(cause)

    def _zygote_ended(self) -> None:
        """Let go of a zygote that is gone, and of the children that it never forked."""
        assert self._zygote is not None
        assert self._zygote_channel is not None
        self._zygote.wait()
        self._reactor.forget(self._zygote_channel.fileno())
        self._zygote_channel.close()
        self._read_output(None, self._zygote_fds[1])
        for fd in self._zygote_fds:
            self._reactor.forget(fd)
            os.close(fd)
        self._zygote, self._zygote_channel, self._zygote_fds = None, None, []
        # A death that is told may have more children ordered from the zygote that is gone.
        while orphans := [child for child in self.children.values() if child.pid == 0 or child.is_dead]:
            for child in sorted(orphans, key=lambda one: one.pid):  # those first that never were
                self._finish(child, child.cause or "unknown: the zygote died before it could tell")

    # --- children -------------------------------------------------------------------------------------------

    def fork(self, number: int, role: str) -> None:
        """Have the zygote fork a child; messages for it may be sent at once."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        output, output_write = os.pipe2(os.O_CLOEXEC)
        ours.setblocking(False)
        os.set_blocking(output, False)
        index = self._free_places.pop()
        marks = Marks(self._marks, index)
        marks.clear()
        child = Child(number, role, Channel(ours), output, index, marks)
        self.children[number] = child
        self._reactor.watch(ours.fileno(), lambda: self._readable(child), child.channel.flush)
        self._reactor.watch(output, lambda: self._read_output(child, output))
        settings = {"threads": self._settings.threads, "index": index, "cores": self._settings.seat_cores}
        self.tell_zygote(ForkChild(number, role, settings), (theirs.fileno(), output_write, self._marks_fd))
        theirs.close()
        os.close(output_write)

    def forked(self, number: int, pid: int, pidfd: int) -> bool:
        """Note that a child exists; false if it was given up meanwhile."""
        child = self.children.get(number)
        if child is None:
            os.close(pidfd)
            return False
        child.pid, child.pidfd = pid, pidfd
        self._reactor.watch(pidfd, lambda: self._pidfd_readable(child))
        return True

    def exited(self, number: int, status: int) -> None:
        """Note a child's exit status, which the zygote has told."""
        child = self.children.get(number)
        if child is not None:
            child.cause = describe_status(status)
            if child.is_dead or child.pidfd < 0:
                self._finish(child, child.cause)

    def send(self, number: int, message: Any, buffers: list[Any], fds: list[int]) -> None:
        """Send a child a message, at the end of this turn; if it is just dying, its death will be told."""
        child = self.children.get(number)
        if child is None:
            return
        try:
            if buffers or fds:
                child.channel.send(message, buffers, fds)
            else:
                child.channel.send_soon(message)
                self._unflushed[number] = child
        except OSError:
            return
        except InvalidRequest:  # beyond a limit, which only what a loader reported can have caused
            self.signal(number, signal.SIGKILL)
            return
        if child.channel.has_unsent:
            self._reactor.wants_to_write(child.channel)

    def flush(self) -> None:
        """Send what was kept to be sent together; to be called in every turn."""
        while self._unflushed:
            _, child = self._unflushed.popitem()
            with contextlib.suppress(OSError):
                child.channel.flush()
            if child.channel.has_unsent:
                self._reactor.wants_to_write(child.channel)

    def signal(self, number: int, signum: int) -> None:
        """Send a signal to a child and its process group."""
        child = self.children.get(number)
        if child is None or child.pidfd < 0 or child.is_dead:
            if child is not None and child.pid == 0:
                child.channel.close()  # it may be forked yet: it will find its channel closed and exit
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signum)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(child.pidfd, signum)

    def _readable(self, child: Child, *, until_empty: bool = False) -> None:
        try:
            for delivery in child.channel.arrived(until_empty=until_empty):
                self._deliver(child, delivery)
        except (OSError, ValueError):  # a broken stream: whatever it was, it is not our child any more
            self.signal(child.number, signal.SIGKILL)
        if child.channel.is_at_end and child.number in self.children:
            self._reactor.forget(child.channel.fileno())

    def _pidfd_readable(self, child: Child) -> None:
        child.is_dead = True
        self._reactor.forget(child.pidfd)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # what it started and left
        self._readable(child, until_empty=True)
        self._read_output(child, child.output_fd)
        if child.cause or self._zygote is None:
            self._finish(child, child.cause or "unknown")
        else:
            self._reactor.call_at(time.monotonic() + _STATUS_S, lambda: self._status_is_late(child))

    def _status_is_late(self, child: Child) -> None:
        if child.number in self.children:
            self._finish(child, "unknown")

    def _finish(self, child: Child, cause: str) -> None:
        """Forget a child and tell its death."""
        del self.children[child.number]
        self._unflushed.pop(child.number, None)
        begun = child.marks.begun
        if child.channel.fileno() >= 0:
            self._reactor.forget(child.channel.fileno())
        child.channel.close()
        self._reactor.forget(child.output_fd)
        os.close(child.output_fd)
        if child.pidfd >= 0:
            self._reactor.forget(child.pidfd)
            os.close(child.pidfd)
        self._free_places.append(child.index)
        self._died(child, cause, begun)

    def _read_output(self, child: Child | None, fd: int) -> None:
        while True:
            try:
                data = os.read(fd, 65536)
            except (BlockingIOError, OSError):
                return
            if not data:
                self._reactor.forget(fd)
                return
            self._printed(child, data)

    def close(self) -> None:
        """End everything: the zygote first, then whoever is left of its children."""
        if self._zygote is not None:
            assert self._zygote_channel is not None
            self._reactor.forget(self._zygote_channel.fileno())
            self.tell_zygote(Leave())  # or it would take this for a death, and wait for the lock
            self._zygote_channel.close()
            try:
                self._zygote.wait(_ZYGOTE_EXIT_S)
            except subprocess.TimeoutExpired:
                self._zygote.kill()
                self._zygote.wait()
        for child in list(self.children.values()):
            self.signal(child.number, signal.SIGKILL)
        os.close(self._life_write)
        os.close(self._life_read)


def describe_status(status: int) -> str:
    """Return what a wait status means, such as ``SIGKILL`` or ``exit code 3``."""
    if os.WIFSIGNALED(status):
        with contextlib.suppress(ValueError):
            return signal.Signals(os.WTERMSIG(status)).name
        return f"signal {os.WTERMSIG(status)}"
    return f"exit code {os.waitstatus_to_exitcode(status)}"


def _status_of(process: subprocess.Popen[bytes]) -> int:
    code = process.returncode
    return -code if code < 0 else code << 8
