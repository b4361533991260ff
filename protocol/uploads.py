"""Contents on their way into the memory of a GPU, through pinned memory: one part is read while another is copied.

::

    file or memory ──► pinned buffer 0 ──┐
                   └─► pinned buffer 1 ──┴─► region on the GPU

The GPU copies by itself only from memory that is pinned. What cannot be pinned, because torch has no CUDA here, is
copied all the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, cast

from .casting import CastContent
from .contents import Content
from .gpu import Gpu

if TYPE_CHECKING:
    import torch

#: Enough that starting a copy costs nothing beside it: 32 MiB take more than half a millisecond over PCIe.
_BUFFER_BYTES: Final = 32 << 20
#: A part of a buffer that one thread reads; so a buffer is read by up to eight.
_SLICE_BYTES: Final = 4 << 20
_MOST_THREADS: Final = 8


class Uploads:
    """Copies contents into regions of one GPU. For one thread.

    Args:
        gpu: which.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._turn = 0

    def write(self, fd: int, size_bytes: int, contents: Sequence[tuple[int, Content]]) -> None:
        """Write contents into a region, each to its offset, and wait until they are there.

        Raises:
            OSError: the region cannot be mapped, or a content cannot be read.
        """
        memory = self._gpu.map(fd, size_bytes, is_writable=True)
        for offset_bytes, content in contents:
            for start_bytes, part in self._parts(content):
                memory.bytes_at(offset_bytes + start_bytes, part.nbytes).copy_(part, non_blocking=True)
                self._copied()
        self._gpu.synchronize()

    def equal(self, fd: int, size_bytes: int, contents: Sequence[tuple[int, Content]]) -> bool:
        """Whether a region has these contents at these offsets.

        Raises:
            OSError: the region cannot be mapped, or a content cannot be read.
        """
        import torch

        memory = self._gpu.map(fd, size_bytes)
        return all(
            torch.equal(part.to(self._gpu.device), memory.bytes_at(offset_bytes + start_bytes, part.nbytes))
            for offset_bytes, content in contents
            for start_bytes, part in self._parts(content)
        )

    def _parts(self, content: Content) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield a content part by part, with where in it each begins; it is valid until the one after the next."""
        if content.on_gpu is not None:
            yield 0, content.on_gpu
            return
        if isinstance(content, CastContent):
            for start_bytes, part in self._parts(content.source):
                there = part.to(self._gpu.device, non_blocking=True)
                yield content.place_of(start_bytes), content.cast(there)
            return
        for start_bytes in range(0, content.size_bytes, _BUFFER_BYTES):
            part = self._free_buffer()[: content.size_bytes - start_bytes]
            self._read(content, start_bytes, memoryview(cast("Any", part.numpy())))
            yield start_bytes, part

    def _read(self, content: Content, start_bytes: int, into: memoryview) -> None:
        slices = range(0, len(into), _SLICE_BYTES)

        def read(at: int) -> None:
            content.read_into(into[at : at + _SLICE_BYTES], start_bytes + at)

        if len(slices) == 1:
            read(0)
        else:
            list(self._readers.map(read, slices))  # raises what one of them has raised

    @cached_property
    def _readers(self) -> ThreadPoolExecutor:
        threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        return ThreadPoolExecutor(threads, thread_name_prefix="onecopy-reader")

    @cached_property
    def _buffers(self) -> list[torch.Tensor]:
        import torch

        is_pinned = self._gpu.device.type == "cuda"
        return [torch.empty(_BUFFER_BYTES, dtype=torch.uint8, pin_memory=is_pinned) for _ in range(2)]

    @cached_property
    def _events(self) -> list[Any]:
        import torch

        return [torch.cuda.Event() for _ in range(2)] if self._gpu.device.type == "cuda" else []

    def _free_buffer(self) -> torch.Tensor:
        """Return the buffer whose turn it is, once what was in it is copied."""
        self._turn ^= 1
        if self._events:
            self._events[self._turn].synchronize()
        return self._buffers[self._turn]

    def _copied(self) -> None:
        """Note that the copy out of the buffer whose turn it is was begun."""
        if self._events:
            self._events[self._turn].record()
