"""What all attackers know: the pool, its processes, what they have done, and the clock by which they note it."""

from __future__ import annotations

import itertools
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any, Final

from onecopy.pool import Pool
from onecopy.pool.views import ModelInfo
from onecopy.protocol.errors import PoolError

from . import census, stage
from .acts import ANY, Acts
from .answers import Versions
from .journal import Entries
from .transitions import Transitions

#: How long after a loader was killed the load may fail because of that: its death must be told first.
_LOADER_S: Final = 3.0
#: How long after the disk has room again its lack may still be felt.
_DISK_S: Final = 3.0


class NotPermitted(Exception):
    """An act that this machine does not permit; the message says why."""


class Attack:
    """The state that attackers share.

    Args:
        pool, tcp: the pool, and where it listens on tcp.
        folder: where its files are.
        seed: of everything that is drawn.
        entries, acts, versions: the books, and what they are to know.
        transitions: which changes of state the pool has made.

    Attributes:
        done: how often each act was done.
        skipped: by act, why it cannot be done here.
        is_over: set when it is time to end.
    """

    def __init__(
        self, pool: Pool, tcp: str, folder: Path, seed: int, entries: Entries, acts: Acts, versions: Versions
    ) -> None:
        self.pool = pool
        self.tcp = tcp
        self.folder = folder
        self.runtime = folder / "run"
        self.seed = seed
        self.entries = entries
        self.versions = versions
        self.transitions = Transitions(str(folder / "transitions"))
        self.supervisor = pool.status().pid
        self.done: Counter[str] = Counter()
        self.skipped: dict[str, str] = {}
        self.is_over = threading.Event()
        self._acts = acts
        self._seeds = itertools.count(1000)
        for model, first in stage.FIRST.items():
            versions.begin(model, first, time.monotonic()).done_at = time.monotonic()

    def random(self, name: str) -> Random:
        """Return a source of random numbers for somebody of this name."""
        return Random(f"{self.seed}: {name}")

    def sleep(self, seconds: float) -> bool:
        """Wait, unless it is over; return whether it is."""
        return self.is_over.wait(seconds)

    # --- processes ------------------------------------------------------------------------------------------

    @property
    def zygotes(self) -> list[int]:
        """The zygotes that there are now."""
        return [pid for pid in self.pool.status().zygotes.values() if pid]

    def others(self) -> list[int]:
        """Return children of zygotes that are no workers: loaders, and forks that try something."""
        status = self.pool.status()
        workers = {one.pid for one in status.workers}
        return [
            pid for zygote in status.zygotes.values() for pid in census.children_of(zygote) if pid not in workers
        ]

    def kill(self, name: str, pid: int) -> bool:
        """Kill a child of a zygote, or a zygote; return whether it was still there."""
        self.entries.died()
        if name != "kill a worker":
            self.allow("load_failed", for_s=_LOADER_S)
        with census.held(pid, self.runtime) as pidfd:
            is_killed = census.send(pidfd, signal.SIGKILL)
        self.done[name] += is_killed
        return is_killed

    # --- what that allows -----------------------------------------------------------------------------------

    def allow(self, code: str, model: str = ANY, for_s: float = 0.0) -> None:
        """Let requests fail with an error from now on, and for so long."""
        now = time.monotonic()
        with self.entries.lock:
            self._acts.allow(code, model, now).to_s = now + for_s

    @contextmanager
    def small_files(self) -> Generator[None]:
        """Let the supervisor write no file larger than a page: not to the disk, and not in memory."""
        with self.entries.lock:
            spans = [self._acts.allow(code, ANY, time.monotonic()) for code in ("out_of_budget", "load_failed")]
        hard = resource.prlimit(self.supervisor, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(self.supervisor, resource.RLIMIT_FSIZE, (resource.getpagesize(), hard))
        try:
            yield
        finally:
            resource.prlimit(self.supervisor, resource.RLIMIT_FSIZE, (hard, hard))
            for span in spans:
                span.to_s = time.monotonic() + _DISK_S

    @contextmanager
    def cut_files(self, size_bytes: int) -> Generator[None]:
        """Empty files of the supervisor's that have no name, and this size, meanwhile."""
        with self.entries.lock:
            span = self._acts.allow("out_of_budget", ANY, time.monotonic())
        with ExitStack() as stack:
            for file in census.nameless_files(self.supervisor, size_bytes):
                stack.enter_context(census.cut(file))
            yield
        span.to_s = time.monotonic() + _DISK_S

    # --- models ---------------------------------------------------------------------------------------------

    def info(self, name: str) -> ModelInfo | None:
        """Return what the pool tells of a model."""
        return next((one for one in self.pool.models() if one.name == name), None)

    def state(self, name: str) -> str:
        """Return the state of a model; empty if there is none."""
        found = self.info(name)
        return found.state if found else ""

    def new_seed(self) -> int:
        """Return the seed of a new version."""
        return next(self._seeds)

    def load(self, name: str, seed: int, model: Any, *, eager: bool = True) -> bool:
        """Load a version; return whether it could be. That it could not must have a reason among the acts."""
        version = self.versions.begin(name, seed, time.monotonic())
        begun_at = time.monotonic()
        try:
            self.pool._load(name, model, eager=eager)
        except PoolError as error:
            # What replaces another is given up; a model that is not there yet is built again when it is asked for.
            version.has_failed = name in stage.FIRST
            self.judge("load", name, error, begun_at, "load_failed", "model_not_found")
            return False
        version.done_at = time.monotonic()
        return True

    def attempt(self, what: str, name: str, *expected: str) -> str:
        """Do something with a model; return the code of the error that comes of it, which must be expected."""
        begun_at = time.monotonic()
        try:
            getattr(self.pool, what)(name)
        except PoolError as error:
            self.judge(what, name, error, begun_at, *expected)
            return error.code
        return ""

    def judge(self, what: str, name: str, error: PoolError, begun_at: float, *expected: str) -> None:
        """Complain of an error that nothing that was done allows."""
        now = time.monotonic()
        with self.entries.lock:
            is_allowed = error.code in expected or self._acts.allows(error.code, name, begun_at, now)
        if not is_allowed:
            self.entries.complain(f"{what} of {name} failed with {error.code}: {str(error)[:300]}")
