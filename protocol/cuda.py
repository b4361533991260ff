"""Memory of a GPU by CUDA's virtual memory management: made once, mapped by many, owned by descriptors.

::

    create ──► fd ──► over a unix socket ──► map_device ──► address, readable or writable
               └── the memory lives as long as a descriptor of it is open or a process has it mapped

None of this needs a CUDA context, so a process that only makes memory and hands it out has none, which would take
hundreds of megabytes of the GPU. Legacy IPC handles would: they die with their exporter, expose whole allocations,
and are always writable.

What is mapped read-only cannot be written: a kernel that tries ends the CUDA context of its process, and no other.
That guards against mistakes, not against intent: whoever imports a descriptor could map it writably.

The binding, which comes with CUDA builds of torch, is imported when the driver is first called.
"""

from __future__ import annotations

import os
import uuid
import weakref
from functools import cache
from typing import Any, Final, NamedTuple

#: CUresult's number for memory that is not there.
_OUT_OF_MEMORY: Final = 2
#: More than the name of any GPU has.
_NAME_BYTES: Final = 256


class CudaError(Exception):
    """The driver refused a call, or there is none that could be called.

    Args:
        said: the function that was called, or what is missing.
        result: what the driver gave for a reason; None: it was not called.

    Attributes:
        result: its name for the reason, such as ``CUDA_ERROR_INVALID_VALUE``; empty if it was not called.
        is_out_of_memory: whether memory is missing, which may be there a moment later: that of a process that has
            just ended comes back late.
    """

    def __init__(self, said: str, result: Any = None) -> None:
        super().__init__(said if result is None else f"{said}: {result.name}")
        self.result: str = "" if result is None else result.name
        self.is_out_of_memory = result is not None and int(result) == _OUT_OF_MEMORY


class GpuInfo(NamedTuple):
    """A GPU, as the driver tells.

    Attributes:
        ordinal: its number among those that this process can see.
        uuid: what it is called in every process, such as ``GPU-1b6f8a52-...``.
        name: of its model.
        total_bytes: how much memory CUDA has of it.
        peers: the numbers of those whose memory its kernels can use, over a link between them.
    """

    ordinal: int
    uuid: str
    name: str
    total_bytes: int
    peers: tuple[int, ...] = ()


def describe(ordinal: int) -> GpuInfo:
    """Return what the driver tells of a GPU; that takes no context.

    Args:
        ordinal: which of the devices that this process can see.

    Raises:
        CudaError: the driver cannot be used, or there is no such device.
    """
    device = call("cuDeviceGet", ordinal)
    name = call("cuDeviceGetName", _NAME_BYTES, device)
    return GpuInfo(
        ordinal,
        f"GPU-{uuid.UUID(bytes=bytes(call('cuDeviceGetUuid', device).bytes))}",
        name.split(b"\0", 1)[0].decode(errors="replace"),
        int(call("cuDeviceTotalMem", device)),
        tuple(other for other in range(count()) if other != ordinal and can_use_memory_of(ordinal, other)),
    )


def count() -> int:
    """Return how many GPUs this process can see.

    Raises:
        CudaError: the driver cannot be used, or there is none.
    """
    return int(call("cuDeviceGetCount"))


