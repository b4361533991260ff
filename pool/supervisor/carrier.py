"""The process that copies weights from one GPU to files and back, as long as there is something to copy.

It has a context on the GPU, which takes hundreds of megabytes. So it is started when it is needed, and ended when
it was not needed for a while.
"""

from __future__ import annotations

import errno
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final

from ...protocol.channel import Channel
from ...protocol.gpu import NO_GPU
from ...protocol.messages import Carried, Carry
from .. import environment
from ..core.numbers import device_of
from ..memory.spill import NotWanted
from ..settings import Settings
from .statuses import describe_status, status_of

#: How long it stays when there is nothing to copy: to start it again takes half a second.
LINGER_S: Final = 10.0
#: How often it is asked whether a copy is still wanted.
_LOOK_MS: Final = 50


class Carrier:
    """Copies for one GPU. All but `pid` is for one thread at a time.

    Args:
        ordinal: which GPU.
        more_environment: what the process has in its environment besides.

    Attributes:
        pid: the process, or 0.
    """

    def __init__(self, ordinal: int, more_environment: Callable[[], Mapping[str, str]]) -> None:
        self.pid = 0
        self._ordinal = ordinal
        self._more_environment = more_environment
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._used_at = 0.0

    def write_out(self, region_fd: int, file_fd: int, size_bytes: int, is_wanted: Callable[[], bool]) -> None:
        """Copy a region into a file, on the disk.

        Raises:
            NotWanted: it was asked for no longer.
            OSError: the GPU or the disk fails, or the process died.
        """
        self._carry(Carry(size_bytes, to_gpu=False), region_fd, file_fd, is_wanted)

    def bring_back(self, region_fd: int, file_fd: int, size_bytes: int, is_wanted: Callable[[], bool]) -> None:
        """Fill a region with a file.

        Raises:
            NotWanted: it was asked for no longer.
            OSError: the GPU or the disk fails, or the process died.
        """
        self._carry(Carry(size_bytes, to_gpu=True), region_fd, file_fd, is_wanted)

    def rest(self) -> None:
        """End the process if it was not needed for so long."""
        if time.monotonic() - self._used_at >= LINGER_S:
            self.close()

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._let_go()

    def _carry(self, order: Carry, region_fd: int, file_fd: int, is_wanted: Callable[[], bool]) -> None:
        try:
            answer = self._asked(order, region_fd, file_fd, is_wanted)
            if answer is None:  # whoever killed it: a copy can be begun again
                self._bury()
                answer = self._asked(order, region_fd, file_fd, is_wanted)
        finally:
            self._used_at = time.monotonic()
        if answer is None:
            what = f"the process that copies from and to the GPU {self._ordinal} died twice"
            raise OSError(errno.EIO, f"{what} ({self._bury()})")
        if answer.complaint:
            what = f"weights cannot be copied from or to the GPU {self._ordinal}"
            raise OSError(errno.EIO, f"{what}: {answer.complaint}")

    def _asked(self, order: Carry, region_fd: int, file_fd: int, is_wanted: Callable[[], bool]) -> Carried | None:
        """Return what it says; None if it is gone."""
        channel = self._channel or self._started()
        try:
            channel.send(order, fds=(region_fd, file_fd))
        except OSError:
            return None
        poller = select.poll()
        poller.register(channel.fileno(), select.POLLIN)
        while not poller.poll(_LOOK_MS):
            if not is_wanted():
                self.close()  # nothing else makes it stop
                raise NotWanted
        delivery = channel.receive()
        if delivery is None:
            return None
        assert isinstance(delivery.message, Carried)
        return delivery.message

    def _started(self) -> Channel:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        command = [sys.executable, "-P", "-m", "onecopy.workers.carrier", str(theirs.fileno()), str(self._ordinal)]
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environment.with_also(self._more_environment()),
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._channel = Channel(ours)
        return self._channel

    def _bury(self) -> str:
        """Let go of a process that is gone, or talks no more; return how it ended."""
        process = self._process
        assert process is not None
        process.kill()
        self._let_go()
        return describe_status(status_of(process))

    def _let_go(self) -> None:
        assert self._process is not None
        assert self._channel is not None
        self._channel.close()
        self._process.wait()
        self._process, self._channel, self.pid = None, None, 0


class Carriers:
    """Those of all GPUs of a pool.

    Args:
        carriers: by the number of the device.
        devices: how many devices there are.
    """

    def __init__(self, carriers: Mapping[int, Carrier], devices: int) -> None:
        self._carriers = carriers
        self._devices = devices

    @classmethod
    def of_pool(cls, settings: Settings, environment_of: Callable[[int], Mapping[str, str]]) -> Carriers:
        """Return those for a pool of these settings, whose processes have that besides in their environment."""
        gpus = {device: settings.on(name).gpu for device, name in enumerate(settings.devices)}
        carriers = {
            device: Carrier(gpu, lambda device=device: environment_of(device))
            for device, gpu in gpus.items()
            if gpu != NO_GPU
        }
        return cls(carriers, len(gpus))

    def of(self, region: int) -> Carrier | None:
        """Return who copies a region; None if it is in the processor's memory."""
        return self._carriers.get(device_of(region, self._devices))

    @property
    def pids(self) -> list[int]:
        """Their processes, as far as they are there."""
        return [one.pid for one in self._carriers.values() if one.pid]

    def close(self) -> None:
        """End their processes."""
        for carrier in self._carriers.values():
            carrier.close()
