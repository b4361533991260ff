"""Who is at the other end of a unix socket, as the kernel tells."""

from __future__ import annotations

import os
import socket
import struct
from typing import Final, NamedTuple

_PEERCRED: Final = struct.Struct("3i")
#: Linux's SO_PEERPIDFD (6.5); Python's socket module does not name it.
_SO_PEERPIDFD: Final = 77


class Peer(NamedTuple):
    """A process: its number, 0 if it is in a namespace of processes that is not seen from here; and its user."""

    pid: int
    uid: int


def peer_of(sock: socket.socket) -> Peer:
    """Return who connected, or who listens."""
    pid, uid, _ = _PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return Peer(pid, uid)


def peer_pidfd(sock: socket.socket) -> int:
    """Return a pidfd of that process; of its number on kernels that cannot tell it.

    Raises:
        OSError: it is gone, or cannot be seen from here.
    """
    try:
        pidfd = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return os.pidfd_open(peer_of(sock).pid)
    os.set_inheritable(pidfd, False)
    return pidfd
