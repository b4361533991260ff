"""Device memory by CUDA's virtual memory management: one process makes it, others map it; none needs a context.

The binding is imported where it is used, so that everything here can be read and tested without it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from .units import MIB

#: The first device, to which the run narrows CUDA_VISIBLE_DEVICES.
ORDINAL = 0
#: How far a reading of free memory may be off without telling anything: channels and page tables come and go.
SLACK_BYTES = 96 * MIB


class DriverError(Exception):
    """The driver refused a call; `result` is its name for the reason."""

    def __init__(self, function: str, result: str) -> None:
        super().__init__(f"{function}: {result}")
        self.result = result


def call(function: Any, *arguments: Any) -> Any:
    """Call the driver; return what it gave: nothing, a value, or a tuple.

    Raises:
        DriverError: Its result is not CUDA_SUCCESS.
    """
    result, *values = function(*arguments)
    if int(result):
        raise DriverError(function.__name__, result.name)
    return values[0] if len(values) == 1 else tuple(values) or None


def start() -> None:
    """Initialise the driver in this process, without a context; again is harmless."""
    from cuda.bindings import driver

    call(driver.cuInit, 0)


def current_context() -> int:
    """Return the address of the context that is current in this thread, 0 if none is."""
    from cuda.bindings import driver

    return int(call(driver.cuCtxGetCurrent))


def use_primary_context() -> None:
    """Make the device's primary context, the one torch uses, current in this thread."""
    from cuda.bindings import driver

    device = call(driver.cuDeviceGet, ORDINAL)
    call(driver.cuCtxSetCurrent, call(driver.cuDevicePrimaryCtxRetain, device))


def synchronize() -> None:
    """Wait for the current context."""
    from cuda.bindings import driver

    call(driver.cuCtxSynchronize)


def granularity_bytes() -> int:
    """Return what sizes and addresses must be multiples of."""
    from cuda.bindings import driver

    minimum = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
    return int(call(driver.cuMemGetAllocationGranularity, _properties(), minimum))


@dataclass(frozen=True)
class Region:
    """Memory that this process holds by a handle; it lives until handles, descriptors and mappings are gone."""

    handle: int
    size_bytes: int

    def export(self) -> int:
        """Return a new descriptor of it."""
        from cuda.bindings import driver

        kind = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        return int(call(driver.cuMemExportToShareableHandle, self.handle, kind, 0))

    def release(self) -> None:
        """Give up the handle."""
        from cuda.bindings import driver

        call(driver.cuMemRelease, self.handle)


def create(size_bytes: int, ordinal: int = ORDINAL) -> Region:
    """Make memory on a device; its size is rounded up to the granularity."""
    from cuda.bindings import driver

    grain = granularity_bytes()
    size_bytes = -(-size_bytes // grain) * grain
    return Region(int(call(driver.cuMemCreate, size_bytes, _properties(ordinal), 0)), size_bytes)


def adopt(fd: int, size_bytes: int) -> Region:
    """Return the region behind a descriptor, and close that: the driver does not take it over."""
    from cuda.bindings import driver

    kind = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    try:
        return Region(int(call(driver.cuMemImportFromShareableHandle, fd, kind)), size_bytes)
    finally:
        os.close(fd)


def reserve(size_bytes: int, hint: int = 0) -> int:
    """Return an address that nothing is behind yet; at `hint` if the driver follows that."""
    from cuda.bindings import driver

    return int(call(driver.cuMemAddressReserve, size_bytes, granularity_bytes(), hint, 0))


def put(address: int, size_bytes: int, region: Region, offset_bytes: int = 0, is_writable: bool = True) -> None:
    """Put a region, or a part of it, behind a reserved address, and allow this device to use it."""
    from cuda.bindings import driver

    call(driver.cuMemMap, address, size_bytes, offset_bytes, region.handle, 0)
    allow(address, size_bytes, is_writable)


def allow(address: int, size_bytes: int, is_writable: bool) -> None:
    """Set what this process may do with a mapping."""
    from cuda.bindings import driver

    rights = driver.CUmemAccess_flags
    access = driver.CUmemAccessDesc()
    access.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    access.location.id = ORDINAL
    access.flags = (
        rights.CU_MEM_ACCESS_FLAGS_PROT_READWRITE if is_writable else rights.CU_MEM_ACCESS_FLAGS_PROT_READ
    )
    call(driver.cuMemSetAccess, address, size_bytes, [access], 1)


def is_writable(address: int) -> bool:
    """Ask the driver whether this device may write there."""
    from cuda.bindings import driver

    location = driver.CUmemLocation()
    location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    location.id = ORDINAL
    flags = call(driver.cuMemGetAccess, location, address)
    return int(flags) == int(driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE)


def take_away(address: int, size_bytes: int) -> None:
    """Unmap exactly what was put there; the address stays reserved. Nothing may be using it."""
    from cuda.bindings import driver

    call(driver.cuMemUnmap, address, size_bytes)


def free_address(address: int, size_bytes: int) -> None:
    """Give a reservation up, whole."""
    from cuda.bindings import driver

    call(driver.cuMemAddressFree, address, size_bytes)


def map_fd(fd: int, size_bytes: int, is_writable: bool = True, hint: int = 0) -> int:
    """Import, map and close a descriptor; return the address. Only the mapping holds the memory then."""
    region = adopt(fd, size_bytes)
    address = reserve(size_bytes, hint)
    put(address, size_bytes, region, is_writable=is_writable)
    region.release()
    return address


def make_here(size_bytes: int) -> tuple[Region, int]:
    """Make memory and map it in this process; return it and its address."""
    start()
    region = create(size_bytes)
    address = reserve(region.size_bytes)
    put(address, region.size_bytes, region)
    return region, address


def device_attributes() -> dict[str, int]:
    """Return what the driver says of the abilities that all this needs."""
    from cuda.bindings import driver

    names = driver.CUdevice_attribute
    device = call(driver.cuDeviceGet, ORDINAL)
    wanted = (
        names.CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
        names.CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
        names.CU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED,
        names.CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED,
    )
    return {one.name: int(call(driver.cuDeviceGetAttribute, one, device)) for one in wanted}


def why_no_peers(ordinal: int, other: int) -> str:
    """Return why a device cannot use the memory of another one; empty if it can."""
    from cuda.bindings import driver

    if call(driver.cuDeviceGetCount) <= max(ordinal, other):
        return "there is one GPU"
    if not call(driver.cuDeviceCanAccessPeer, call(driver.cuDeviceGet, ordinal), call(driver.cuDeviceGet, other)):
        return "the driver says that the first GPU cannot use the memory of the second"
    return ""


def has_context(ordinal: int) -> bool:
    """Ask whether this process has the primary context of a device."""
    from cuda.bindings import driver

    _flags, is_active = call(driver.cuDevicePrimaryCtxGetState, call(driver.cuDeviceGet, ordinal))
    return bool(is_active)


def _properties(ordinal: int = ORDINAL) -> Any:
    from cuda.bindings import driver

    properties = driver.CUmemAllocationProp()
    properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = ordinal
    properties.requestedHandleTypes = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    return properties
