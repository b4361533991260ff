"""Loads, swaps, evicts, pins, stops and starves, one act after the other.

Each act aims at some changes of state. What has been reached least is tried first, so that each is reached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .attack import Attack, NotPermitted
from .memory_acts import MemoryActs
from .model_acts import ModelActs
from .own import OwnModel
from .process_acts import ProcessActs
from .transitions import ALL, Transition

#: How many acts a second there would be if they took no time.
_RATE: Final = 8.0


class Meddler:
    """Does something to the pool, again and again.

    Args:
        attack: the pool, and what is known of it.
    """

    def __init__(self, attack: Attack) -> None:
        self._attack = attack
        self._own = OwnModel(attack)
        self._random = attack.random("meddler")
        by_name = {str(one): one for one in ALL}
        self._acts: dict[Callable[[], None], list[Transition]] = {
            act: [by_name[aim] for aim in aims]
            for kind in (ModelActs, MemoryActs, ProcessActs)
            for act, aims in kind(attack, self._own).aims.items()
        }

    def run(self) -> None:
        """Go on until it is over."""
        while not self._attack.sleep(self._random.expovariate(_RATE)):
            self.act(self.choose())

    def choose(self) -> Callable[[], None]:
        """Return an act: half the time the one whose aims were reached least, otherwise any."""
        acts = list(self._acts)
        if self._random.random() < 0.5:
            return self._random.choice(acts)
        counts = self._attack.transitions.read()
        self._random.shuffle(acts)
        return min(acts, key=lambda act: self._reached(act, counts))

    def act(self, act: Callable[[], None]) -> None:
        """Do something; what it loaded for itself is gone afterwards."""
        name = _name_of(act)
        try:
            act()
            self._attack.done[name] += 1
        except NotPermitted as error:
            self._attack.skipped[name] = str(error)
            del self._acts[act]
        finally:
            if self._own.state:
                self._own.unload()

    def _reached(self, act: Callable[[], None], counts: dict[Transition, int]) -> float:
        """Return how often the least reached aim of an act was reached; each try counts half."""
        aims = self._acts[act]
        return min(counts[one] for one in aims) + 0.5 * self._attack.done[_name_of(act)] if aims else float("inf")


def _name_of(act: Callable[[], None]) -> str:
    return act.__name__.replace("_", " ")
