"""The zygote: imports once, then forks loaders and workers.

``python -m onecopy.workers.zygote CHANNEL_FD LIFE_FD DIRECTORY``

It has one thread, always, and never initialises CUDA: a process with threads or a CUDA context must not fork.
What it has imported and thawed is shared by all children, page by page, until somebody writes. If the supervisor
is gone it removes the folder of the supervisor's sockets, and leaves.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Generator
from typing import Final, NoReturn

from ..protocol.channel import Channel, Delivery
from ..protocol.errors import PoolError
from ..protocol.leftovers import remove_if_abandoned
from ..protocol.messages import (
    Adopt,
    Adopted,
    Exited,
    ForkChild,
    Forked,
    Leave,
    Thaw,
    Thawed,
    ThawFailed,
    ZygoteReady,
)
from . import heap
from .held import HeldModel, rehearse, thaw_to_fork, threads
from .lifeline import Lifeline, arm_child
from .paths import extend_path
from .preload import forget_preload, without_slots

#: What every child needs. Imported before the first fork.
_PRELOADED = (
    "numpy", "torch", "cloudpickle", "onecopy.protocol.frozen", "onecopy.protocol.arrays",
    "onecopy.workers.loader", "onecopy.workers.worker", "onecopy.workers.batches",
)  # fmt: skip
#: Of prctl(2), which Python has no name for.
_PR_SET_CHILD_SUBREAPER: Final = 36
#: How long the lock of a supervisor that is dying may stay taken.
_LOCK_S = 5.0


class Zygote:
    """The zygote's state: its channel, its lifeline, and which child has which process id."""

    def __init__(self, channel: Channel, life_fd: int, directory: str) -> None:
        self._channel = channel
        self._life_fd = life_fd
        self._directory = directory
        self._is_dismissed = False
        # SIGCONT wakes it even if it is stopped; it then finds its channel closed, and cleans up.
        self._lifeline = Lifeline(life_fd, signal.SIGCONT, os.getpid())
        self._children: dict[int, int] = {}
        self._held: dict[int, HeldModel] = {}
        self._orders: deque[Delivery] = deque()
        self._wakeup_read, self._wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> None:
        """Serve the supervisor until it is gone."""
        self._import(list(_PRELOADED))
        _adopt_orphans()
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_write)
        try:
            self._channel.send(ZygoteReady(without_slots()))
            self._serve()
        except OSError:  # the supervisor is gone
            pass
        if not self._is_dismissed:
            self._clean_up()

    def _serve(self) -> None:
        poller = select.poll()
        poller.register(self._channel.fileno(), select.POLLIN)
        poller.register(self._wakeup_read, select.POLLIN)
        while not self._channel.is_at_end and not self._is_dismissed:
            ready = dict(poller.poll())
            if self._wakeup_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wakeup_read, 4096)
                self._reap()
            if self._channel.fileno() in ready:
                self._channel.socket.setblocking(False)
                self._orders.extend(self._channel.arrived())
                self._channel.socket.setblocking(True)
                while self._orders:
                    self._handle(self._orders.popleft())

    def _handle(self, delivery: Delivery) -> None:
        message = delivery.message
        if isinstance(message, ForkChild):
            self._fork(message, delivery.fds)
        elif isinstance(message, Adopt):
            self._adopt(message)
        elif isinstance(message, Thaw):
            self._thaw(message, delivery.fds)
        elif isinstance(message, Leave):
            self._is_dismissed = True

    def _clean_up(self) -> None:
        """Remove the folder of a supervisor that was killed.

        The kernel closes the descriptors of a dying process one by one: the channel may end before the lock is
        free.
        """
        give_up_at = time.monotonic() + _LOCK_S
        while not remove_if_abandoned(self._directory) and time.monotonic() < give_up_at:
            time.sleep(0.005)

    # --- children -------------------------------------------------------------------------------------------

    def _fork(self, order: ForkChild, fds: list[int]) -> None:
        pid = os.fork()
        if pid == 0:
            self._become_child(order, fds)
        for fd in fds:
            os.close(fd)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # both sides do: whoever signals the group next must find it
        self._children[pid] = order.child
        pidfd = os.pidfd_open(pid)
        self._channel.send(Forked(order.child, pid), fds=(pidfd,))
        os.close(pidfd)

    def _become_child(self, order: ForkChild, fds: list[int]) -> NoReturn:
        """Be a child from here on; never return into the zygote's code."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            arm_child(self._life_fd)
            self._channel.close()
            for fd in (self._wakeup_read, self._wakeup_write):
                os.close(fd)
            for order_of_another in self._orders:
                order_of_another.close_fds()
            channel_fd, output_fd, marks_fd = fds
            for standard in (1, 2):
                os.dup2(output_fd, standard)
            os.close(output_fd)
            channel = Channel(socket.socket(fileno=channel_fd))
            from . import loader, worker  # imported already; at the top they would import torch too early

            if order.role == "worker":
                worker.main(channel, marks_fd, order.settings, self._held)
            elif order.role == "trial":
                os.close(marks_fd)
                rehearse(channel)
            else:
                os.close(marks_fd)
                for held in self._held.values():
                    held.let_go()
                loader.main(channel, order.settings["gpu"])
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        except BaseException as error:  # noqa: BLE001 - this is the outermost frame of the process
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is not None:
                self._channel.send(Exited(child, status))

    # --- what children find -----------------------------------------------------------------------------------

    def _adopt(self, order: Adopt) -> None:
        extend_path(order.paths)
        refused = self._import(order.modules)
        self._channel.send(Adopted(order.generation, refused, threads()))

    def _thaw(self, order: Thaw, fds: list[int]) -> None:
        answer: Thawed | ThawFailed
        with self._code_of_others():
            try:
                self._held[order.weight_set], answer = thaw_to_fork(order, fds)
            except PoolError as error:
                answer = ThawFailed(order.weight_set, error.to_record())
        self._channel.send(answer)

    def _import(self, names: list[str]) -> dict[str, str]:
        """Import modules; return which could not be, and why. Stops at one that starts a thread."""
        refused: dict[str, str] = {}
        with self._code_of_others():
            for name in names:
                if name in sys.modules:
                    continue
                try:
                    importlib.import_module(name)
                except BaseException as error:  # noqa: BLE001 - whatever a module raises is told to the user
                    refused[name] = f"importing it raised {type(error).__name__}: {error}"
                if threads() > 1:
                    refused[name] = "importing it starts a thread"
                    break
        return refused

    @contextlib.contextmanager
    def _code_of_others(self) -> Generator[None]:
        """Run what may hang: meanwhile, the end of the supervisor kills. What it leaves in memory stays there."""
        self._lifeline.set_signal(signal.SIGKILL)
        heap.unsettle()
        yield
        self._lifeline.set_signal(signal.SIGCONT)
        self._lifeline.check()
        heap.settle()


def _adopt_orphans() -> None:
    """Be given what models leave behind when it ends, and take it off the table with the rest.

    Else an app that is a container's first process is given it, and hardly knows what to do with it.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # at worst they go where they went before


def main() -> None:
    """Run a zygote with what the supervisor passed on the command line."""
    channel_fd, life_fd, directory = sys.argv[1:]
    forget_preload()
    Zygote(Channel(socket.socket(fileno=int(channel_fd))), int(life_fd), directory).run()


if __name__ == "__main__":
    main()
