"""What NVML tells of a GPU: how much of its memory is free, and who uses it.

NVML numbers all GPUs of the machine, whatever ``CUDA_VISIBLE_DEVICES`` says, so a GPU is found by its UUID. It
needs no CUDA context. The binding, of the package nvidia-ml-py, is imported when it is first asked.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

#: What NVML begins the UUIDs of GPUs and of their parts (Multi-Instance GPU) with; CUDA's driver tells neither.
_KINDS: Final = ("GPU-", "MIG-")


class NvmlUnusable(Exception):
    """NVML cannot be asked, or did not answer; the message says why."""


class NvmlDevice:
    """A GPU as NVML knows it.

    Args:
        uuid: such as ``GPU-1b6f8a52-...``.

    Raises:
        NvmlUnusable: NVML cannot be asked, or does not know it.
    """

    def __init__(self, uuid: str) -> None:
        self._handle = _find(uuid)

    def free_bytes(self) -> int:
        """Return how much of its memory nobody has, the driver included.

        Raises:
            NvmlUnusable: it did not answer.
        """
        with _asked() as nvml:
            # The older of two forms, which every driver has; they differ in what they call used, not in this.
            return int(nvml.nvmlDeviceGetMemoryInfo(self._handle).free)

    def processes(self) -> dict[int, int]:
        """Return the bytes of every process whose use it tells, by process id.

        Clients of a Multi-Process Service are in a list of their own, which not every GPU has.

        Raises:
            NvmlUnusable: it did not answer.
        """
        told: dict[int, int] = {}
        with _asked() as nvml:
            for function in (
                nvml.nvmlDeviceGetComputeRunningProcesses,
                nvml.nvmlDeviceGetMPSComputeRunningProcesses,
            ):
                try:
                    listed = function(self._handle)
                except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
                    continue
                told |= {int(one.pid): int(one.usedGpuMemory) for one in listed if one.usedGpuMemory is not None}
        return told


def driver_version() -> str:
    """Return the version of the driver, such as ``580.82.07``.

    Raises:
        NvmlUnusable: it cannot be asked.
    """
    with _asked() as nvml:
        return str(nvml.nvmlSystemGetDriverVersion())


def _find(uuid: str) -> Any:
    with _asked() as nvml:
        for kind in _KINDS:
            try:
                return nvml.nvmlDeviceGetHandleByUUID(kind + uuid.removeprefix(_KINDS[0]))
            except nvml.NVMLError_NotFound:
                continue
    raise NvmlUnusable(f"it does not know {uuid}")


@contextmanager
def _asked() -> Generator[Any]:
    """Enter with the binding; what NVML raises leaves as `NvmlUnusable`."""
    nvml = _binding()
    try:
        yield nvml
    except nvml.NVMLError as error:
        raise NvmlUnusable(str(error)) from error


@cache
def _binding() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise NvmlUnusable("nvidia-ml-py is not installed: pip install 'onecopy[gpu]'") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlUnusable(str(error)) from error
    return pynvml
