"""The bytes of one storage, wherever they are: in memory, or still in the file that they were loaded from.

What lies in a file is copied by the kernel, from file to region, without passing through this process; what is
read of it to be hashed or compared passes through one small buffer. So loading takes no memory besides the region.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, Self, cast

from .origins import FileRange, file_ranges
from .pieces import Piece

if TYPE_CHECKING:
    import torch

#: The kernel copies at most 2 GiB less a page at once; rounder pieces keep pages whole.
MAX_COPY_BYTES: Final = 1 << 30
#: What is read at once to be hashed or compared: it stays in the processor's cache.
_CHUNK_BYTES: Final = 1 << 20


class Content:
    """The bytes of one storage: in memory, or still in the file that they were loaded from.

    Args:
        piece: the memory.
        origin: the bytes of a file that lie there, if it is a mapping.
        files: where that file is open.
        is_alone: whether no other piece overlaps this one.
    """

    def __init__(self, piece: Piece, origin: FileRange | None, files: OpenFiles, *, is_alone: bool) -> None:
        self._piece = piece
        self._origin = origin
        self._files = files
        self._is_alone = is_alone
        self.size_bytes = piece.size_bytes

    def chunks(self) -> Iterator[memoryview]:
        """Yield the bytes; each chunk is valid until the next is asked for."""
        if self._origin is None:
            on_gpu = self.on_gpu
            memory = self._piece.view() if on_gpu is None else memoryview(cast("Any", on_gpu.cpu().numpy()))
            for start in range(0, self.size_bytes, _CHUNK_BYTES):
                yield memory[start : start + _CHUNK_BYTES]
            return
        yield from _read(self._files.fd(self._origin.path), self._origin.offset_bytes, self.size_bytes)

    @property
    def on_gpu(self) -> torch.Tensor | None:
        """The bytes as a tensor, if they are in the memory of a GPU; else None."""
        if not self._piece.is_on_gpu:
            return None
        import torch

        storage = next(iter(self._piece.storages.values()))
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)

    def read_into(self, buffer: memoryview, start_bytes: int) -> None:
        """Read so many bytes, from a place on; several threads may at once.

        Raises:
            OSError: the file cannot be read, or was cut.
        """
        if self._origin is None:
            ctypes.memmove(_address(buffer), self._piece.address + start_bytes, len(buffer))
        else:
            _read_all(self._files.fd(self._origin.path), self._origin.offset_bytes + start_bytes, buffer)

    def copy_to(self, fd: int, offset_bytes: int) -> None:
        """Write the bytes to a file.

        Raises:
            OSError: the kernel refused; a region that is sealed gives `PermissionError`.
        """
        if self._origin is None:
            _write_all(fd, offset_bytes, self._piece.view())
        else:
            source = self._files.fd(self._origin.path)
            _send_all(fd, offset_bytes, source, self._origin.offset_bytes, self.size_bytes)

    def equals(self, fd: int, offset_bytes: int) -> bool:
        """Whether a file has these bytes at this place."""
        theirs = _read(fd, offset_bytes, self.size_bytes)
        return all(_are_equal(one, other) for one, other in zip(self.chunks(), theirs, strict=True))

    def release(self) -> None:
        """Give the memory back, if it can be; the object is of no use afterwards."""
        if self._origin is not None:
            self._files.drop_behind(self._origin)
        elif self._is_alone and not self._piece.buffers:
            for storage in self._piece.storages.values():
                if storage.resizable():
                    storage.resize_(0)


def contents_of(pieces: Iterable[Piece], files: OpenFiles, lent: Iterable[Piece] = ()) -> list[Content]:
    """Return the contents of pieces, and of those that are lent, in their order.

    Args:
        pieces: memory that may be given back.
        files: opens the files that it is mapped from.
        lent: more of it, which is not given back, nor is what overlaps it.
    """
    own = list(pieces)
    listed = [*own, *lent]
    origins = file_ranges((piece.address, piece.size_bytes) for piece in listed)
    for origin in origins:
        if origin is not None:
            files.note(origin)
    kept = _overlapping(listed) | set(range(len(own), len(listed)))
    return [
        Content(piece, origin, files, is_alone=index not in kept)
        for index, (piece, origin) in enumerate(zip(listed, origins, strict=True))
    ]


def _overlapping(pieces: list[Piece]) -> set[int]:
    """Return the indices of pieces that have an address in common with another."""
    found: set[int] = set()
    last, end = -1, 0
    for index in sorted(range(len(pieces)), key=lambda index: pieces[index].address):
        start = pieces[index].address
        if start < end:
            found |= {last, index}
        if start + pieces[index].size_bytes > end:
            last, end = index, start + pieces[index].size_bytes
    return found


class OpenFiles(AbstractContextManager["OpenFiles"]):
    """The files that weights are copied from, open as long as they are."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}
        self._status: dict[str, tuple[int, int]] = {}
        self._was_cached: dict[FileRange, bool] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds.values():
            os.close(fd)

    def fd(self, path: str) -> int:
        """Return a descriptor to read a file with."""
        if path not in self._fds:
            self._fds[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._status[path] = _version_of(self._fds[path])
        return self._fds[path]

    def note(self, origin: FileRange) -> None:
        """Note whether a range is in the page cache, before it is read."""
        try:
            os.preadv(self.fd(origin.path), [bytearray(1)], origin.offset_bytes, os.RWF_NOWAIT)
        except BlockingIOError:
            self._was_cached[origin] = False
        except OSError as error:  # a file system that cannot tell
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._was_cached[origin] = True

    def drop_behind(self, origin: FileRange) -> None:
        """Let the system forget what it had not cached before: it is in a region now, and read no more."""
        if not self._was_cached.get(origin, True):
            os.posix_fadvise(self.fd(origin.path), origin.offset_bytes, origin.size_bytes, os.POSIX_FADV_DONTNEED)

    def check_unchanged(self) -> None:
        """Raise unless the files are what they were when they were opened.

        Raises:
            OSError: one was written meanwhile: what was copied may be of two versions.
        """
        for path, fd in self._fds.items():
            if _version_of(fd) != self._status[path]:
                raise OSError(errno.ESTALE, "the file was changed while it was being loaded", path)


def _read(fd: int, offset_bytes: int, size_bytes: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, size_bytes)))
    end_bytes = offset_bytes + size_bytes
    while offset_bytes < end_bytes:
        part = buffer[: min(_CHUNK_BYTES, end_bytes - offset_bytes)]
        _read_all(fd, offset_bytes, part)
        offset_bytes += len(part)
        yield part


