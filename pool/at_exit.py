"""Pools of a process that exits: what was submitted is answered first, as executors of `concurrent.futures` do.

What daemon threads submit from then on is refused, and streams that they read are closed: they might never end.
Children that `multiprocessing` forks end without any of this.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import weakref
from functools import cache
from typing import Protocol


class Closing(Protocol):
    """What can be shut down."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `concurrent.futures.Executor.shutdown`."""
        ...


class Exiting(Protocol):
    """Its connection."""

    def before_exit(self) -> None:
        """Take no more requests, and give up what nobody but a daemon thread could bring to its end."""
        ...


_open: weakref.WeakKeyDictionary[Closing, Exiting] = weakref.WeakKeyDictionary()


def shut_down_at_exit(pool: Closing, connection: Exiting) -> None:
    """Have a pool shut down when this process exits, if it lives that long.

    To be called once it has its `weakref.finalize`: what is to be done at exit is done in reverse order.
    """
    _open[pool] = connection
    _register(os.getpid())


@cache
def _register(pid: int) -> None:
    atexit.register(_shut_down, pid)


def _shut_down(pid: int) -> None:
    if os.getpid() != pid:  # a fork: the pools are its parent's
        return
    # Whoever leaves by an exception that nobody caught does not want to wait. Where people type, there may be one
    # of long ago.
    has_failed = getattr(sys, "last_value", None) is not None and not hasattr(sys, "ps1")
    for connection in list(_open.values()):
        connection.before_exit()
    for pool in list(_open):
        with contextlib.suppress(RuntimeError):  # Python 3.12 starts no thread any more; then the pool is given up
            pool.shutdown(cancel_futures=has_failed)
