"""A run from its beginning to its end: rest, storm, rest again, and what is left."""

from __future__ import annotations

import itertools
import os
import statistics
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
from onecopy.pool import Model, Pool
from onecopy.protocol.errors import PoolError

from . import census, pattern, stage
from .acts import Acts
from .answers import RightAnswers, Versions
from .attack import Attack
from .books import Books
from .clients import Client, Jobs, wait_for
from .journal import Entries, OwnJournal
from .killer import Killer
from .load import PATIENT, Load, count_answers
from .meddler import Meddler
from .models import Stamp
from .own import STAMP

#: Threads of this process and of each client's that ask.
_THREADS: Final = 2
#: How long a pool may take until every worker has run every model, and how long it then lies idle before it is
#: measured: workers at rest give the free part of their heaps back after a second, the supervisor
#: after two.
_REST_S: Final = 60.0
_IDLE_S: Final = 4.0
_WARM_UP_S: Final = 4.0
_LOOKS: Final = 5
#: More than any request needs of a slot, whose pages it keeps: how many it has must not depend on which was used.
_SLOT_BYTES: Final = 4 << 20
#: So much more than at the start a pool may take when everything is as it was.
GROWTH: Final = 0.02
#: Of processes, whose memory is told apart.
ROLES: Final = ("supervisor", "zygotes", "workers")
#: Descriptors that no library opens once and keeps.
_PLAIN: Final = ("socket", "pipe", "/memfd", "anon_inode:[pidfd]", "anon_inode:[eventfd]")
#: How long all attackers may take to come to their ends: longer than any answer may.
_END_S: Final = 120.0
#: How long what is on its way out may take.
_GRACE_S: Final = 10.0


