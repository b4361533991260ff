"""The seam between decisions about memory and GPUs: what each has, what of it can still be taken, and who has it.

::

    CUDA's driver ── what there is ───┐
                                      ├──► NvmlGpu ──► ledger, status
    NVML ── what is free, who has it ─┘

Nothing of this takes a CUDA context. Where NVML cannot be asked, all that the pool has not handed out counts as
free; nor does it tell everywhere which process has how much. `GpuMachine.complaint` says what cannot be seen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar, cast

from ...protocol import cuda
from ...protocol.cuda import GpuInfo
from ..checks import ConfigError
from .nvml import NvmlDevice, NvmlUnusable

_T = TypeVar("_T")
#: The namespace whose process ids the driver knows; the number is the kernel's (PROC_PID_INIT_INO in
#: include/linux/proc_ns.h), and no other namespace ever has it.
_INITIAL_NAMESPACE: Final = "pid:[4026531836]"
#: The driver loads within seconds, even where it has to wake many GPUs first.
_TOLD_WITHIN_S: Final = 60.0
_UNSEEN: Final = "what CUDA contexts and other programs take of the GPU is not seen, and counts as free"
_WHO_UNSEEN: Final = "what each process takes of the GPU is not told, only what all take together"


class GpuMachine(Protocol):
    """Tells what a GPU has."""

    @property
    def uuid(self) -> str:
        """What it is called in every process."""
        ...

    @property
    def name(self) -> str:
        """Which model it is."""
        ...

    @property
    def peers(self) -> tuple[int, ...]:
        """The numbers of those whose memory its kernels can use."""
        ...

    @property
    def complaint(self) -> str:
        """What cannot be seen of it, and why; empty if there is nothing."""
        ...

    def total_bytes(self) -> int:
        """Return how much memory CUDA has of it, in bytes."""
        ...

    def available_bytes(self) -> int:
        """Return how much of that could be taken now, in bytes, from 0.

        Memory of a process that has just ended comes back late.
        """
        ...

    def private_bytes(self) -> dict[int, int]:
        """Return how much each process has of it, by process id; empty where that is not told.

        Whether memory that a process has mapped counts for it, though others own it, has not been seen on a card
        yet. So this is for people. What processes take besides regions is the total, less what is available, less
        the regions, which holds in any case.
        """
        ...


class NvmlGpu:
    """A GPU of this machine.

    Args:
        ordinal: which of the devices that this process can see.
        taken_bytes: tells what the pool has handed out of its memory; that is all that is known to be taken while
            NVML does not answer.
        namespace: the kernel's name for the namespace of this process's id.

    Raises:
        CudaError: the driver cannot be used, or there is no such device.
    """

    def __init__(
        self, ordinal: int, taken_bytes: Callable[[], int] = lambda: 0, *, namespace: str = "/proc/self/ns/pid"
    ) -> None:
        info = cuda.describe(ordinal)
        self.uuid, self.name, self.peers = info.uuid, info.name, info.peers
        self._total_bytes = info.total_bytes
        self._taken_bytes = taken_bytes
        self._knows_processes = os.readlink(namespace) == _INITIAL_NAMESPACE
        self._silence = ""  # why NVML did not answer, the last time that it was asked
        self._device: NvmlDevice | None = None
        try:
            self._device = NvmlDevice(self.uuid)
        except NvmlUnusable as error:
            self._silence = str(error)

    def __repr__(self) -> str:
        return f"<NvmlGpu {self.name} {self.uuid}, {self._total_bytes:,} bytes>"

    @property
    def complaint(self) -> str:
        """What cannot be seen of it, and why; see `GpuMachine.complaint`."""
        if self._silence:
            return f"NVML cannot be asked ({self._silence}): {_UNSEEN}"
        return "" if self._knows_processes else f"NVML tells process ids of outside this container: {_WHO_UNSEEN}"

    def total_bytes(self) -> int:
        """Return what the driver tells, which is less than NVML does: it keeps some for itself."""
        return self._total_bytes

    def available_bytes(self) -> int:
        """Return what is free; while NVML does not answer, what was not handed out."""
        free_bytes = self._ask(NvmlDevice.free_bytes, self._total_bytes - self._taken_bytes())
        return max(0, min(self._total_bytes, free_bytes))

    def private_bytes(self) -> dict[int, int]:
        """Return what NVML tells; see `GpuMachine.private_bytes`."""
        return self._ask(NvmlDevice.processes, {}) if self._knows_processes else {}

    def _ask(self, question: Callable[[NvmlDevice], _T], otherwise: _T) -> _T:
        if self._device is None:
            return otherwise
        try:
            told = question(self._device)
        except NvmlUnusable as error:
            self._silence = str(error)
            return otherwise
        self._silence = ""
        return told


@dataclass
class FakeGpu:
    """A GPU that is as it is told to be.

    Attributes:
        uuid, name, complaint, peers: as in `GpuMachine`.
        memory_bytes: what it has.
        used_bytes: what of it is taken.
        processes: what each process has of it, by process id.
    """

    uuid: str = "GPU-00000000-0000-4000-8000-000000000000"
    name: str = "Fake"
    complaint: str = ""
    memory_bytes: int = 1 << 33
    used_bytes: int = 0
    processes: Mapping[int, int] = field(default_factory=dict[int, int])
    peers: tuple[int, ...] = ()

    def total_bytes(self) -> int:
        """Return what it was told; see `GpuMachine.total_bytes`."""
        return self.memory_bytes

    def available_bytes(self) -> int:
        """Return what is not taken; see `GpuMachine.available_bytes`."""
        return max(0, self.memory_bytes - self.used_bytes)

    def private_bytes(self) -> dict[int, int]:
        """Return what it was told; see `GpuMachine.private_bytes`."""
        return dict(self.processes)


def visible() -> list[GpuInfo]:
    """Return the GPUs that CUDA shows to processes with this environment, in its order.

    A process of its own asks the driver: once this one had, no fork of it could use CUDA any more, which an app
    that starts a pool may still want. That takes a few tenths of a second.

    Raises:
        ConfigError: there is none, or the driver cannot be used; the message says why.
    """
    program = "from onecopy.pool.memory.gpus import tell_visible; tell_visible()"
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            [sys.executable, "-P", "-c", program], capture_output=True, check=False, timeout=_TOLD_WITHIN_S
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"no GPU can be used: the driver did not answer in {_TOLD_WITHIN_S:g} s") from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ConfigError(f"no GPU can be used: {last or f'exit code {done.returncode}'}")
    return [GpuInfo(*map(_immutable, values)) for values in json.loads(done.stdout)]


def _immutable(value: Any) -> Any:
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value


def tell_visible() -> None:
    """Print the GPUs that this process can see, for `visible`.

    Raises:
        SystemExit: there is none, or the driver cannot be used; its message says why.
    """
    told: Any
    try:
        told = [cuda.describe(ordinal) for ordinal in range(cuda.count())]
    except cuda.CudaError as error:
        sys.exit(str(error))
    print(json.dumps(told))  # noqa: T201


def ordinal_of(name: str, gpus: Sequence[GpuInfo]) -> int:
    """Return the number of the GPU that the name of a device means.

    Args:
        name: ``cuda:`` and its number, or the beginning of its UUID, such as ``cuda:GPU-1b6f``.
        gpus: those that there are, from `visible`.

    Raises:
        ConfigError: it means none of them, or several.
    """
    asked = name.removeprefix("cuda:").lower()
    found = [
        gpu.ordinal
        for gpu in gpus
        if asked == str(gpu.ordinal) or (asked.startswith("gpu-") and gpu.uuid.lower().startswith(asked))
    ]
    if len(found) == 1:
        return found[0]
    there = ", ".join(f"cuda:{gpu.ordinal} ({gpu.name}, {gpu.uuid})" for gpu in gpus) or "none"
    raise ConfigError(f"the device {name!r} means {'several GPUs' if found else 'no GPU'}; there are: {there}")
