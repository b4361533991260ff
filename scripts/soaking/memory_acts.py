"""Weights that leave memory and come back, or cannot."""

from __future__ import annotations

from contextlib import ExitStack

from . import census
from .clients import wait_for
from .own import LARGE, OWN, STAMP, UNUSUAL, WEIGHT_BYTES, Actor, Aims, beside


class MemoryActs(Actor):
    """What becomes of weights where memory is short, or the disk."""

    @property
    def aims(self) -> Aims:
        """See `Actor`."""
        return {
            self.evict: (
                "region: sealed -> leaving", "weight set: evicted -> returning", "region: returning -> sealed",
            ),
            self.pin: ("weight set: returning -> ready",),
            self.fill_the_disk: ("weight set: evicting -> ready", "region: leaving -> sealed"),
            self.unload_while_evicting: ("weight set: evicting -> freed", "region: leaving -> freed"),
            self.unload_while_held: ("weight set: evicting -> draining",),
            self.unload_evicted: ("weight set: evicted -> freed", "region: away -> freed"),
            self.unload_while_returning: ("weight set: returning -> freed", "region: returning -> freed"),
            self.return_from_a_bad_disk: ("weight set: returning -> evicted", "region: returning -> away"),
        }  # fmt: skip

    def evict(self) -> None:
        """Move a model out of memory that is asked for all the time."""
        self._attack.attempt("evict", "cold", "invalid_request", "out_of_budget")

    def pin(self) -> None:
        """Bring a model back by pinning it, and let it go."""
        self._attack.attempt("evict", "cold", "invalid_request", "out_of_budget")
        self._attack.attempt("pin", "cold")
        self._rest(0.3)
        self._attack.attempt("unpin", "cold")

    def fill_the_disk(self) -> None:
        """Move a model out of memory to a disk without room."""
        if self._own.load() and self._own.ask():
            with self._attack.small_files():
                if not self._own.evict("out_of_budget"):
                    self._attack.entries.complain("weights were written to a disk without room")
            self._own.ask()

    def unload_while_evicting(self) -> None:
        """Unload a model while it is written out."""
        if self._own.load(STAMP, LARGE):
            with beside(lambda: self._own.evict("model_not_found")):
                wait_for(lambda: self._own.state == "evicting", 1.0, 0.001)
                self._own.unload()

    def unload_while_held(self) -> None:
        """Unload a model while it leaves memory, and a worker that has it does not let go."""
        if not self._own.load() or not self._own.ask():
            return
        holders = [one.pid for one in self._pool.status().workers if OWN in one.models]
        with ExitStack() as stack, census.stopped(holders, self._attack.runtime):
            stack.enter_context(beside(lambda: self._own.evict("model_not_found")))
            wait_for(lambda: self._own.state == "evicting", 0.5)
            stack.enter_context(beside(self._own.unload))
            self._rest(0.1)

    def unload_evicted(self) -> None:
        """Unload a model that is out of memory."""
        if self._own.load():
            self._own.evict()

    def unload_while_returning(self) -> None:
        """Unload a model while it is read back."""
        if self._own.load(STAMP, LARGE) and not self._own.evict():
            self._attack.attempt("pin", OWN)
            wait_for(lambda: self._own.state == "returning", 0.5, 0.001)

    def return_from_a_bad_disk(self) -> None:
        """Have a model come back while the disk has lost what was written there."""
        if self._own.load(STAMP, UNUSUAL) and not self._own.evict():
            with self._attack.cut_files(UNUSUAL * WEIGHT_BYTES):
                self._attack.attempt("pin", OWN, "out_of_budget")
                self._rest(0.1)
            self._own.ask()
