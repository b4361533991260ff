"""A supervisor's runtime folder, once nobody serves in it any more.

Two parties remove it: the zygote, which notices at once, and every start of a supervisor, for what even a
zygote that was killed has left. The lock decides: a ``flock`` ends with its holder, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from typing import Final

#: The file in a runtime folder that its supervisor holds locked.
LOCK: Final = "lock"
#: A folder without a lock this old is a left-over, not one that is being made.
_YOUNG_S: Final = 60.0


def remove(path: str) -> None:
    """Remove a runtime folder, its lock last: if this is cut short, what is left can be told to be a left-over."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(path)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name != LOCK:
                os.unlink(entry.path)
    shutil.rmtree(path, ignore_errors=True)


def remove_if_abandoned(path: str) -> bool:
    """Remove a runtime folder if no live supervisor holds its lock; return whether it is gone."""
    try:
        lock_fd = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        with contextlib.suppress(OSError):
            if time.time() - os.stat(path).st_mtime > _YOUNG_S:
                os.rmdir(path)
        return not os.path.exists(path)
    except OSError:
        return False
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        remove(path)
        return True
    finally:
        os.close(lock_fd)
