"""Copies between the memory of a GPU and files, by the driver alone: importing torch would take a second.

::

    file ──► pinned buffer 0 ──┐            ┌──► pinned buffer 0 ──► file
         └─► pinned buffer 1 ──┴─► memory ──┴─► pinned buffer 1 ──┘

While the GPU copies from or to one buffer, the processor reads or writes the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from .cuda import CudaError, DeviceMapping, call

#: Of each buffer: 16 MiB take a third of a millisecond over PCIe 5, beside which starting a copy costs nothing;
#: and what is not on the disk yet of a file that is written is never more.
BUFFER_BYTES: Final = 16 << 20
#: A part of a buffer that one thread reads: one alone reads the kernel's cache at a fifth of what PCIe 5 takes.
_SLICE_BYTES: Final = 2 << 20
_MOST_THREADS: Final = 8
#: `CU_STREAM_NON_BLOCKING`.
_OWN_ORDER: Final = 1


class FileCopier:
    """Copies with one GPU, of which this process gets a context. For one thread.

    Args:
        ordinal: which of the GPUs that this process can see.

    Raises:
        CudaError: there is no such GPU, no memory for a context, or none that could be pinned.
    """

    def __init__(self, ordinal: int) -> None:
        call("cuCtxSetCurrent", call("cuDevicePrimaryCtxRetain", call("cuDeviceGet", ordinal)))
        self._buffers = [_Buffer(), _Buffer()]
        threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        self._readers = ThreadPoolExecutor(threads, thread_name_prefix="onecopy-reader")

    def write(self, memory: DeviceMapping, fd: int, size_bytes: int) -> None:
        """Write the beginning of a GPU's memory into a file, on the disk.

        Raises:
            CudaError: the GPU cannot copy.
            OSError: the disk is full, or fails.
        """
        with self._waited_for():
            for buffer, start, end in self._parts(size_bytes):
                buffer.write_to(fd)
                buffer.fetch(memory.address + start, start, end)
            for buffer in sorted(self._buffers, key=lambda one: one.start):
                buffer.write_to(fd)

    def read(self, fd: int, memory: DeviceMapping, size_bytes: int) -> None:
        """Fill the beginning of a GPU's memory with a file.

        Raises:
            CudaError: the GPU cannot copy.
            OSError: the file is shorter, or the disk fails.
        """
        with self._waited_for():
            for buffer, start, end in self._parts(size_bytes):
                buffer.wait()
                buffer.read_from(fd, start, end, self._readers)
                buffer.send(memory.address + start, end - start)

    def close(self) -> None:
        """Give the buffers back."""
        self._readers.shutdown()
        for buffer in self._buffers:
            buffer.close()

    def _parts(self, size_bytes: int) -> Iterator[tuple[_Buffer, int, int]]:
        for turn, start in enumerate(range(0, size_bytes, BUFFER_BYTES)):
            yield self._buffers[turn % 2], start, min(start + BUFFER_BYTES, size_bytes)

    @contextlib.contextmanager
    def _waited_for(self) -> Generator[None]:
        """Have nothing under way afterwards: what is copied from or to may be unmapped then."""
        try:
            yield
        except BaseException:
            for buffer in self._buffers:
                with contextlib.suppress(CudaError):
                    buffer.wait()
                buffer.start = buffer.end = 0
            raise
        for buffer in self._buffers:
            buffer.wait()


class _Buffer:
    """Pinned memory, and the order in which the GPU copies from and to it.

    Attributes:
        start, end: which part of the file is to be written from it.
    """

    def __init__(self) -> None:
        self.start = self.end = 0
        self._address = int(call("cuMemHostAlloc", BUFFER_BYTES, 0))
        self._stream = call("cuStreamCreate", _OWN_ORDER)
        self._bytes = memoryview((ctypes.c_ubyte * BUFFER_BYTES).from_address(self._address)).cast("B")

    def fetch(self, address: int, start: int, end: int) -> None:
        """Have the GPU copy to it what is that part of the file."""
        call("cuMemcpyDtoHAsync", self._address, address, end - start, self._stream)
        self.start, self.end = start, end

    def send(self, address: int, size_bytes: int) -> None:
        """Have the GPU copy from it."""
        call("cuMemcpyHtoDAsync", address, self._address, size_bytes, self._stream)

    def wait(self) -> None:
        """Return when the GPU has done."""
        call("cuStreamSynchronize", self._stream)

    def write_to(self, fd: int) -> None:
        """Write what was fetched, if anything was."""
        if self.start == self.end:
            return
        self.wait()
        done = self.start
        while done < self.end:
            done += os.pwrite(fd, self._bytes[done - self.start : self.end - self.start], done)
        os.fdatasync(fd)
        self.start = self.end = 0

    def read_from(self, fd: int, start: int, end: int, readers: ThreadPoolExecutor) -> None:
        """Read a part of a file, in several threads."""

        def read(at: int) -> None:
            wanted = self._bytes[at - start : min(at + _SLICE_BYTES, end) - start]
            while wanted:
                count = os.preadv(fd, [wanted], at)
                if not count:
                    raise OSError(errno.EIO, f"the content ends after {at:,} of {end:,} bytes")
                at, wanted = at + count, wanted[count:]

        list(readers.map(read, range(start, end, _SLICE_BYTES)))  # raises what one of them has raised

    def close(self) -> None:
        """Give it back."""
        call("cuMemFreeHost", self._address)
        call("cuStreamDestroy", self._stream)
