"""Who asks for what, and when: open loops (requests come, answered or not), closed loops, and backlogs.

In an open loop requests come at random, independent of one another (a Poisson process), and none waits for the
answer to another: their latency is counted from when they were meant to be sent. All such clients together are one
process, of which each takes a random part.
"""

from __future__ import annotations

import itertools
from bisect import bisect
from collections.abc import Iterable
from random import Random

from .journal import Journal
from .machine import Machine
from .scenario import ClientKind, Scenario


class Chooser:
    """Draws numbers from 0 on, each as often as its weight says."""

    def __init__(self, weights: Iterable[float], random: Random) -> None:
        self._sums = list(itertools.accumulate(weights))
        self._total = self._sums[-1]
        self._random = random.random

    def __call__(self) -> int:
        return bisect(self._sums, self._random() * self._total, hi=len(self._sums) - 1)


class Traffic:
    """All clients of a machine."""

    def __init__(self, machine: Machine, scenario: Scenario) -> None:
        random = Random(f"{scenario.seed}: traffic")
        self._clients = scenario.each_client
        self._machine = machine
        self._end_s = scenario.end_s
        self._model = Chooser([kind.demand for kind in scenario.each_model], random)
        parts = [0.0 if kind.outstanding or kind.backlog else kind.demand for kind in self._clients]
        self._rate = scenario.load * scenario.capacity if any(parts) else 0.0
        self._client = Chooser(parts, random)
        self._pause = random.expovariate
        machine.on_answer = self._answered

    def start(self) -> None:
        """Let the clients come, and begin."""
        for number, kind in enumerate(self._clients):
            self._machine.join(number)
            for _ in range(kind.outstanding or kind.backlog):
                self._send(number, kind)
        if self._rate:
            self._later()

    def _send(self, client: int, kind: ClientKind) -> None:
        self._machine.send(client, self._model(), kind.priority)

    def _later(self) -> None:
        when = self._machine.now + self._pause(self._rate)
        if when < self._end_s:
            self._machine.at(when, self._next)

    def _next(self, _: object) -> None:
        client = self._client()
        self._send(client, self._clients[client])
        self._later()

    def _answered(self, number: int) -> None:
        client = self._machine.journal.client[number]
        kind = self._clients[client]
        if kind.outstanding and self._machine.now < self._end_s:
            self._send(client, kind)


def prepared(scenario: Scenario) -> Machine:
    """Return a machine on which everything is ready, and whose clients have begun."""
    machine = Machine(scenario, Journal(scenario.warmup_s, scenario.end_s))
    Traffic(machine, scenario).start()
    return machine