class Storm:
    """A pool, those who attack it, and the books.

    Args:
        folder: for all files; empty.
        seed: of everything that is drawn.
        workers, devices: of the pool.

    Attributes:
        figures: what was measured before and after.
    """

    def __init__(self, folder: Path, seed: int, workers: int, devices: int) -> None:
        self._folder = folder
        self._seed = seed
        self._random = Random(f"{seed}: storm")
        self._names = itertools.count(1)
        self._shared_before = census.shared_memory()
        self._descriptors_before = census.descriptors("self")
        self.acts, self.versions = Acts(), Versions()
        self.books = Books(RightAnswers(self.versions).complaint, self.acts)
        self.entries = Entries(self.books, self.acts)
        self.figures: dict[str, Any] = {}
        stage.set_up(folder)
        self._workers = workers * devices
        self._pool, tcp = stage.open_pool(workers, devices)
        self.attack = Attack(self._pool, tcp, folder, seed, self.entries, self.acts, self.versions)
        journal = OwnJournal("app", self.entries, self.books)
        count_answers(self._pool, journal)
        self._own = [
            Load(self._pool, journal, Random(f"{seed} app {one}"), f"app.{one}") for one in range(_THREADS)
        ]
        self._is_stuck = False
        self._clients: list[Client] = []
        self.jobs = Jobs(self._pool.endpoint, folder, Random(f"{seed} jobs"), self.entries, self.books)
        self.killer = Killer(self.attack, self._clients, self._open_client, self.jobs)

    # --- rest -----------------------------------------------------------------------------------------------

    def rest(self, when: str) -> None:
        """Bring the pool to the state in which it is measured, and measure it.

        That is: as many workers as there shall be, all of them new, each having run each model, and every slot
        having been used.
        """
        for worker in self._pool.status().workers:
            if worker.pid:
                self.attack.kill("kill a worker to begin anew", worker.pid)
        for model in ("swapped", "cold"):
            seed = self.attack.new_seed()
            self.attack.load(model, seed, Model(STAMP, args=(seed,)))
        seed = self.attack.new_seed()
        self.attack.load("handed", seed, Model(Stamp(seed)))
        if not wait_for(self._all_have_run, _REST_S, 0.05):
            self.entries.complain(f"{when}: not every worker has come to run every model: {self._pool.status()}")
        time.sleep(_IDLE_S)
        supervisor = self.attack.supervisor
        looks = [census.memory(self._processes(), supervisor) for _ in range(_LOOKS)]
        status = self._pool.status()
        self.figures[when] = {
            "private_bytes": statistics.median(one.private for one in looks),
            "file_bytes": statistics.median(one.files for one in looks),
            "region_bytes": statistics.median(one.regions for one in looks),
            "own_bytes": statistics.median(one.own for one in looks),
            "total_bytes": statistics.median(one.total for one in looks),
            **{f"{role}_bytes": census.memory(pids, supervisor).private for role, pids in self._roles().items()},
            "descriptors": dict(census.descriptors(supervisor)),
            "processes": len(self._processes()),
        }
        if status.unanswered:
            self.entries.complain(f"{when}: nobody waits, and {status.unanswered} requests are unanswered")

    def compare(self) -> None:
        """Complain of what a pool at rest takes after the storm and did not before."""
        before, after = self.figures["before"], self.figures["after"]
        growth = self.figures["growth"] = after["own_bytes"] / before["own_bytes"] - 1
        if growth > GROWTH:
            roles = ", ".join(
                f"{role} {before[f'{role}_bytes'] / 1e6:,.1f} to {after[f'{role}_bytes'] / 1e6:,.1f} MB"
                for role in ROLES
            )
            self.entries.complain(f"private memory and regions have grown by {growth:.1%}; private: {roles}")
        for kind, count in after["descriptors"].items():
            if count > before["descriptors"].get(kind, 0):
                more = count - before["descriptors"].get(kind, 0)
                self.entries.complain(f"the supervisor has {more} descriptors more of {kind}")

    def _all_have_run(self) -> bool:
        """Have every model run; return whether every worker has had each of its device."""
        x = np.zeros((1, 2), dtype=np.int64)
        futures = [
            self._pool.model("rows", method="rows", retries=PATIENT).submit(x)
            if model == "rows"
            else self._pool.model(model, method="nap", retries=PATIENT).submit("rest", 0.003)
            for model in stage.FIRST
            for _ in range(4 if model == "narrow" else 3 * self._workers)
        ]
        filling = self._pool.model("plain", method="fill", retries=PATIENT)
        futures += [filling.submit("rest", _SLOT_BYTES, 0.02) for _ in range(3 * self._workers)]
        for future in futures:
            if isinstance(error := future.exception(_REST_S), PoolError) and error.code != "pool_busy":
                self.attack.judge("rest", "*", error, time.monotonic())
        status = self._pool.status()
        wanted: defaultdict[str, set[str]] = defaultdict(set)
        for model in status.models:
            wanted[model.device].add(model.name)
        is_complete = len(status.workers) == self._workers
        return is_complete and all(set(one.models) >= wanted[one.device] for one in status.workers)

    def _processes(self) -> list[int]:
        return census.processes(self.attack.runtime)

    def _roles(self) -> dict[str, list[int]]:
        """Return the pool's processes by what they are; of what they share each counts its part."""
        supervisor, zygotes = [self.attack.supervisor], self.attack.zygotes
        workers = [pid for pid in self._processes() if pid not in (*supervisor, *zygotes)]
        return dict(zip(ROLES, (supervisor, zygotes, workers), strict=True))

    # --- storm ----------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Have everything happen that happens once: threads that start, buffers that grow."""
        with Pool.connect(self.attack.tcp) as far:  # ZeroMQ has a thread for large arrays that are not copied
            far.model("plain", method="array")("warm", pattern.array_of("warm", 1 << 17))
        with self._asked():
            for client in self._clients:
                wait_for(lambda client=client: self._is_owed(client.name), _REST_S)
            self.attack.is_over.wait(_WARM_UP_S)

    def rage(self, seconds: float, kills: int, tell: Callable[[], None]) -> None:
        """Attack for so long, and until so many were killed; ``tell`` is called every second."""
        self.killer.every_s = seconds / kills if kills else 1.0
        meddler = Meddler(self.attack)
        end = time.monotonic() + seconds
        with self._asked(lambda: self.killer.run(kills), meddler.run):
            while time.monotonic() < end or self.killer.kills < kills:
                if self.attack.is_over.wait(1.0):  # somebody gave up
                    return
                tell()

    @contextmanager
    def _asked(self, *attackers: Callable[[], None]) -> Generator[None]:
        """Have clients of all kinds ask meanwhile, and others do what they do."""
        over = self.attack.is_over
        over.clear()
        for endpoint in (self._pool.endpoint, self._pool.endpoint, self.attack.tcp):
            self._clients.append(self._open_client(endpoint))
        working = [self._start(lambda load=load: load.run(over)) for load in self._own]
        working += [self._start(call) for call in (lambda: self.jobs.run(over), *attackers)]
        try:
            yield
        finally:
            over.set()
            end = time.monotonic() + _END_S
            for thread in working:
                thread.join(max(0.0, end - time.monotonic()))
                if thread.is_alive():
                    self._is_stuck = True
                    self.entries.complain("an attacker waits in vain for an answer, and does not come to its end")
            for client in self._clients:
                client.end()
            self._clients.clear()

    def _open_client(self, endpoint: str) -> Client:
        name = f"client {next(self._names)}"
        seed = f"{self._seed} {name}"
        return Client(endpoint, name, seed, self.entries, self.books, _THREADS)

    def _start(self, call: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            try:
                call()
            except BaseException:  # noqa: BLE001 - whatever it is, the run must not seem to go well
                self.entries.complain(f"an attacker gave up: {traceback.format_exc()}")
                self.attack.is_over.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    # --- the end --------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """End the pool as an app does; nothing may be left of it."""
        self._pool.shutdown(cancel_futures=self._is_stuck)
        self._check_left("the pool's end")
        self.figures["transitions"] = {str(one): count for one, count in self.attack.transitions.read().items()}

    def crash(self) -> None:
        """End another pool by killing its supervisor under load: everybody hears of it, and nothing is left."""
        pool, _ = stage.open_pool(2, 1)
        for model, seed in stage.FIRST.items():
            self.versions.begin(model, seed, time.monotonic()).done_at = time.monotonic()
        journal, is_over = OwnJournal("second app", self.entries, self.books), threading.Event()
        with ExitStack() as stack:
            stack.callback(pool.shutdown)
            client = self._open_client(pool.endpoint)
            load = Load(pool, journal, Random(f"{self._seed} second app"), "second app", pause_s=0.001)
            thread = self._start(lambda: load.run(is_over))
            wait_for(lambda: self._is_owed(client.name), _GRACE_S)
            self.attack.allow("supervisor_lost", for_s=_GRACE_S)
            os.kill(pool.status().pid, 9)
            thread.join(_GRACE_S)
            is_over.set()
            client.end()
        self._check_left("a supervisor's death")

    def close_books(self) -> None:
        """See that everybody has got what was owed."""
        self.books.settle()
        self.books.check_sums()

    def _is_owed(self, client: str) -> bool:
        with self.entries.lock:
            return self.books.is_owed(client)

    def _check_left(self, after: str) -> None:
        wait_for(lambda: not self._left(), _GRACE_S, 0.1)
        for one in self._left():
            self.entries.complain(f"left behind after {after}: {one}")

    def _left(self) -> list[str]:
        left = [f"process {pid}" for pid in self._processes()]
        left += [f"shared memory {name}" for name in census.shared_memory() - self._shared_before]
        more = census.descriptors("self") - self._descriptors_before
        left += [f"{more[kind]} descriptors of this process: {kind}" for kind in _PLAIN if more[kind]]
        return left + census.left_in(self._folder)
