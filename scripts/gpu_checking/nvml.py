"""What NVML says of the GPU; it needs no context."""

from __future__ import annotations

import time
from typing import Any

from .check import Untried
from .units import MIB


class Gpu:
    """The first GPU.

    Raises:
        Untried: NVML cannot be asked.
    """

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise Untried("NVML cannot be asked: nvidia-ml-py is not installed") from error
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        except pynvml.NVMLError as error:
            raise Untried(f"NVML cannot be asked: {error}") from error

    def free_bytes(self) -> int:
        """Return how much memory is free."""
        return int(self._memory().free)

    def used_bytes(self) -> int:
        """Return how much memory processes use, without what the driver keeps for itself."""
        return int(self._memory().used)

    def settled_free_bytes(self, timeout_s: float = 3.0) -> int:
        """Return how much is free once that has stood still for 200 ms."""
        deadline, last, since = time.monotonic() + timeout_s, self.free_bytes(), time.monotonic()
        while time.monotonic() < deadline and time.monotonic() - since < 0.2:
            time.sleep(0.01)
            if (now := self.free_bytes()) != last:
                last, since = now, time.monotonic()
        return last

    def wait_until_free(self, wanted_bytes: int, timeout_s: float = 5.0) -> float | None:
        """Return after how many milliseconds so much is free; None if it is not in time."""
        started_at = time.perf_counter()
        while self.free_bytes() < wanted_bytes:
            if time.perf_counter() - started_at > timeout_s:
                return None
            time.sleep(0.002)
        return (time.perf_counter() - started_at) * 1e3

    def processes(self) -> dict[int, int | None]:
        """Return the bytes of every process with a context that NVML lists, None where it does not tell.

        Raises:
            Untried: It lists none on this machine.
        """
        try:
            listed = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._nvml.NVMLError as error:
            raise Untried(f"NVML lists no processes: {error}") from error
        return {int(one.pid): one.usedGpuMemory for one in listed}

    def describe(self) -> dict[str, Any]:
        """Return what figures may depend on; what NVML does not tell is left out."""
        nvml, handle = self._nvml, self._handle
        asked = {
            "gpu": lambda: nvml.nvmlDeviceGetName(handle),
            "gpu uuid": lambda: nvml.nvmlDeviceGetUUID(handle),
            "driver": nvml.nvmlSystemGetDriverVersion,
            "persistence mode": lambda: nvml.nvmlDeviceGetPersistenceMode(handle),
            "compute mode": lambda: nvml.nvmlDeviceGetComputeMode(handle),
            "PCIe generation": lambda: nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle),
            "PCIe width": lambda: nvml.nvmlDeviceGetCurrPcieLinkWidth(handle),
            "memory, MiB": lambda: self._memory().total // MIB,
            "memory reserved by the driver, MiB": lambda: self._memory().reserved // MIB,
            "memory used before the run, MiB": lambda: self._memory().used // MIB,
        }
        told = {}
        for name, ask in asked.items():
            try:
                told[name] = ask()
            except nvml.NVMLError:
                continue
        return told

    def _memory(self) -> Any:
        # Version 2: the first one counts what the driver reserves as used.
        return self._nvml.nvmlDeviceGetMemoryInfo(self._handle, version=self._nvml.nvmlMemory_v2)
