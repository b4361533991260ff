"""A supervisor that an app has started, and that ends with it."""

from __future__ import annotations

import os
import socket

from ...protocol.channel import Channel
from ...protocol.errors import InvalidRequest, PoolError
from ...protocol.messages import Configure, Refused
from ..runtime import RuntimeDirectory
from ..settings import Settings
from .supervisor import Supervisor


def serve_owner(owner_fd: int) -> int:
    """Run the supervisor of the app that started this process; return the exit code."""
    owner_pid = os.getppid()
    pidfd = os.pidfd_open(owner_pid)
    if os.getppid() != owner_pid:  # it was gone before it could be watched
        return 1
    refusals = Channel(socket.socket(fileno=os.dup(owner_fd)))  # the supervisor closes what it was given
    channel = Channel(socket.socket(fileno=owner_fd))
    first = channel.receive()
    if first is None:
        return 1
    try:
        if not isinstance(first.message, Configure):
            raise InvalidRequest("the first message must be Configure")
        settings = Settings.from_wire(first.message.settings)
        supervisor = Supervisor(settings, RuntimeDirectory(), is_verbose=False)
        owner = supervisor.control.add(channel, owner_pid, pidfd, is_owner=True)
        supervisor.serve(owner)
    except PoolError as error:
        refusals.send(Refused(error.to_record()))
        return 1
    return 0
