"""The folder that holds a supervisor's sockets: private, locked while it lives, removed when it is gone.

The lock is a ``flock``, so the kernel lets go of it whatever way the supervisor ends. Whoever starts a
supervisor sweeps the folders whose lock is free.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from typing import Final

from ..protocol.errors import PoolError
from ..protocol.leftovers import LOCK, remove, remove_if_abandoned
from .checks import ConfigError
from .environment import runtime_base

CONTROL: Final = "control"
REQUESTS: Final = "requests"
#: A unix socket's path has 107 bytes at most (sun_path is 108 with its end).
MAX_PATH_BYTES: Final = 107


class AlreadyServed(PoolError):
    """Another supervisor serves at this endpoint."""

    code = "already_served"
    fault = "caller"


class RuntimeDirectory:
    """A folder of mode 0700 whose lock this process holds.

    Args:
        path: where; made if it is not there. Default: a new one of random name.

    Raises:
        AlreadyServed: a live supervisor holds its lock.
        ConfigError: it cannot be made, is someone else's, or its path is too long for a socket.
    """

    def __init__(self, path: str | None = None) -> None:
        base = runtime_base()
        self.path = path or os.path.join(base, f"pool-{os.getpid()}-{secrets.token_hex(4)}")
        longest = os.path.join(self.path, REQUESTS)
        if len(os.fsencode(longest)) > MAX_PATH_BYTES:
            raise ConfigError(
                f"{longest} is {len(os.fsencode(longest))} bytes long; a socket's path has at most "
                f"{MAX_PATH_BYTES}: set XDG_RUNTIME_DIR or TMPDIR to a shorter folder"
            )
        try:
            if path is None or os.path.dirname(self.path) == base:
                _make_private(base)
                sweep(base)
            self._lock_fd = self._lock()
        except OSError as error:
            raise ConfigError(
                f"cannot make {self.path} for the pool's sockets: {error.strerror}; "
                "set XDG_RUNTIME_DIR to a folder that this user can write to"
            ) from error
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, f"{os.getpid()}\n".encode(), 0)
        for name in (CONTROL, REQUESTS):  # left by a predecessor that was killed
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.join(name))

    def _lock(self) -> int:
        """Make the folder and lock it; again, if someone who sweeps removed it in between."""
        while True:
            _make_private(self.path)
            lock_path = self.join(LOCK)
            lock_fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(lock_fd, 32, 0).decode(errors="replace").strip()
                os.close(lock_fd)
                raise AlreadyServed(
                    f"a supervisor (pid {holder or 'unknown'}) already serves ipc://{self.path}; "
                    "stop it with `onecopy stop`, or serve under another --name"
                ) from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock_fd), os.stat(lock_path)):
                    return lock_fd
            os.close(lock_fd)

    def join(self, name: str) -> str:
        """Return the path of something in the folder."""
        return os.path.join(self.path, name)

    def remove(self) -> None:
        """Remove the folder, then let go of the lock."""
        remove(self.path)
        os.close(self._lock_fd)


def sweep(base: str) -> None:
    """Remove what supervisors that were killed have left under a base folder."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(base):
            if entry.is_dir(follow_symlinks=False) and entry.name.startswith("pool-"):
                remove_if_abandoned(entry.path)


def _make_private(path: str) -> None:
    """Make a folder that only this user can enter, or check that it is one.

    Raises:
        ConfigError: it is there, but another user could put something into it.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"{path} must be a folder of mode 0700 that belongs to uid {os.getuid()}; "
            f"it has mode {stat.S_IMODE(found.st_mode):04o} and uid {found.st_uid}"
        )
