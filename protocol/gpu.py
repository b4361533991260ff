"""A GPU as a process uses it: what torch calls its memory, and regions of it that become torch storages.

::

    begin ──► Gpu ── map ──► DeviceMemory ── storage ──► tensors

A process with a CUDA context must not fork. So the zygote never begins to use a GPU, and its children do so first
thing: torch makes the context, which its calls and the driver's share.

Importing this module imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from . import cuda
from .errors import LoadFailed

if TYPE_CHECKING:
    import torch

#: Instead of the number of a GPU: there is none, models run on the processor.
NO_GPU: Final = -1


class Gpu:
    """A GPU that this process has begun to use.

    Attributes:
        ordinal: its number among those that this process can see.
        device: what tensors in its memory are on. Where the driver says that the processor can use that memory as
            its own, and torch was built without CUDA, that is torch's CPU.
    """

    def __init__(self, ordinal: int, device: torch.device) -> None:
        self.ordinal = ordinal
        self.device = device
        self.grain_bytes = cuda.granularity_bytes(ordinal)

    def __repr__(self) -> str:
        return f"<Gpu {self.ordinal}, {self.device}>"

    def map(self, fd: int, size_bytes: int, *, is_writable: bool = False) -> DeviceMemory:
        """Map a region.

        Args:
            fd: the region; the caller may close it afterwards.
            size_bytes: of what is in it; the region is as large as whole grains make it.
            is_writable: whether this process may write there, too.

        Raises:
            OSError: the driver refused.
        """
        whole_bytes = -(-size_bytes // self.grain_bytes) * self.grain_bytes
        try:
            return DeviceMemory(self, cuda.DeviceMapping(fd, whole_bytes, self.ordinal, is_writable=is_writable))
        except cuda.CudaError as error:
            raise OSError(f"memory of the GPU {self.ordinal} cannot be mapped: {error}") from error

    def synchronize(self) -> None:
        """Wait until the GPU has done what it was told to.

        Raises:
            RuntimeError: something of that failed.
        """
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)


class DeviceMemory:
    """Mapped memory of a GPU. What is made from it keeps it mapped."""

    def __init__(self, gpu: Gpu, mapping: cuda.DeviceMapping) -> None:
        self._gpu = gpu
        self._mapping = mapping

    def __len__(self) -> int:
        """How many bytes there are."""
        return len(self._mapping)

    def storage(self, offset_bytes: int, size_bytes: int) -> torch.UntypedStorage:
        """Make a torch storage of a piece of it, without copying.

        Raises:
            ValueError: the piece does not lie inside.
        """
        import torch

        if offset_bytes < 0 or size_bytes < 0 or offset_bytes + size_bytes > len(self):
            raise ValueError(
                f"{size_bytes} bytes at offset {offset_bytes} do not lie inside a mapping of {len(self)} bytes"
            )
        address = self._mapping.address + offset_bytes
        make: Any = torch._C._construct_storage_from_data_pointer
        storage = make(address, self._gpu.device, size_bytes)
        storage.mapped_as = self  # torch keeps this attribute as long as any tensor has the storage
        return storage

    def bytes_at(self, offset_bytes: int, size_bytes: int) -> torch.Tensor:
        """Return a piece of it as a tensor of bytes.

        Raises:
            ValueError: the piece does not lie inside.
        """
        import torch

        storage = self.storage(offset_bytes, size_bytes)
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def begin(ordinal: int) -> Gpu | None:
    """Make this process one that uses a GPU, for good; `NO_GPU` does nothing and returns None.

    Raises:
        LoadFailed: torch, or the driver, cannot use it.
    """
    if ordinal == NO_GPU:
        return None
    import torch

    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(ordinal)
            torch.empty(1, device="cuda")  # makes the context, which the driver's calls find
            return Gpu(ordinal, torch.device("cuda", ordinal))
        if cuda.is_host_memory(ordinal):
            return Gpu(ordinal, torch.device("cpu"))
    except (RuntimeError, cuda.CudaError) as error:
        raise LoadFailed(f"the GPU {ordinal} cannot be used: {error}") from error
    raise LoadFailed(f"the GPU {ordinal} cannot be used: this torch, {torch.__version__}, was built without CUDA")
