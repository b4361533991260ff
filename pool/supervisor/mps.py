"""NVIDIA's Multi-Process Service, by which processes compute on a GPU at the same time instead of taking turns.

::

    supervisor ── standard input ──► keeper ──► control daemon ──► servers ◄── zygotes' children

The daemon is the pool's own: its sockets lie in the runtime folder, which no other user can enter, and it ends
with the pool, see `mps_keeper`. A process that cannot reach it silently computes without it. So it is asked before
the first zygote starts, and whatever keeps a pool from using it is said.

What NVIDIA's documents tell of the daemon is relied on; on a card none of this has been seen yet.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from ...protocol import cuda
from ...protocol.errors import PoolError
from ...protocol.gpu import NO_GPU
from .. import environment
from ..devices import gpu_of
from ..runtime import MAX_PATH_BYTES
from ..settings import Settings
from .logs import Level
from .reactor import Reactor
from .statuses import describe_status, status_of
from .zygote import ZygoteProcess

CONTROL: Final = "nvidia-cuda-mps-control"
#: Where images have the driver's programs besides PATH.
_ELSEWHERE: Final = "/usr/bin:/usr/local/nvidia/bin:/usr/local/cuda/bin"
#: The longest name that the daemon gives a file in its folder.
_LONGEST: Final = "nvidia-cuda-mps-control.pid"
#: It answers at once, or never will.
_STARTS_WITHIN_S: Final = 10.0
_ANSWERS_WITHIN_S: Final = 2.0
#: How long between two questions to one that starts.
_AGAIN_S: Final = 0.05
#: What the keeper may take, which waits twice for two seconds; an app waits ten for the whole supervisor.
_ENDS_WITHIN_S: Final = 5.0
_KEPT_LINES: Final = 3


class MpsUnusable(Exception):
    """The service cannot be used; the message says why."""


class Mps:
    """The service of a pool, if it is to have one.

    Args:
        settings: whether it is, and the devices.
        directory: the runtime folder.
        reactor: whose epoll watches the daemon.
        note: takes sentences for the log.

    Attributes:
        fallbacks: why computing is done without it, though it was asked for.
    """

    def __init__(
        self, settings: Settings, directory: str, reactor: Reactor, note: Callable[[str, Level], None]
    ) -> None:
        self._settings = settings
        self._folder = Path(directory, "mps")
        self._reactor = reactor
        self._note = note
        self._zygotes: list[ZygoteProcess] = []
        self._keeper: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self.fallbacks: list[str] = []

    def __repr__(self) -> str:
        return f"<Mps, {f'kept by process {self._keeper.pid}' if self._keeper else 'not running'}>"

    def start(self, zygotes: Mapping[str, ZygoteProcess]) -> None:
        """Start it if it is wanted, and let zygotes that start from now on know it.

        Args:
            zygotes: by the names of their devices.

        Raises:
            PoolError: it must be used, and cannot be.
        """
        devices = [name for name in zygotes if gpu_of(name) != NO_GPU]
        if self._settings.mps == "off" or (self._settings.mps == "auto" and not devices):
            return
        try:
            if not devices:
                raise MpsUnusable("the pool has no device of a GPU, such as 'cuda:0'")
            known = self._start()
        except (MpsUnusable, OSError) as error:
            self.close()
            if self._settings.mps == "on":
                text = f"the Multi-Process Service cannot be used: {error}; mps = 'auto' goes on without it"
                raise PoolError(text) from error
            self._without(str(error))
            return
        for name in devices:
            zygotes[name].environment = known | _share(self._settings.devices[name].share)
            self._zygotes.append(zygotes[name])
        self._note("mps: processes of a GPU compute at the same time", "info")

    def close(self) -> None:
        """End it, with everything that it has started."""
        if self._keeper is None:
            return
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        try:
            self._keeper.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._keeper.pid, signal.SIGKILL)
        self._let_go()

    def _start(self) -> dict[str, str]:
        """Start it; return what makes processes its clients."""
        program = find()
        known = self._make_folders() | _visible()
        with open(self._folder / "log" / "daemon.log", "wb") as log:
            self._keeper = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-P", "-m", "onecopy.pool.supervisor.mps_keeper", program],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment.with_also(known),
                start_new_session=True,
            )
        self._wait(self._keeper, program, known)
        self._pidfd = os.pidfd_open(self._keeper.pid)
        self._reactor.watch(self._pidfd, self._ended)
        return known

    def _make_folders(self) -> dict[str, str]:
        longest = os.fsencode(self._folder / "pipe" / _LONGEST)
        if len(longest) > MAX_PATH_BYTES:
            raise MpsUnusable(
                f"the paths of its sockets would be {len(longest)} bytes long, and {MAX_PATH_BYTES} is the most: "
                "set XDG_RUNTIME_DIR to a shorter folder"
            )
        made: dict[str, str] = {}
        shutil.rmtree(self._folder, ignore_errors=True)  # of a predecessor that was killed
        self._folder.mkdir(mode=0o700)
        for name in ("pipe", "log"):
            (self._folder / name).mkdir(mode=0o700)
            made[f"CUDA_MPS_{name.upper()}_DIRECTORY"] = str(self._folder / name)
        return made

    def _wait(self, keeper: subprocess.Popen[bytes], program: str, known: Mapping[str, str]) -> None:
        """Wait until the daemon answers."""
        deadline = time.monotonic() + _STARTS_WITHIN_S
        while True:
            try:
                _servers(program, known)
                return
            except MpsUnusable as error:
                complaint = str(error)
            with suppress(subprocess.TimeoutExpired):
                keeper.wait(_AGAIN_S)
                cause = describe_status(status_of(keeper))
                raise MpsUnusable(f"its daemon ended at once ({cause}{self._log()})")
            if time.monotonic() > deadline:
                raise MpsUnusable(f"its daemon does not answer: {complaint}")

    def _log(self) -> str:
        """Return the last lines that it has written, after a colon."""
        lines: list[str] = []
        for path in sorted((self._folder / "log").glob("*.log")):
            lines += path.read_text(errors="replace").strip().splitlines()[-_KEPT_LINES:]
        return f": {' | '.join(lines)}" if lines else ""

    def _ended(self) -> None:
        assert self._keeper is not None
        self._keeper.wait()
        cause = f"its daemon ended ({describe_status(status_of(self._keeper))}{self._log()})"
        self._let_go()
        for zygote in self._zygotes:
            zygote.environment = {}
        self._without(cause)

    def _without(self, why: str) -> None:
        text = f"mps: processes of a GPU compute in turns: {why}"
        self.fallbacks.append(text)
        self._note(text, "warning")

    def _let_go(self) -> None:
        assert self._keeper is not None
        assert self._keeper.stdin is not None
        self._keeper.wait()
        self._keeper.stdin.close()
        if self._pidfd >= 0:
            self._reactor.forget(self._pidfd)
            os.close(self._pidfd)
        self._keeper, self._pidfd = None, -1


def find() -> str:
    """Return the path of the control program.

    Raises:
        MpsUnusable: it is not there.
    """
    found = shutil.which(CONTROL) or shutil.which(CONTROL, path=_ELSEWHERE)
    if found is None:
        raise MpsUnusable(f"{CONTROL}, which comes with the driver, is not on PATH")
    return found


def _servers(program: str, known: Mapping[str, str]) -> list[int]:
    """Return the process ids of the daemon's servers, none before the first client.

    Raises:
        MpsUnusable: it does not answer.
    """
    try:
        done = subprocess.run(  # noqa: S603 - the driver's program
            [program],
            input="get_server_list\n",
            env=environment.with_also(known),
            capture_output=True,
            text=True,
            check=False,
            timeout=_ANSWERS_WITHIN_S,
        )
    except subprocess.TimeoutExpired as error:
        raise MpsUnusable(f"nothing came in {_ANSWERS_WITHIN_S:g} s") from error
    except OSError as error:
        raise MpsUnusable(f"{program}: {error.strerror}") from error
    said = done.stdout.split()
    if done.returncode or not all(word.isdigit() for word in said):
        raise MpsUnusable((done.stdout + done.stderr).strip() or describe_status(done.returncode << 8))
    return [int(word) for word in said]


def _share(percent: int) -> dict[str, str]:
    """Return what holds each process of a device to a part of its multiprocessors, in percent; 0: all of them."""
    return {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(percent)} if percent else {}


def _visible() -> dict[str, str]:
    """Return what shows daemon and clients the same GPUs.

    A client counts those that the daemon was shown, so numbers would apply twice; UUIDs mean the same to both.

    Raises:
        MpsUnusable: the driver cannot be used.
    """
    if not any(one.strip().isdigit() for one in environment.visible_gpus().split(",")):
        return {}
    try:
        uuids = [cuda.describe(ordinal).uuid for ordinal in range(cuda.count())]
    except cuda.CudaError as error:
        raise MpsUnusable(str(error)) from error
    return {"CUDA_VISIBLE_DEVICES": ",".join(uuids)}
