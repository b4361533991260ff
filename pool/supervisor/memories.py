"""The memory of a pool's devices: what tells how much there is, makes regions of it, and copies those of GPUs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...protocol.cuda import CudaError
from ...protocol.gpu import NO_GPU
from ..checks import ConfigError
from ..devices import gpu_of, peers_of
from ..memory.base import RegionStore
from ..memory.cuda import CudaStore
from ..memory.gpus import GpuMachine, NvmlGpu
from ..memory.machine import LinuxMachine, Machine
from ..memory.memfd import MemfdStore
from ..settings import Settings
from .carrier import Carriers


class Memories:
    """The processor's memory, and that of each device.

    Args:
        settings: which devices there are.
        environment_of: what processes of a device have in their environment besides.

    Attributes:
        machine: tells how much memory the machine has.
        host: makes regions of that.
        devices: by device, what tells how much memory it has.
        stores: by device, what makes regions of that.
        gpus: those devices that are GPUs, by name.
        peers: by device, the others whose memory its processes can use.
        carriers: what copies their regions.

    Raises:
        ConfigError: a GPU cannot be used.
    """

    def __init__(self, settings: Settings, environment_of: Callable[[int], Mapping[str, str]]) -> None:
        self.machine = LinuxMachine()
        self.host = MemfdStore(self.machine)
        self.devices: list[Machine | GpuMachine] = []
        self.stores: list[RegionStore] = []
        self.gpus: dict[str, GpuMachine] = {}
        self.carriers = Carriers.of_pool(settings, environment_of)
        for name in settings.devices:
            ordinal = settings.on(name).gpu
            if ordinal == NO_GPU:
                self.devices.append(self.machine)
                self.stores.append(self.host)
            else:
                self._add_gpu(name, ordinal)
        self.peers = peers_of(settings.devices, {gpu_of(name): gpu.peers for name, gpu in self.gpus.items()})

    @property
    def fallbacks(self) -> list[str]:
        """What of GPUs cannot be seen, a sentence each."""
        return [f"{name}: {gpu.complaint}" for name, gpu in self.gpus.items() if gpu.complaint]

    def _add_gpu(self, name: str, ordinal: int) -> None:
        try:
            gpu = NvmlGpu(ordinal, lambda: store.taken_bytes)
            store = CudaStore(ordinal, gpu.available_bytes)
        except CudaError as error:
            raise ConfigError(f"the device {name!r} cannot be used: {error}") from error
        self.gpus[name] = gpu
        self.devices.append(gpu)
        self.stores.append(store)
