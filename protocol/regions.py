"""The regions of a weight set in a process: mapped, in the processor's memory or a GPU's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Sequence
from typing import Any

from .gpu import DeviceMemory, Gpu
from .manifest import Manifest
from .mapping import Mapping, map_region


def map_regions(fds: Sequence[int], manifest: Manifest, gpu: Gpu | None) -> list[Mapping | DeviceMemory]:
    """Map regions.

    Args:
        fds: by region; the caller may close them afterwards.
        manifest: says which of them are memory of a GPU.
        gpu: which GPU.

    Raises:
        ValueError: a region is too small, or on a GPU that this process does not use.
        OSError: the kernel, or the driver, refused.
    """
    return [
        _mapped(fd, size_bytes, gpu, is_on_device=index in manifest.on_device)
        for index, (fd, size_bytes) in enumerate(zip(fds, manifest.region_sizes_bytes, strict=True))
    ]


@contextlib.contextmanager
def closing(fds: Sequence[int]) -> Generator[None]:
    """Close descriptors at the end, however that comes."""
    try:
        yield
    finally:
        for fd in fds:
            os.close(fd)


def _mapped(fd: int, size_bytes: int, gpu: Gpu | None, *, is_on_device: bool) -> Mapping | DeviceMemory:
    if not is_on_device:
        return map_region(fd, size_bytes)
    if gpu is None:
        raise ValueError("it is memory of a GPU, and this process uses none")
    return gpu.map(fd, size_bytes)


def copied_bytes(manifest: Manifest) -> int:
    """Return how much of a GPU's memory a process takes to thaw a weight set: what models may write into."""
    entries = (entry for entry in manifest.storages if entry.region in manifest.on_device)
    return sum(entry.size_bytes for entry in entries if entry.role == "mutable")


def settle_on(gpu: Gpu, model: Any) -> None:
    """Tell a module that was thawed where it is, as those do that keep a note of that.

    What is there already is not moved by it, and what is not, because an array shares its memory, is copied.
    """
    import torch

    if isinstance(model, torch.nn.Module):
        model.to(gpu.device)
