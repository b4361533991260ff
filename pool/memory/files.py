"""Files as regions: weights that stay on the disk and are mapped from there.

They cost no memory of their own; the kernel keeps in its cache what is read, and drops it when memory runs short.
But a file is not sealed: whoever may write it can change what everybody reads. That can only be noticed.
"""

from __future__ import annotations

import fcntl
import os
import stat
from dataclasses import dataclass
from typing import NamedTuple


class FileIdentity(NamedTuple):
    """What tells a file in one state from any other."""

    device: int
    inode: int
    size_bytes: int
    changed_ns: int


@dataclass(slots=True)
class FileRegion:
    """A file that is mapped as it is.

    Attributes:
        fd: open to be read; -1 once closed.
        path: where it was found.
        identity: what it was when it was opened.
    """

    fd: int
    path: str
    identity: FileIdentity

    @classmethod
    def of(cls, fd: int, path: str) -> FileRegion:
        """Take over an open file.

        Raises:
            ValueError: it is no regular file, or empty, or not open to be read.
        """
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        if flags & os.O_PATH or flags & os.O_ACCMODE == os.O_WRONLY:
            raise ValueError(f"{path} was not opened to be read")
        region = cls(fd, path, identity_of(fd))
        if not stat.S_ISREG(os.fstat(fd).st_mode) or not region.size_bytes:
            raise ValueError(f"{path} is no regular file with something in it")
        return region

    @property
    def size_bytes(self) -> int:
        """The file's size when it was opened."""
        return self.identity.size_bytes

    def change(self) -> str:
        """Return in a sentence how the file is not what it was; empty if it is."""
        now = identity_of(self.fd)
        if now == self.identity:
            return ""
        if now.size_bytes != self.size_bytes:
            verb = "cut" if now.size_bytes < self.size_bytes else "extended"
            return (
                f"{self.path} was {verb} from {self.size_bytes:,} to {now.size_bytes:,} bytes while it was mapped"
            )
        return f"{self.path} was written to while it was mapped"

    def close(self) -> None:
        """Let go of the file; again is allowed and does nothing."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


def identity_of(fd: int) -> FileIdentity:
    """Return what tells this file in its present state from any other."""
    status = os.fstat(fd)
    return FileIdentity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
