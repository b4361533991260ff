"""Kills processes, one after the other, as fast as it is told to."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from .attack import Attack
from .clients import Client, Jobs

#: How often which kind is killed.
_WEIGHTS: Final = {
    "kill a worker": 80, "kill a loader": 8, "kill a zygote": 2, "kill a client": 6, "kill a job": 4,
}  # fmt: skip
#: How long a worker to be killed is waited for: a zygote may have to start first.
_WORKER_S: Final = 20.0


class Killer:
    """Kills.

    Args:
        attack: whom.
        clients: those of whom one may be killed, and is replaced; the list changes.
        open_client: makes the one that replaces it, which joins where it is told.
        jobs: of whom one may be killed.

    Attributes:
        every_s: how long it waits between two kills, on average.
    """

    def __init__(
        self, attack: Attack, clients: list[Client], open_client: Callable[[str], Client], jobs: Jobs
    ) -> None:
        self._attack = attack
        self._clients = clients
        self._open_client = open_client
        self._jobs = jobs
        self.every_s = 1.0
        self._random = attack.random("killer")

    @property
    def kills(self) -> int:
        """How many were killed so far."""
        return sum(self._attack.done[name] for name in _WEIGHTS)

    def run(self, most: int = 0) -> None:
        """Kill until it is over, or so many are."""
        names, weights = list(_WEIGHTS), list(_WEIGHTS.values())
        next_at = time.monotonic()
        while not self._attack.is_over.wait(max(0.0, next_at - time.monotonic())):
            if most and self.kills >= most:
                return
            next_at = max(next_at, time.monotonic() - 1) + self._random.expovariate(1 / self.every_s)
            self.kill(self._random.choices(names, weights)[0])

    def kill(self, name: str) -> None:
        """Kill one of a kind; where there is none, a worker."""
        attack = self._attack
        if (name == "kill a client" and self._kill_client()) or (name == "kill a job" and self._jobs.kill()):
            attack.done[name] += 1
        elif name == "kill a zygote":
            if zygotes := attack.zygotes:
                attack.kill(name, self._random.choice(zygotes))
        elif name == "kill a loader" and (others := attack.others()):
            attack.kill(name, self._random.choice(others))
        else:
            self._kill_worker()

    def _kill_worker(self) -> None:
        """Kill one, the busy rather than the idle; and if there is none yet, wait for it."""
        end = time.monotonic() + _WORKER_S
        while time.monotonic() < end and not self._attack.is_over.is_set():
            workers = [one for one in self._attack.pool.status().workers if one.pid]
            state = self._random.choice(("busy", "busy", "leaving", "idle"))
            chosen = [one for one in workers if one.state == state] or workers
            if chosen and self._attack.kill("kill a worker", self._random.choice(chosen).pid):
                return
            time.sleep(0.01)

    def _kill_client(self) -> bool:
        if not self._clients:
            return False
        client = self._clients.pop(self._random.randrange(len(self._clients)))
        client.kill()
        self._clients.append(self._open_client(client.endpoint))
        return True
