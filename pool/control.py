"""The client's end of the supervisor's unix socket: admission, and everything that may carry code."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any, Self

from ..protocol.channel import Channel, Delivery
from ..protocol.errors import SupervisorLost, from_record
from ..protocol.granter import ChannelGranter
from ..protocol.messages import (
    Admit,
    Admitted,
    Attached,
    AttachModel,
    Done,
    FollowLogs,
    LogLines,
    MailboxGranted,
    Message,
    NeedMailbox,
    Refused,
    ReturnMailbox,
)
from .runtime import CONTROL


def connect(directory: str) -> socket.socket:
    """Return a new connection to the supervisor whose sockets lie in a folder.

    Raises:
        SupervisorLost: nobody serves there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(os.path.join(directory, CONTROL))
    except OSError as error:
        sock.close()
        raise SupervisorLost(
            f"nobody serves at ipc://{directory} ({error.strerror or error}); "
            "start a supervisor with `onecopy serve pool.toml`"
        ) from None
    return sock


class ControlSocket:
    """A connection to the supervisor whose sockets lie in a folder.

    Raises:
        SupervisorLost: nobody serves there.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._channel = Channel(connect(directory))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the descriptor, which hangs up when the supervisor ends."""
        return self._channel.fileno()

    def admit(self) -> bytes:
        """Return a token that lets this process in.

        Raises:
            SupervisorLost: there is no answer; this socket is closed then.
        """
        try:
            answer = self.ask(Admit())
        except BaseException:
            self.close()
            raise
        assert isinstance(answer, Admitted)
        return answer.token

    def ask(self, message: Message, fds: Sequence[int] = ()) -> Message:
        """Send a message and wait for its answer.

        Raises:
            PoolError: the answer is that it was refused.
            SupervisorLost: there is no answer.
        """
        self.tell(message, fds)
        return self._answer()

    def tell(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message.

        Raises:
            PoolError: the supervisor has hung up, with this reason.
            SupervisorLost: it is gone.
        """
        try:
            self._channel.send(message, fds=fds)
        except OSError:
            while True:  # what it said last tells why, or its end that there was no reason
                self._receive()

    def lines(self, *, follow: bool) -> Iterator[list[Any]]:
        """Yield what the pool's processes printed, each the fields of a `supervisor.logs.Line`."""
        self.tell(FollowLogs(follow))
        while True:
            try:
                answer = self._answer()
            except (SupervisorLost, ValueError):
                return
            if isinstance(answer, Done):
                return
            if isinstance(answer, LogLines):
                yield from answer.lines

    def need_mailbox(self, size_bytes: int) -> tuple[MailboxGranted, int]:
        """Ask for a mailbox; its descriptor is the caller's to close.

        Raises:
            OutOfBudget: there is none to be had.
            SupervisorLost: there is no answer.
        """
        self.tell(NeedMailbox(size_bytes))
        delivery = self._receive()
        assert isinstance(delivery.message, MailboxGranted)
        return delivery.message, delivery.fds[0]

    def return_mailbox(self, number: int) -> None:
        """Give a mailbox back; a supervisor that is gone needs none."""
        with contextlib.suppress(SupervisorLost):
            self.tell(ReturnMailbox(number))

    def granter(self) -> ChannelGranter:
        """Return what asks for regions over this socket."""
        return ChannelGranter(self._channel)

    def attach(self, name: str) -> tuple[Attached, list[int]]:
        """Ask for a model's weights; the descriptors of their regions are the caller's to close.

        Raises:
            PoolError: it is refused, or cannot be loaded.
            SupervisorLost: there is no answer.
        """
        self.tell(AttachModel(name))
        delivery = self._receive()
        assert isinstance(delivery.message, Attached)
        return delivery.message, delivery.fds

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def shut(self) -> None:
        """End the conversation, so that a thread that waits here returns."""
        try:
            self._channel.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def _answer(self) -> Message:
        return self._receive().message

    def _receive(self) -> Delivery:
        try:
            delivery = self._channel.receive()
        except OSError as error:
            raise SupervisorLost(f"the supervisor at ipc://{self._directory} is gone") from error
        if delivery is None:
            raise SupervisorLost(f"the supervisor at ipc://{self._directory} is gone")
        if isinstance(delivery.message, Refused):
            raise from_record(delivery.message.error)
        return delivery
