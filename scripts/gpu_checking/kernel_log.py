"""What the kernel's log says of the GPU, where this process may read it."""

from __future__ import annotations

import os

from .check import Untried

_RECORD_BYTES = 8192


def mark() -> int:
    """Return a descriptor that stands at the end of the log; -1 if the log cannot be read."""
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return -1
    os.lseek(log, 0, os.SEEK_END)
    return log


def xids_since(log: int) -> list[str]:
    """Return the driver's error lines since the mark, and give that up.

    Raises:
        Untried: The log cannot be read.
    """
    if log < 0:
        raise Untried("the kernel's log cannot be read")
    found = []
    try:
        while True:
            try:
                record = os.read(log, _RECORD_BYTES).decode(errors="replace")
            except BrokenPipeError:  # the kernel wrote over what was not read yet
                continue
            if "Xid" in record:
                found.append(record.partition(";")[2].partition("\n")[0])
    except BlockingIOError:
        return found
    finally:
        os.close(log)
