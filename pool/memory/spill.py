"""Files that the content of regions is moved to when their memory is needed: a disk as a place for weights.

A file has no name: nobody else can open it, and its bytes are free when it is closed, however its owner ends. The
kernel copies; nothing of the content passes through this process. What was written is on the disk before its
memory is given up: so that memory is free indeed, not only once the kernel has written it, and a disk that fails
does so in time. What the kernel keeps in its cache makes the way back short, and is dropped when memory is short.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from typing import Final

from .cgroups import mounts

#: What is copied before it is asked again whether it is still wanted: a tenth of a second on a slow disk.
CHUNK_BYTES: Final = 16 << 20
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
    """Write content to a file, on the disk.

    Raises:
        NotWanted: it was asked for no longer.
        OSError: the disk is full, or fails.
    """
    # Chunk by chunk: never are more than these bytes in memory twice, and none of the waits for the disk is long.
    _copy(source_fd, file_fd, size_bytes, is_wanted, lambda: os.fdatasync(file_fd))


def read_back(file_fd: int, target_fd: int, size_bytes: int, is_wanted: Callable[[], bool]) -> None:
    """Read content from a file into memory.

    Raises:
        NotWanted: it was asked for no longer.
        OSError: there is no memory for it, or the disk fails.
    """
    _copy(file_fd, target_fd, size_bytes, is_wanted, lambda: None)


def _copy(
    source_fd: int, target_fd: int, size_bytes: int, is_wanted: Callable[[], bool], after: Callable[[], None]
) -> None:
    """Have the kernel copy the first bytes of one file to the beginning of another."""
    os.lseek(target_fd, 0, os.SEEK_SET)
    done_bytes = 0
    while done_bytes < size_bytes:
        if not is_wanted():
            raise NotWanted
        count = os.sendfile(target_fd, source_fd, done_bytes, min(CHUNK_BYTES, size_bytes - done_bytes))
        if not count:
            raise OSError(errno.EIO, f"the content ends after {done_bytes:,} of {size_bytes:,} bytes")
        done_bytes += count
        after()
