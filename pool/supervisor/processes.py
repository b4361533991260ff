"""The pool's processes: a zygote for each device, giving children their sockets, noticing deaths.

A child's death is made known once three things are done: the process is gone (its pidfd tells), everything
that it had sent is handled, and the zygote has told the exit status, or is gone itself.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from ...protocol.channel import Channel, Delivery
from ...protocol.errors import InvalidRequest
from ...protocol.marks import LINE_BYTES, Marks
from ...protocol.messages import ForkChild
from ..core.numbers import device_of
from ..settings import Settings
from .reactor import Reactor
from .statuses import describe_status
from .zygote import ZygoteProcess

#: How long an exit status is waited for after the pidfd has told the death.
_STATUS_S: Final = 1.0


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
    """The zygotes and their children.

    Args:
        reactor: whose epoll watches them.
        settings: of each device: how many workers, and with how many threads.
        directory: the runtime folder, which the zygote removes if this process is killed.
        deliver: called with a child and what it sent.
        died: called with a child when it is gone: cause and the attempt it had begun.
        printed: called with a child (None: the zygote), the device, and what was written to stdout or stderr.
        zygote_said, zygote_died: called with the device, and what its zygote sent, or why it died.

    Attributes:
        children: by number.
        zygotes: by device.
    """

    def __init__(
        self,
        reactor: Reactor,
        settings: Sequence[Settings],
        directory: str,
        *,
        deliver: Callable[[Child, Delivery], None],
        died: Callable[[Child, str, int], None],
        printed: Callable[[Child | None, int, bytes], None],
        zygote_said: Callable[[int, Delivery], None],
        zygote_died: Callable[[int, str], None],
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._deliver = deliver
        self._died = died
        self._printed = printed
        self._zygote_said = zygote_said
        self._zygote_died = zygote_died
        self.children: dict[int, Child] = {}
        self._unflushed: dict[int, Child] = {}  # those with messages that will be sent together
        self._life_read, self._life_write = os.pipe2(os.O_CLOEXEC)
        places = sum(
            2 * one.workers + 64 for one in settings
        )  # workers that are replaced live beside their successors
        self._marks_fd = os.memfd_create("onecopy-marks", os.MFD_CLOEXEC)
        os.ftruncate(self._marks_fd, places * LINE_BYTES)
        self._marks = mmap.mmap(self._marks_fd, places * LINE_BYTES)
        self._free_places = list(range(places - 1, -1, -1))
        self.zygotes = [self._zygote_of_device(device, directory) for device in range(len(settings))]

    # --- zygotes --------------------------------------------------------------------------------------------

    def zygote_of(self, number: int) -> ZygoteProcess:
        """Return the zygote that a child is forked from."""
        return self.zygotes[device_of(number, len(self.zygotes))]

    def start_zygotes(self) -> None:
        """Start a zygote for each device."""
        for zygote in self.zygotes:
            zygote.start()

    def _zygote_of_device(self, device: int, directory: str) -> ZygoteProcess:
        def died(cause: str) -> None:
            self._zygote_died(device, cause)

        return ZygoteProcess(
            self._reactor,
            directory,
            self._life_read,
            self._settings[device].cores,
            said=lambda delivery: self._zygote_said(device, delivery),
            printed=lambda data: self._printed(None, device, data),
            ended=lambda: self._zygote_ended(device),
            died=died,
        )

    def _zygote_ended(self, device: int) -> None:
        """Let go of the children that a zygote never forked, and of those whose end it has not told."""
        own = self.zygotes[device]
        # A death that is told may have more children ordered from the zygote that is gone.
        while orphans := [
            child
            for child in self.children.values()
            if (child.pid == 0 or child.is_dead) and self.zygote_of(child.number) is own
        ]:
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
        self._reactor.watch(output, lambda: self._read_output(child))
        own = self._settings[device_of(number, len(self._settings))]
        settings = {"threads": own.threads, "index": index, "cores": own.seat_cores, "gpu": own.gpu}
        order = ForkChild(number, role, settings)
        self.zygote_of(number).tell(order, (theirs.fileno(), output_write, self._marks_fd))
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
        if child.channel.fileno() < 0:  # given up before it was there: it would first do what it was ordered to
            self.signal(number, signal.SIGKILL)
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
                child.channel.close()  # it may be forked yet: then it is killed at once
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
        self._read_output(child)
        if child.cause or not self.zygote_of(child.number).pid:
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

    def _read_output(self, child: Child) -> None:
        for data in self._reactor.drain(child.output_fd):
            self._printed(child, device_of(child.number, len(self.zygotes)), data)

    def close(self) -> None:
        """End everything: the zygotes first, then whoever is left of its children."""
        for zygote in self.zygotes:
            zygote.close()
        for child in list(self.children.values()):
            self.signal(child.number, signal.SIGKILL)
        os.close(self._life_write)
        os.close(self._life_read)
