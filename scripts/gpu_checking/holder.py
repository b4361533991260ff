"""What stands for the supervisor: device memory is made and handed out without torch and without a context."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from . import vmm
from .children import Child, Link


def give(child: Child, region: vmm.Region, **values: Any) -> None:
    """Send a region's descriptor with a message, and keep none."""
    fd = region.export()
    try:
        child.send([fd], **values)
    finally:
        os.close(fd)


def give_on(link: Link, sizes_bytes: Mapping[int, int]) -> list[vmm.Region]:
    """Make a region on each of these devices and send the descriptors, of which none is kept."""
    regions = [vmm.create(size_bytes, ordinal) for ordinal, size_bytes in sizes_bytes.items()]
    fds = [region.export() for region in regions]
    link.send(fds)
    for fd in fds:
        os.close(fd)
    return regions


def hold(link: Link, *sizes_bytes: int) -> None:
    """Make regions, send their descriptors, and keep only the handles until told to end."""
    vmm.start()
    regions = [vmm.create(size_bytes) for size_bytes in sizes_bytes]
    fds = [region.export() for region in regions]
    link.send(fds, sizes_bytes=[region.size_bytes for region in regions], context=vmm.current_context())
    for fd in fds:
        os.close(fd)
    link.receive(timeout_s=600.0)
