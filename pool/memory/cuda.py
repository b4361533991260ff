"""Memory of a GPU: CUDA allocations that live by their descriptors, made without a CUDA context.

It differs from host memory where the hardware does. All of a region's memory is there from the beginning, in whole
grains of the driver, so none of it can be given back alone, and none can grow. Sealing is a promise of those who
map it, who do so read-only: the driver knows no seals, and does not tell who has mapped what.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from ...protocol import cuda
from .base import Region, RegionRefused, check_grows, check_open, check_size

#: Memory of a process that has just ended comes back late: so long it is asked for, and so often. Nothing else is
#: done meanwhile, but it should be there: it was looked whether so much is free.
_PATIENCE_S: Final = 0.2
_PAUSE_S: Final = 0.01
_KEEPS_ITS_SIZE: Final = "is memory of a GPU, which keeps its size"


class CudaStore:
    """Regions in the memory of one GPU.

    Args:
        ordinal: which of the devices that this process can see.
        available_bytes: tells how much of its memory is free.

    Attributes:
        taken_bytes: the sizes of all regions that are open.

    Raises:
        CudaError: the driver cannot be used, or there is no such device.
    """

    def __init__(self, ordinal: int, available_bytes: Callable[[], int]) -> None:
        self.taken_bytes = 0
        self._ordinal = ordinal
        self._available_bytes = available_bytes
        self._grain_bytes = cuda.granularity_bytes(ordinal)

    def __repr__(self) -> str:
        return f"<CudaStore, device {self._ordinal}>"

    def create(self, size_bytes: int, name: str, *, resizable: bool = False) -> Region:
        """Make a region, rounded up to the driver's grain; see `RegionStore.create`. Nothing says what is in it.

        Raises:
            PermissionError: it is to be resizable.
            OSError: the driver refused for another reason than that memory is missing.
        """
        check_size(size_bytes)
        if resizable:
            raise PermissionError(f"the region {name!r} {_KEEPS_ITS_SIZE}")
        size_bytes = self._whole_bytes(size_bytes)
        free_bytes = self._available_bytes()
        if size_bytes > free_bytes:
            raise RegionRefused(name, size_bytes, free_bytes)
        fd = self._made(size_bytes, name)
        os.set_inheritable(fd, False)
        self.taken_bytes += size_bytes
        return Region(fd=fd, size_bytes=size_bytes, sealed=False, name=name)

    def grow(self, region: Region, size_bytes: int) -> None:
        """Refuse: a larger one has to be made; see `RegionStore.grow`."""
        check_open(region)
        check_grows(region, size_bytes)
        raise PermissionError(f"the region {region.name!r} {_KEEPS_ITS_SIZE}")

    def empty(self, region: Region, kept_bytes: int) -> None:
        """Refuse, unless all is kept: a smaller one has to be made; see `RegionStore.empty`."""
        check_open(region)
        if kept_bytes < region.size_bytes:
            raise PermissionError(f"the region {region.name!r} is memory of a GPU, which is given back as a whole")

    def seal(self, region: Region) -> None:
        """Note that whoever maps it from here on does so read-only; see `RegionStore.seal`."""
        check_open(region)
        region.sealed = True

    def allocated_bytes(self, region: Region) -> int:
        """Return its size, all of which is there; see `RegionStore.allocated_bytes`."""
        check_open(region)
        return region.size_bytes

    def close(self, region: Region) -> None:
        """Close the descriptor; see `RegionStore.close`."""
        if region.is_open:
            self.taken_bytes -= region.size_bytes
            fd, region.fd = region.fd, -1
            os.close(fd)

    def _made(self, size_bytes: int, name: str) -> int:
        give_up_at = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return cuda.create(size_bytes, self._ordinal)
            except cuda.CudaError as error:
                if not error.is_out_of_memory:
                    raise OSError(f"the region {name!r} cannot be made: {error}") from error
                if time.monotonic() > give_up_at:
                    raise RegionRefused(name, size_bytes, self._available_bytes()) from error
            time.sleep(_PAUSE_S)

    def _whole_bytes(self, size_bytes: int) -> int:
        return -(-size_bytes // self._grain_bytes) * self._grain_bytes