def attribute(ordinal: int, name: str) -> int:
    """Return an attribute of a GPU, 0 or 1 where it is an ability.

    Args:
        ordinal: which of the devices that this process can see.
        name: as in cuda.h, without the beginning ``CU_DEVICE_ATTRIBUTE_``.

    Raises:
        CudaError: the driver cannot be used, or there is no such device.
    """
    number = getattr(_driver().CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
    return int(call("cuDeviceGetAttribute", number, call("cuDeviceGet", ordinal)))


def can_use_memory_of(ordinal: int, other: int) -> bool:
    """Whether kernels of a GPU can use the memory of another one, where that is mapped for it.

    Args:
        ordinal: which of the devices that this process can see.
        other: another of them.

    Raises:
        CudaError: the driver cannot be used, or there is no such device.
    """
    return bool(call("cuDeviceCanAccessPeer", call("cuDeviceGet", ordinal), call("cuDeviceGet", other)))


def driver_version() -> tuple[int, int]:
    """Return the newest version of CUDA that the driver knows, such as ``(13, 0)``.

    Raises:
        CudaError: the driver cannot be used.
    """
    number = int(call("cuDriverGetVersion"))  # 1000 times the first and 10 times the second
    return number // 1000, number % 1000 // 10


def granularity_bytes(ordinal: int) -> int:
    """Return what sizes of a device's memory must be multiples of; 2 MiB on what is sold today.

    Args:
        ordinal: which of the devices that this process can see.

    Raises:
        CudaError: the driver cannot be used, or there is no such device.
    """
    flags = _driver().CUmemAllocationGranularity_flags
    minimum = flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
    return int(call("cuMemGetAllocationGranularity", _properties(ordinal), minimum))


def create(size_bytes: int, ordinal: int) -> int:
    """Make memory on a device; return the descriptor that it lives by, which children do not inherit.

    Args:
        size_bytes: a multiple of `granularity_bytes`.
        ordinal: which of the devices that this process can see.

    Raises:
        CudaError: the driver refused, perhaps because memory is missing.
    """
    handle = call("cuMemCreate", size_bytes, _properties(ordinal), 0)
    try:
        return int(call("cuMemExportToShareableHandle", handle, _descriptor(), 0))
    finally:
        call("cuMemRelease", handle)  # the descriptor alone holds it from here on


def is_host_memory(ordinal: int) -> bool:
    """Whether the processor can use a device's memory as its own, at the same addresses.

    Raises:
        CudaError: the driver cannot be used, or there is no such device.
    """
    size_bytes = granularity_bytes(ordinal)
    fd = create(size_bytes, ordinal)
    try:
        mapping = DeviceMapping(fd, size_bytes, ordinal, is_writable=False)
    finally:
        os.close(fd)
    attribute = _driver().CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE
    kind = int(call("cuPointerGetAttribute", attribute, mapping.address))
    return kind == int(_driver().CUmemorytype.CU_MEMORYTYPE_HOST)


class DeviceMapping:
    """A device's memory at an address of this process, until nobody refers to this any more.

    What was made from it must be gone by then, and what the device was told to do there be done: the driver does
    not wait for either.

    Args:
        fd: the memory, from `create`; the caller may close it afterwards.
        size_bytes: all of it.
        ordinal: the device that may use it: the memory's own, or another one that can.
        is_writable: whether it may write there, too.

    Attributes:
        address: where it is; the same for the processor and the device.

    Raises:
        CudaError: the driver refused; nothing stays mapped.
    """

    def __init__(self, fd: int, size_bytes: int, ordinal: int, *, is_writable: bool) -> None:
        self._size_bytes = size_bytes
        handle = call("cuMemImportFromShareableHandle", fd, _descriptor())
        undo = _Undo()
        try:
            undo.add("cuMemRelease", handle)
            self.address = int(call("cuMemAddressReserve", size_bytes, granularity_bytes(ordinal), 0, 0))
            undo.add("cuMemAddressFree", self.address, size_bytes)
            call("cuMemMap", self.address, size_bytes, 0, handle, 0)
            undo.add("cuMemUnmap", self.address, size_bytes)
            call("cuMemSetAccess", self.address, size_bytes, [_access(ordinal, is_writable=is_writable)], 1)
        except BaseException:
            undo.all()
            raise
        undo.first()  # the mapping holds the memory
        # Not when this process ends: the driver may be gone by then, and gives everything back on its own.
        weakref.finalize(self, undo.all).atexit = False

    def __len__(self) -> int:
        """How many bytes there are."""
        return self._size_bytes


class _Undo:
    """Calls that take back what was done, the last one first."""

    def __init__(self) -> None:
        self._calls: list[tuple[Any, ...]] = []

    def add(self, *call: Any) -> None:
        self._calls.append(call)

    def first(self) -> None:
        call(*self._calls.pop(0))

    def all(self) -> None:
        while self._calls:
            call(*self._calls.pop())


def call(function: str, *arguments: Any) -> Any:
    """Call the driver; return what it gave, a tuple if that is several things, None if it is nothing.

    Args:
        function: its name in cuda.h.
        arguments: as the binding takes them.

    Raises:
        CudaError: the driver cannot be used, or refused.
    """
    result, *values = getattr(_driver(), function)(*arguments)
    if int(result):
        raise CudaError(function, result)
    return tuple(values) if len(values) > 1 else values[0] if values else None


def named(name: str) -> Any:
    """Return an enumeration, or a structure, of cuda.h.

    Raises:
        CudaError: the driver cannot be used.
    """
    return getattr(_driver(), name)


@cache
def _driver() -> Any:
    try:
        from cuda.bindings import driver  # pyright: ignore[reportAttributeAccessIssue] - a compiled module

        result: Any = driver.cuInit(0)[0]
    except ImportError as error:
        raise CudaError(
            f"cuda-bindings, which comes with CUDA builds of torch, cannot be imported: {error}"
        ) from error
    except RuntimeError as error:  # so says the binding
        raise CudaError("the CUDA driver (libcuda.so.1) cannot be loaded") from error
    if int(result):
        raise CudaError("cuInit", result)
    return driver


def _descriptor() -> Any:
    return _driver().CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR


def _locate(location: Any, ordinal: int) -> None:
    location.type = _driver().CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    location.id = ordinal


def _properties(ordinal: int) -> Any:
    properties = _driver().CUmemAllocationProp()
    properties.type = _driver().CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    _locate(properties.location, ordinal)
    properties.requestedHandleTypes = _descriptor()
    return properties


def _access(ordinal: int, *, is_writable: bool) -> Any:
    rights = _driver().CUmemAccess_flags
    access = _driver().CUmemAccessDesc()
    _locate(access.location, ordinal)
    access.flags = (
        rights.CU_MEM_ACCESS_FLAGS_PROT_READWRITE if is_writable else rights.CU_MEM_ACCESS_FLAGS_PROT_READ
    )
    return access
