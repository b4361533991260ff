"""Processes of an experiment: each runs one function and speaks with its parent in JSON, with fds beside it."""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

_MESSAGE_BYTES: Final = 64 << 10
_MAX_FDS: Final = 16
#: Longer than any fact may take: it is the fact's own limit that ends it.
ANSWER_S: Final = 60.0


class ChildFailed(Exception):
    """A child raised, died or did not answer in time; `kind` is the type of what it raised, if it did."""

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Message:
    """JSON values, and the descriptors that came with them: they belong to the receiver."""

    values: dict[str, Any]
    fds: list[int] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


class Link:
    """One end of a socket pair on which every packet is a message."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def fileno(self) -> int:
        """Return the descriptor, to poll it."""
        return self._connection.fileno()

    def send(self, fds: Iterable[int] = (), **values: Any) -> None:
        """Send values, and duplicates of descriptors."""
        data = json.dumps(values).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if (fds := list(fds)) else []
        self._connection.sendmsg([data], rights)

    def receive(self, timeout_s: float = 60.0) -> Message:
        """Return the next message.

        Raises:
            TimeoutError: None came.
            EOFError: The other end is closed.
        """
        self._connection.settimeout(timeout_s)
        # Not socket.recv_fds(), which leaves its flags out: a program started later would inherit the descriptors.
        size_bytes = socket.CMSG_LEN(_MAX_FDS * array.array("i").itemsize)
        data, ancillary, _, _ = self._connection.recvmsg(_MESSAGE_BYTES, size_bytes, socket.MSG_CMSG_CLOEXEC)
        if not data:
            raise EOFError("the other end is closed")
        fds = array.array("i")
        for _, _, rights in ancillary:
            fds.frombytes(rights)
        return Message(json.loads(data), list(fds))

    def close(self) -> None:
        """Close it; the other end reads end of file."""
        self._connection.close()


class Child:
    """A process that runs `role(link, *arguments)` and ends at once when that returns.

    Args:
        role: A function of an importable module.
        arguments: What JSON can carry.
        environment: What to set beside this process's own environment.
    """

    def __init__(
        self, role: Callable[..., None], *arguments: Any, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = role.__name__
        self._silent = ""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gpu_checking.child", str(theirs.fileno()), role.__module__, role.__name__,
                 json.dumps(arguments)],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stderr=self._stderr,
                env=os.environ | dict(environment or {}),
            )  # fmt: skip
        self.link = Link(ours)
        self.pidfd = os.pidfd_open(self.process.pid)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def send(self, fds: Iterable[int] = (), **values: Any) -> None:
        """Send values and descriptors to it.

        Raises:
            ChildFailed: It is gone.
        """
        try:
            self.link.send(fds, **values)
        except OSError as error:
            raise self._gone() from error

    def receive(self, timeout_s: float = ANSWER_S) -> Message:
        """Return its next message.

        Raises:
            ChildFailed: It raised, died, or sent nothing in time, this time or before.
        """
        if self._silent:
            raise ChildFailed(self._silent, "TimeoutError")
        try:
            message = self.link.receive(timeout_s)
        except TimeoutError as error:
            # What comes later answers an older question: nothing more is taken from it.
            self._silent = f"{self.name}: no answer within {timeout_s:g} s"
            raise ChildFailed(self._silent, "TimeoutError") from error
        except (EOFError, ConnectionError) as error:
            raise self._gone() from error
        if "raised" in message.values:
            raise ChildFailed(f"{self.name}: {message['raised']}: {message['text']}", message["raised"])
        return message

    def ask(self, timeout_s: float = ANSWER_S, fds: Iterable[int] = (), **values: Any) -> Message:
        """Send something to it and return its answer."""
        self.send(fds, **values)
        return self.receive(timeout_s)

    def kill(self, timeout_s: float = 20.0) -> float:
        """Kill it, and return after how many milliseconds its pidfd told that it is gone.

        Raises:
            ChildFailed: The kernel did not end it in time.
        """
        started_at = time.perf_counter()
        self.process.send_signal(signal.SIGKILL)
        if not is_readable(self.pidfd, timeout_s):
            raise ChildFailed(f"{self.name}: still there {timeout_s:g} s after SIGKILL", "TimeoutError")
        return (time.perf_counter() - started_at) * 1e3

    def join(self, timeout_s: float = 20.0) -> None:
        """Close the link and wait until it has ended by itself; kill it if it does not."""
        self.link.close()
        if not is_readable(self.pidfd, timeout_s):
            self.process.kill()
        self.close()

    def close(self) -> None:
        """Kill it if it runs, and free what belongs to it; doing so twice is harmless."""
        if self._stderr.closed:
            return
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.link.close()
        os.close(self.pidfd)
        self._stderr.close()

    def _gone(self) -> ChildFailed:
        """Say how it ended, with the last line that it wrote to stderr."""
        if not is_readable(self.pidfd, 5.0):
            return ChildFailed(f"{self.name}: closed its link and runs on")
        self._stderr.seek(0)
        said = how_it_ended(self.process.wait(), self._stderr.read())
        return ChildFailed(f"{self.name}: ended with {said}", said.partition(":")[0])


def how_it_ended(code: int, errors: bytes) -> str:
    """Say how a process ended: its signal or exit code, and where it crashed or what it wrote last."""
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    lines = errors.decode(errors="replace").strip().splitlines()
    # faulthandler writes the frame that crashed first, and a list of modules last.
    crashed_at = [line for line in lines if line.startswith("  File ")] if code < 0 else []
    told = (crashed_at or lines[-1:] or [""])[0].strip()
    return f"{how}: {told[:300]}" if told else how


def is_readable(descriptor: int, timeout_s: float) -> bool:
    """Wait until a descriptor can be read, at most so long; return whether it can."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(timeout_s * 1e3))
