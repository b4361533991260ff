"""The pieces of memory that an object uses, each found once however many things look into it.

A piece is known by address and size and not by the Python object that stands for it: a tensor and the array
it was made from have two objects for one memory, and must have one memory afterwards. Pieces that merely
overlap become separate, as in any pickle.

Nothing here needs torch: what is asked of a storage is its address and its size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .manifest import Role

if TYPE_CHECKING:
    import torch


class WrongDeviceError(Exception):
    """Memory was found that is not the CPU's, nor that of the GPU that is used."""


def check_device(device: torch.device, gpu: torch.device | None = None) -> None:
    """Raise unless memory of this device can be frozen.

    Args:
        device: where it is.
        gpu: the one whose memory can, besides the CPU's.

    Raises:
        WrongDeviceError: it cannot; the message says what to do.
    """
    if device.type != "cpu" and device != gpu:
        raise WrongDeviceError(
            f"its memory is on the device {str(device)!r}, and only memory of the CPU can be frozen; move it "
            f"there first, with .cpu()"
        )


class Piece:
    """One piece of memory, and who owns it.

    Attributes:
        address: where it is in this process.
        size_bytes: how large it is; never 0.
        role: what the manifest will say it is for.
        storages: the torch storages over it, by the address of torch's own object.
        buffers: the views of arrays over it.
        is_on_gpu: whether it is memory of a GPU.
    """

    __slots__ = ("address", "buffers", "is_on_gpu", "role", "size_bytes", "storages")

    def __init__(self, address: int, size_bytes: int) -> None:
        self.address = address
        self.size_bytes = size_bytes
        self.role: Role = "mutable"
        self.is_on_gpu = False
        # Owners are held so that the address is not used again while others are compared with it: what
        # `__getstate__` makes for the pickler alone would be gone by the time the next one is made.
        self.storages: dict[int, torch.UntypedStorage] = {}
        self.buffers: list[memoryview] = []

    def view(self) -> memoryview:
        """Return the bytes themselves, not a copy; valid as long as this piece is. Not of those on a GPU."""
        return memoryview((ctypes.c_char * self.size_bytes).from_address(self.address)).cast("B")


class Pieces:
    """All pieces of one object, numbered in the order in which they were met.

    Args:
        gpu: where they may be, besides the CPU.
    """

    __slots__ = ("_gpu", "_index", "_pieces")

    def __init__(self, gpu: torch.device | None = None) -> None:
        self._gpu = gpu
        self._pieces: list[Piece] = []
        self._index: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._pieces)

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._pieces)

    def __getitem__(self, index: int) -> Piece:
        return self._pieces[index]

    def add_storage(self, storage: torch.UntypedStorage) -> int | None:
        """Return the number of a storage's piece, None for an empty storage: it has no memory.

        Raises:
            WrongDeviceError: the storage lies on another device.
        """
        check_device(storage.device, self._gpu)
        if storage.nbytes() == 0:
            return None
        index = self._number(storage.data_ptr(), storage.nbytes())
        self._pieces[index].storages[storage._cdata] = storage
        self._pieces[index].is_on_gpu = storage.device.type != "cpu"
        return index

    def add_buffer(self, raw: memoryview) -> int:
        """Return the number of an array's piece. It is given as contiguous bytes, at least one."""
        import numpy as np  # the only one who tells the address of read-only memory

        index = self._number(np.frombuffer(raw, np.uint8).ctypes.data, raw.nbytes)
        self._pieces[index].buffers.append(raw)
        return index

    def _number(self, address: int, size_bytes: int) -> int:
        index = self._index.setdefault((address, size_bytes), len(self._pieces))
        if index == len(self._pieces):
            self._pieces.append(Piece(address, size_bytes))
        return index
