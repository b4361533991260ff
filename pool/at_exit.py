"""Pools of a process that exits: what was submitted is answered first, as executors of `concurrent.futures` do."""

from __future__ import annotations

import atexit
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


_open: weakref.WeakSet[Closing] = weakref.WeakSet()


def shut_down_at_exit(pool: Closing) -> None:
    """Have a pool shut down when this process exits, if it lives that long.

    To be called once it has its `weakref.finalize`: what is to be done at exit is done in reverse order.
    """
    _open.add(pool)
    _register(os.getpid())


@cache
def _register(pid: int) -> None:
    atexit.register(_shut_down, pid)


def _shut_down(pid: int) -> None:
    if os.getpid() != pid:  # a fork: the pools are its parent's
        return
    # Whoever leaves by an exception does not want to wait, as with `with`.
    has_failed = getattr(sys, "last_value", None) is not None
    for pool in list(_open):
        pool.shutdown(cancel_futures=has_failed)