def _read_all(fd: int, offset_bytes: int, into: memoryview) -> None:
    while into:
        read_bytes = os.preadv(fd, [into], offset_bytes)
        if read_bytes == 0:
            raise OSError(errno.ENODATA, f"the file ends at {offset_bytes:,} bytes; it was cut")
        offset_bytes += read_bytes
        into = into[read_bytes:]


def _are_equal(one: memoryview, other: memoryview) -> bool:
    """Compare two chunks; Python's own comparison of views takes one byte at a time."""
    if len(one) != len(other):
        return False
    return _memcmp(_address(one), _address(other), ctypes.c_size_t(len(one))) == 0


_memcmp = ctypes.CDLL(None).memcmp


def _address(chunk: memoryview) -> Any:
    import numpy as np  # the only one who tells the address of read-only memory

    return ctypes.c_void_p(np.frombuffer(chunk, np.uint8).ctypes.data)


def _write_all(fd: int, offset_bytes: int, memory: memoryview) -> None:
    while memory:
        written_bytes = os.pwrite(fd, memory[:MAX_COPY_BYTES], offset_bytes)
        offset_bytes += written_bytes
        memory = memory[written_bytes:]


def _send_all(fd: int, offset_bytes: int, source: int, source_offset_bytes: int, size_bytes: int) -> None:
    os.lseek(fd, offset_bytes, os.SEEK_SET)
    end_bytes = source_offset_bytes + size_bytes
    while source_offset_bytes < end_bytes:
        sent_bytes = os.sendfile(
            fd, source, source_offset_bytes, min(MAX_COPY_BYTES, end_bytes - source_offset_bytes)
        )
        if sent_bytes == 0:
            raise OSError(errno.ENODATA, f"the file ends at {source_offset_bytes:,} bytes; it was cut")
        source_offset_bytes += sent_bytes


def _version_of(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns
