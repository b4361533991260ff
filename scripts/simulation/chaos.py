"""A simulated pool under attack, for as long as one likes, with the books of ``scripts/soak``.

Clients ask in bursts, and meanwhile workers, loaders and the zygote are killed, models are unloaded, replaced and
evicted, the disk is full for a while, clients leave, and give up what they asked for.
"""

from __future__ import annotations

import time
from random import Random
from typing import Any, Final

from onecopy.pool.core import events
from onecopy.protocol import messages
from soaking.acts import ANY, Acts
from soaking.books import Asked, Books, Key

from .mortal import MortalMachine, answer_to
from .scenario import Scenario

#: How often things happen, in seconds of simulated time, on average.
_EVERY_S: Final = {
    "burst": 10.0, "kill a worker": 20.0, "kill a loader": 30.0, "kill the zygote": 600.0, "evict": 30.0,
    "unload and load": 120.0, "replace": 60.0, "fill the disk": 300.0, "a client leaves": 60.0,
}  # fmt: skip
#: How many requests come at once, at most.
_BURST: Final = 200
#: A kill falls within so long after a burst: that is when there is work.
_SOON_S: Final = 0.5
_DISK_S: Final = 5.0
#: In this time everything has ended that can.
_LONG_S: Final = 600.0


class Chaos:
    """Attacks a machine, and keeps the books.

    Args:
        scenario: the machine, and for how many hours.

    Attributes:
        done: how often what happened.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.machine = MortalMachine(scenario)
        self.acts = Acts()
        self.books = Books(_complaint, self.acts)
        self.done = dict.fromkeys([*_EVERY_S, "give up"], 0)
        self._scenario = scenario
        self._random = Random(f"{scenario.seed}: chaos")
        self._end_s = 3600 * scenario.hours
        self._serial = 0
        self._given_up: set[Key] = set()
        self._clients = [f"client {number}" for number in range(len(scenario.each_client))]
        self.machine.on_message = self._arrived
        self.machine.on_death = lambda: self.acts.died(self.machine.now)

    def run(self) -> None:
        """Let everything happen, and come to its end."""
        machine = self.machine
        for client in self._clients:
            machine.join(client)
        for name in _EVERY_S:
            self._later(name)
        machine.run(self._end_s)
        machine.disk_is_full = False
        machine.run(self._end_s + _LONG_S)
        if machine.unanswered_callers:
            self.books.complain(f"callers were never answered: {sorted(machine.unanswered_callers)[:10]}")
        for name in machine.models:
            machine.unload(name)
        machine.run(machine.now + _LONG_S)
        regions = list(machine.core.library.holdings.regions)
        if regions:
            self.books.complain(f"all models are unloaded, and these regions are there: {regions[:10]}")
        machine.stop()
        if not machine.is_finished:
            self.books.complain("the pool has not come to its end")
        self.books.settle()
        self.books.check_sums()

    # --- what happens ---------------------------------------------------------------------------------------

    def _later(self, name: str) -> None:
        when = self.machine.now + self._random.expovariate(1 / _EVERY_S[name])
        if when < self._end_s:
            self.machine.at(when, self._happen, name)

    def _happen(self, name: str) -> None:
        getattr(self, "_" + name.replace(" ", "_"))()
        self._later(name)

    def _burst(self) -> None:
        self.done["burst"] += 1
        for _ in range(self._random.randint(1, _BURST)):
            self._ask()
        if self._random.random() < 0.3:
            self.machine.at(self.machine.now + self._random.uniform(0, _SOON_S), lambda _: self._kill_a_worker())

    def _ask(self) -> None:
        self._serial += 1
        client, model = self._random.choice(self._clients), self._random.choice(self.machine.models)
        number, now = self._serial, self.machine.now
        timeout_s = self._random.choice((0.0, 0.0, 0.0, 0.01, 1.0))
        retries = self._random.randint(0, 3)
        body = f"{client}/{number}".encode()
        self.books.asked(Key(client, number), Asked(now, model, (body,), retries, timeout_s))
        submit = messages.Submit(number, model, "", timeout_s, retries, 0, "", 0, 0, body, [], [])
        self.machine.feed(events.Submitted(client, submit, []))
        if self._random.random() < 0.02:
            self.machine.at(now + self._random.uniform(0, 0.2), lambda _: self._give_up(client, number))

    def _give_up(self, client: str, number: int) -> None:
        if self.books.is_open(Key(client, number)):
            self.done["give up"] += 1
            self._given_up.add(Key(client, number))
            self.machine.feed(events.Cancelled(client, number, kill=self._random.random() < 0.5))

    def _arrived(self, client: Any, message: Any) -> None:
        key, now = Key(client, message.request), self.machine.now
        if isinstance(message, messages.Reply):
            self.books.answered(key, message.body, now)
        elif isinstance(message, messages.Failed):
            code = str(message.error["code"])
            if code == "cancelled" and key in self._given_up:
                self.books.given_up(key)
            else:
                self.books.failed(key, code, now, str(message.error["message"]))
        else:
            self.books.complain(f"{client} got {message}, which it had not asked for")

    def _kill_a_worker(self) -> None:
        for worker in self.machine.of_role("worker")[:1]:
            self.done["kill a worker"] += 1
            self.acts.died(self.machine.now)
            self.machine.kill(worker)

    def _kill_a_loader(self) -> None:
        """Kill one; where there is none, have something to be loaded, and kill that."""
        if not self.machine.of_role("loader"):
            self.machine.load(self._random.choice(self.machine.models))
            self.machine.at(self.machine.now + self._random.uniform(0, 0.6), lambda _: self._kill_loaders())
        self._kill_loaders()

    def _kill_loaders(self) -> None:
        for loader in self.machine.of_role("loader"):
            self.done["kill a loader"] += 1
            self._allow("load_failed", loader.name, 1.0)
            self.machine.kill(loader)

    def _kill_the_zygote(self) -> None:
        self._allow("load_failed", ANY, 1.0)
        self.done["kill the zygote"] += self.machine.kill_zygote()

    def _evict(self) -> None:
        self.done["evict"] += 1
        self.machine.evict(self._random.choice(self.machine.models))

    def _unload_and_load(self) -> None:
        self.done["unload and load"] += 1
        name = self._random.choice(self.machine.models)
        pause_s = self._random.uniform(0, 5)
        self._allow("model_not_found", name, pause_s)
        self.machine.unload(name)
        self.machine.at(self.machine.now + pause_s, lambda _: self.machine.load(name))

    def _replace(self) -> None:
        self.done["replace"] += 1
        self.machine.load(self._random.choice(self.machine.models))

    def _fill_the_disk(self) -> None:
        self.done["fill the disk"] += 1
        self._allow("out_of_budget", ANY, 2 * _DISK_S)
        self.machine.disk_is_full = True
        self.machine.at(self.machine.now + _DISK_S, lambda _: setattr(self.machine, "disk_is_full", False))

    def _a_client_leaves(self) -> None:
        self.done["a client leaves"] += 1
        client = self._random.choice(self._clients)
        self.books.left(client)
        self.machine.feed(events.ClientLeft(client))
        self._clients.remove(client)
        self._serial += 1
        self._clients.append(f"client {self._serial}")
        self.machine.join(self._clients[-1])

    def _allow(self, code: str, model: str, for_s: float) -> None:
        self.acts.allow(code, model, self.machine.now).to_s = self.machine.now + for_s


def chaos(scenario: Scenario) -> dict[str, Any]:
    """Return what happened in so many hours, and whether everything is accounted for."""
    begun = time.perf_counter()
    run = Chaos(scenario)
    run.run()
    found: dict[str, Any] = {
        "hours": scenario.hours, "requests": run.books.accepted, "violations": run.books.wrong,
        "real seconds": time.perf_counter() - begun,
    }  # fmt: skip
    found |= {f"violation {number}": text for number, text in enumerate(run.books.violations, 1)}
    found |= {f"happened: {name}": count for name, count in run.done.items()}
    return found | {f"requests: {name}": count for name, count in run.books.outcomes.most_common()}


def _complaint(asked: Asked, answer: bytes, _at: float) -> str:
    return "" if answer == answer_to(asked.what[0]) else f"it got {answer!r}"
