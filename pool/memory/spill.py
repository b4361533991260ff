"""Files that the content of regions is moved to when their memory is needed: a disk as a place for weights.

::

    region in memory ── written ──► file ── read ahead ──► the kernel's cache ── mapped ──► workers

A file has no name: nobody else can open it, and its bytes are free when it is closed, however its owner ends. The
kernel copies; nothing of the content passes through this process. What was written is on the disk before its
memory is given up: so that memory is free indeed, not only once the kernel has written it, and a disk that fails
does so in time. Nobody has it open to be written from then on.

The way back is no copy: the file is mapped, and its pages are those of the kernel's cache, which keeps them while
there is memory. So content that was away for a moment is back at once. What is not in the cache is read before
anybody waits for a page of it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import tempfile
from collections.abc import Callable
from functools import cache
from typing import Final

from .cgroups import mounts

#: What is copied before it is asked again whether it is still wanted: a tenth of a second on a slow disk.
CHUNK_BYTES: Final = 16 << 20
#: What is read at once of what is not in the cache; it is read into memory that is thrown away.
_READ_BYTES: Final = 1 << 20
#: Left free on the disk: this part of it, and at most so much.
_KEPT_PART: Final = 20
_MOST_KEPT_BYTES: Final = 1 << 30
#: File systems whose files are memory.
_IN_MEMORY: Final = ("tmpfs", "ramfs", "devtmpfs")
#: What opening a file without a name fails with where the file system or the kernel has none.
_NO_NAMELESS: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


class SpillRefused(Exception):
    """There is no place for content on the disk; the message says why."""


class NotWanted(Exception):
    """Whoever wanted a copy does not want it any more."""


class SpillFolder:
    """The folder in which the files are made.

    Args:
        path: the folder; it is made when it is first needed.

    Attributes:
        fallback: a sentence, once files could not be made without a name.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.fallback = ""

    def __repr__(self) -> str:
        return f"<SpillFolder {self.path}>"

    def check(self, size_bytes: int) -> int:
        """See whether so much can be written; return how much more could be.

        Raises:
            SpillRefused: the folder is in memory, or on a disk that has not that much left.
            OSError: it cannot be looked at.
        """
        existing = os.path.abspath(self.path)
        while not os.path.exists(existing):
            existing = os.path.dirname(existing)
        device = os.stat(existing).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        kind = next((one.kind for one in mounts() if one.device == number), "")
        if kind in _IN_MEMORY:
            raise SpillRefused(
                f"{self.path} is on {kind}, which is memory itself; let ONECOPY_CACHE_DIR name a folder on a disk"
            )
        disk = os.statvfs(existing)
        kept_bytes = min(disk.f_blocks * disk.f_frsize // _KEPT_PART, _MOST_KEPT_BYTES)
        left_bytes = disk.f_bavail * disk.f_frsize - kept_bytes
        if size_bytes > left_bytes:
            raise SpillRefused(
                f"{self.path} is on a disk with room for {max(0, left_bytes):,} bytes besides the {kept_bytes:,} "
                f"that stay free; {size_bytes:,} are needed"
            )
        return left_bytes - size_bytes

    def create(self) -> int:
        """Return the descriptor of a new file without a name.

        Raises:
            OSError: it cannot be made.
        """
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        try:
            return os.open(self.path, os.O_TMPFILE | os.O_RDWR | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in _NO_NAMELESS:
                raise
        fd, path = tempfile.mkstemp(prefix=".weights-", dir=self.path)
        os.unlink(path)
        self.fallback = f"{self.path}: files cannot be made without a name here; one that is made loses it at once"
        return fd


def write_out(source_fd: int, file_fd: int, size_bytes: int, is_wanted: Callable[[], bool]) -> None:
    """Have the kernel copy content to a file, on the disk.

    Raises:
        NotWanted: it was asked for no longer.
        OSError: the disk is full, or fails.
    """
    os.lseek(file_fd, 0, os.SEEK_SET)
    done_bytes = 0
    while done_bytes < size_bytes:
        _check_wanted(is_wanted)
        count = os.sendfile(file_fd, source_fd, done_bytes, min(CHUNK_BYTES, size_bytes - done_bytes))
        if not count:
            raise _ended(done_bytes, size_bytes)
        done_bytes += count
        # Chunk by chunk: never are more than these bytes in memory twice, and none of the waits for it is long.
        os.fdatasync(file_fd)


def reopened_to_read(file_fd: int) -> int:
    """Return a descriptor of a file through which it cannot be written, nor can it be opened so by mistake.

    Raises:
        OSError: it cannot be opened again, or not be mapped.
    """
    mmap.mmap(file_fd, 1, access=mmap.ACCESS_COPY).close()  # where that fails it must not have left memory
    os.fchmod(file_fd, 0o400)
    return os.open(f"/proc/self/fd/{file_fd}", os.O_RDONLY | os.O_CLOEXEC)


def read_ahead(file_fd: int, size_bytes: int, is_wanted: Callable[[], bool]) -> None:
    """See to it that the content of a file is in the kernel's cache.

    Raises:
        NotWanted: it was asked for no longer.
        OSError: it cannot be mapped, or the disk fails.
    """
    found_bytes = os.fstat(file_fd).st_size
    if found_bytes < size_bytes:
        raise _ended(found_bytes, size_bytes)
    for start in range(0, size_bytes, CHUNK_BYTES):
        _check_wanted(is_wanted)
        end = min(start + CHUNK_BYTES, size_bytes)
        if not _is_cached(file_fd, start, end - start):
            _read(file_fd, start, end)


def _read(file_fd: int, start: int, end: int) -> None:
    buffer = memoryview(bytearray(_READ_BYTES))
    while start < end:
        count = os.preadv(file_fd, [buffer[: end - start]], start)
        if not count:
            raise _ended(start, end)
        start += count


def _is_cached(file_fd: int, offset_bytes: int, size_bytes: int) -> bool:
    """Whether all pages of a piece of a file are in the kernel's cache; mincore(2) tells the file's owner."""
    pages = bytearray(-(-size_bytes // mmap.PAGESIZE))
    told = ctypes.c_char.from_buffer(pages)  # an array of its size would be a type of its own, and a cycle
    # Mapped privately, and so writable for ctypes, which has no other way to an address.
    try:
        mapping = mmap.mmap(file_fd, size_bytes, access=mmap.ACCESS_COPY, offset=offset_bytes)
    except ValueError:  # the file has become shorter than that: whoever reads it will see
        return False
    with mapping as mapped:
        piece = ctypes.c_char.from_buffer(mapped)
        is_unknown = _mincore()(ctypes.addressof(piece), size_bytes, ctypes.addressof(told))
        del piece
    return not is_unknown and all(page & 1 for page in pages)


@cache
def _mincore() -> Callable[..., int]:
    function = ctypes.CDLL(None, use_errno=True).mincore
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    return function


def _check_wanted(is_wanted: Callable[[], bool]) -> None:
    if not is_wanted():
        raise NotWanted


def _ended(at_bytes: int, size_bytes: int) -> OSError:
    return OSError(errno.EIO, f"the content ends after {at_bytes:,} of {size_bytes:,} bytes")
