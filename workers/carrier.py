"""The carrier: a process that copies weights from a GPU to files and back, because its supervisor has no context.

``python -m onecopy.workers.carrier CHANNEL_FD ORDINAL``

It needs no torch, so it is there in a moment. It ends when the supervisor closes its channel, or is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys

from ..protocol.channel import Channel, Delivery
from ..protocol.cuda import CudaError, DeviceMapping
from ..protocol.cuda_files import FileCopier
from ..protocol.messages import Carried, Carry


def main() -> None:
    """Carry out orders until there is nobody who could give one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keyboard's is for the supervisor, which ends this
    channel, ordinal = Channel(socket.socket(fileno=int(sys.argv[1]))), int(sys.argv[2])
    copier: FileCopier | None = None
    with contextlib.suppress(OSError):  # the supervisor is gone
        while (delivery := channel.receive()) is not None:
            try:
                copier = copier or FileCopier(ordinal)
                _carry(copier, delivery, ordinal)
            except (CudaError, OSError) as error:
                channel.send(Carried(str(error)))
            else:
                channel.send(Carried(""))


def _carry(copier: FileCopier, delivery: Delivery, ordinal: int) -> None:
    order = delivery.message
    assert isinstance(order, Carry)
    region_fd, file_fd = delivery.fds
    try:
        memory = DeviceMapping(region_fd, order.size_bytes, ordinal, is_writable=order.to_gpu)
        if order.to_gpu:
            copier.read(file_fd, memory, order.size_bytes)
        else:
            copier.write(memory, file_fd, order.size_bytes)
    finally:
        for fd in (region_fd, file_fd):
            os.close(fd)


if __name__ == "__main__":
    main()
