"""What actors have in common, and a model of their own: loaded, asked and done away with as an act needs it."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

from onecopy.pool import Model
from onecopy.protocol.errors import PoolError

from .attack import Attack
from .load import PATIENT

STAMP: Final = "soaking.models:Stamp"
#: What it is called.
OWN: Final = "own"
#: How many weights it has where they shall take a while to be written: 128 MB.
LARGE: Final = 1 << 24
#: How many it has where its file is to be found by its size, in whole pages: 3 MB.
UNUSUAL: Final = 3 << 17
WEIGHT_BYTES: Final = 8


class OwnModel:
    """The model.

    Args:
        attack: whose pool has it.
    """

    def __init__(self, attack: Attack) -> None:
        self._attack = attack

    @property
    def state(self) -> str:
        """Its state; empty if it is not there."""
        return self._attack.state(OWN)

    def load(self, source: str = STAMP, *more: Any, eager: bool = True, **options: Any) -> bool:
        """Load a new version from a factory that takes its seed, and more; return whether it could be."""
        seed = self._attack.new_seed()
        return self._attack.load(OWN, seed, Model(source, args=(seed, *more), **options), eager=eager)

    def ask(self) -> bool:
        """Have it answer; return whether it did."""
        begun_at = time.monotonic()
        try:
            self._attack.pool.model(OWN, retries=PATIENT)("own", 0, 1)
        except PoolError as error:
            self._attack.judge("run", OWN, error, begun_at)
            return False
        return True

    def evict(self, *expected: str) -> str:
        """Move it out of memory; return the code of the error that comes of it, which must be expected."""
        return self._attack.attempt("evict", OWN, "invalid_request", *expected)

    def unload(self) -> None:
        """Do away with it, if it is there."""
        self._attack.attempt("unload", OWN, "model_not_found")


#: Acts, and the changes of state that each is meant to bring about.
Aims: TypeAlias = Mapping[Callable[[], None], tuple[str, ...]]


class Actor(ABC):
    """Somebody who can do something to a pool.

    Args:
        attack: the pool, and what is known of it.
        own: a model that nobody else uses at the time.
    """

    def __init__(self, attack: Attack, own: OwnModel) -> None:
        self._attack = attack
        self._pool = attack.pool
        self._own = own
        self._random = attack.random(type(self).__name__)

    @property
    @abstractmethod
    def aims(self) -> Aims:
        """What it can do, and what for."""

    def _rest(self, most_s: float) -> None:
        """Wait a little."""
        self._attack.sleep(self._random.uniform(0, most_s))


@contextmanager
def beside(call: Callable[[], object]) -> Generator[None]:
    """Do something in a thread meanwhile."""
    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield
    finally:
        thread.join()
