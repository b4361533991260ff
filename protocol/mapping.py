"""A region's file descriptor becomes memory, and a piece of that memory becomes a torch storage.

::

    fd ──map_region──► mapping  ├──────────┼───┼─────────────────┤
                                     │       │          │
                       storage_in ───┘       │          └─── storage_in
                                             └── buffer_in

Every process maps weights privately (copy on write): whoever only reads shares the one copy of each
page, and whoever writes, be it a module that updates a buffer, gets a page of its own while everyone else
keeps reading what was there. So a mapping is writable even where the region behind it is sealed for good.
A mailbox is the opposite, and mapped shared: what one side writes is there for the other to read.

Nothing here copies a byte. What is made from a mapping keeps it alive, so there is nothing to close: the
address range is given back when the last storage or buffer in it is gone.

Torch is imported when the first storage is asked for, never by importing this module.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

from .gpu import DeviceMemory

if TYPE_CHECKING:
    import torch

MAP_NORESERVE = 0x4000
"""From ``<bits/mman.h>``, the same on every Linux architecture that torch supports; `mmap` lacks its name."""

_PROT_NONE = 0  # `mmap` lacks this one, too
_FAILED = ctypes.c_void_p(-1).value

#: Bytes at an address range that is given back when nobody refers to them any more.
Mapping: TypeAlias = "ctypes.Array[ctypes.c_char]"


def map_region(fd: int, size_bytes: int) -> Mapping:
    """Map a region privately: zero-copy to read, each written page becomes this process's own.

    Without ``MAP_NORESERVE`` the kernel would count the whole region as memory that this process may come to
    need, as if every page of it were going to be written.

    Args:
        fd: the region, or a file that is only read; the caller may close it afterwards.
        size_bytes: how much of it to map, from its start.

    Raises:
        ValueError: `size_bytes` is not positive, or the region is smaller than that.
        OSError: the kernel refused.
    """
    return _map(fd, size_bytes, mmap.MAP_PRIVATE | MAP_NORESERVE)


def map_shared(fd: int, size_bytes: int, *, is_inherited: bool) -> Mapping:
    """Map a region so that what is written is seen by everyone who has mapped it so.

    Args:
        fd: the region; the caller may close it afterwards.
        size_bytes: how much of it to map, from its start.
        is_inherited: whether a forked child has the mapping too. Without it, an access there ends the child.

    Raises:
        ValueError: `size_bytes` is not positive, or the region is smaller than that.
        OSError: the kernel refused.
    """
    mapping = _map(fd, size_bytes, mmap.MAP_SHARED)
    if not is_inherited and _libc().madvise(ctypes.addressof(mapping), size_bytes, mmap.MADV_DONTFORK):
        code = ctypes.get_errno()
        raise OSError(code, f"cannot keep {size_bytes} bytes from forked children: {os.strerror(code)}")
    return mapping


def reserved(size_bytes: int) -> Mapping:
    """Return addresses with no memory behind them: an access there ends the process.

    Raises:
        OSError: the kernel refused.
    """
    return _mapped(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE, _PROT_NONE)


def _map(fd: int, size_bytes: int, flags: int) -> Mapping:
    if size_bytes <= 0:
        raise ValueError(f"a mapping of {size_bytes} bytes was asked for; it must have at least one")
    found_bytes = os.fstat(fd).st_size
    if found_bytes < size_bytes:  # the pages behind the end would be there, and kill whoever touches them
        raise ValueError(f"a mapping of {size_bytes} bytes was asked for; the region has {found_bytes}")
    return _mapped(fd, size_bytes, flags, mmap.PROT_READ | mmap.PROT_WRITE)


def _mapped(fd: int, size_bytes: int, flags: int, rights: int) -> Mapping:
    # Not through `mmap.mmap`, which keeps a descriptor open for each mapping: a model has hundreds of regions,
    # and a process may have no more than 1,024 descriptors.
    libc = _libc()
    address = libc.mmap(None, size_bytes, rights, flags, fd, 0)
    if address == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot map {size_bytes} bytes: {os.strerror(code)}")
    mapping = (ctypes.c_char * size_bytes).from_address(address)
    weakref.finalize(mapping, libc.munmap, address, size_bytes).atexit = False
    return mapping


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    ]  # fmt: skip
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


def storage_in(mapping: Mapping | DeviceMemory, offset_bytes: int, size_bytes: int) -> torch.UntypedStorage:
    """Make a torch storage of a piece of a mapping, without copying.

    Two calls for the same piece give two storages over the same bytes; tensors that are to be tied must be
    made from one.

    Args:
        mapping: what `map_region` returned, or memory of a GPU; it lives at least as long as the storage.
        offset_bytes: where in the mapping the storage begins.
        size_bytes: its size; 0 gives an empty storage that refers to nothing.

    Raises:
        ValueError: the piece does not lie inside the mapping.
    """
    import torch

    if isinstance(mapping, DeviceMemory):
        return mapping.storage(offset_bytes, size_bytes)
    buffer = buffer_in(mapping, offset_bytes, size_bytes)
    if size_bytes == 0:
        return torch.UntypedStorage(0)
    return torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()


def buffer_in(mapping: Mapping, offset_bytes: int, size_bytes: int) -> memoryview:
    """Like `storage_in`, for what speaks the buffer protocol and not torch: a writable view, without a copy.

    Args:
        mapping: what `map_region` returned; it lives at least as long as the view.
        offset_bytes: where in the mapping the view begins.
        size_bytes: its size.

    Raises:
        ValueError: the piece does not lie inside the mapping.
    """
    if offset_bytes < 0 or size_bytes < 0 or offset_bytes + size_bytes > len(mapping):
        raise ValueError(
            f"{size_bytes} bytes at offset {offset_bytes} do not lie inside a mapping of {len(mapping)} bytes"
        )
    return memoryview(mapping).cast("B")[offset_bytes : offset_bytes + size_bytes]
