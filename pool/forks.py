"""What a fork does to the connections of this process: their children must not use them."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forked(Protocol):
    """What wants to know of forks."""

    def prepare_fork(self) -> None:
        """A child is about to be forked, if the system lets it."""
        ...

    def mark_forked(self) -> None:
        """This process is the child."""
        ...


_watched: weakref.WeakSet[Forked] = weakref.WeakSet()


def tell_of_forks(one: Forked) -> None:
    """Tell an object of every fork from now on, as long as it lives."""
    _watched.add(one)


def _before() -> None:
    for one in list(_watched):
        one.prepare_fork()


def _in_child() -> None:
    for one in list(_watched):
        one.mark_forked()


os.register_at_fork(before=_before, after_in_child=_in_child)
