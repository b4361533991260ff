"""Workers: who is there, who is free, who can be handed more."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from ...protocol.states import Lifecycle

#: Work that may wait in a worker behind what it runs, in seconds. Stop-and-wait would cost three quarters of
#: the throughput of small requests; a millisecond and 32 attempts would cost a fifth of it, because supervisor and
#: worker then wake each other more often. More than this would only make others wait.
AHEAD_S = 0.003
#: ... and in attempts.
MAX_AHEAD = 128
#: A run that takes less than a process takes to wake up is handed to a worker that is awake, where others would
#: have no cores of their own; as long as that has no more than this to do, in seconds. On two cores a worker that
#: is woken up beside it waits up to 6 ms for one: of eight threads that call a small model without end, a fifth
#: fewer calls were answered, and p99 was twice as long.
QUICK_S = 0.0002
AWAKE_S = 0.002


class Worker:
    """One worker process, as the core sees it.

    Attributes:
        child: its number, never used twice.
        generation: that of the zygote when it was forked.
        is_outdated: whether it is to be replaced.
        is_next: whether its successor is there: it gets nothing more, so that it becomes idle.
        outstanding: attempts that it holds, in the order handed over, with their expected seconds.
        backlog_s: their sum.
        holds: weight sets that it was given, or had from the zygote.
        thawing: those of them that it was told to thaw at once and has not, in that order.
        is_late: whether what it runs takes far longer than it should: nothing is to wait behind that.
    """

    __slots__ = (
        "backlog_s", "born_at", "child", "generation", "holds", "is_late", "is_listed", "is_next", "is_outdated",
        "life", "outstanding", "pid", "runs", "thawing",
    )  # fmt: skip

    def __init__(self, child: int, generation: int, now: float) -> None:
        self.child = child
        self.generation = generation
        self.born_at = now
        self.pid = 0
        self.runs = 0
        self.outstanding: dict[int, float] = {}
        self.backlog_s = 0.0
        self.holds: set[int] = set()
        self.thawing: dict[int, None] = {}
        self.is_outdated = False
        self.is_next = False
        self.is_late = False
        self.is_listed = False  # whether `Workers` has it among those that may have room
        self.life = Lifecycle("worker", str(child), "starting")

    def __repr__(self) -> str:
        return f"<Worker {self.child} pid={self.pid} {self.life.state}, {len(self.outstanding)} outstanding>"

    @property
    def has_room(self) -> bool:
        """Whether it is busy, but may be handed more."""
        may_hold = 0 < len(self.outstanding) < MAX_AHEAD and self.backlog_s <= AHEAD_S
        return may_hold and not (self.is_next or self.is_late)


class Workers:
    """The workers of one device: an idle stack, and those busy ones that may be handed requests ahead.

    At most ``slots`` workers hold work at once. The one that became idle last is used first: its caches are
    warm, and the others' memory stays untouched.

    Args:
        wanted: how many processes there shall be.
        slots: how many of them may hold work at once.
        spare_cores: how many of them can run without taking a core from who feeds them.

    Attributes:
        may_block: whether a call that takes too long may keep others from being answered: those in the same
            attempt, or behind it in the same worker.
    """

    def __init__(self, wanted: int, slots: int, spare_cores: int) -> None:
        self.wanted = wanted
        self.slots = slots
        self._spare_cores = spare_cores
        self.may_block = False
        self._by_child: dict[int, Worker] = {}
        self._idle: OrderedDict[int, Worker] = OrderedDict()  # the last is the most recent
        self._outdated: dict[int, Worker] = {}  # all that were not told to go yet
        self._replaceable: dict[int, Worker] = {}  # the idle ones of them
        self._roomy: deque[Worker] = deque()
        self._starting = 0
        self._leaving = 0
        self.busy = 0

    def __len__(self) -> int:
        return len(self._by_child)

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._by_child.values()))

    def get(self, child: int) -> Worker | None:
        """Return a worker that is not dead."""
        return self._by_child.get(child)

    @property
    def missing(self) -> int:
        """How many processes are to be forked; never more than twice as many as are wanted exist at once."""
        return min(self.wanted - self.staying, 2 * self.wanted - len(self._by_child))

    @property
    def staying(self) -> int:
        """How many processes there are, or will be in a moment, that were not told to go."""
        return len(self._by_child) - self._leaving

    @property
    def are_outdated(self) -> bool:
        """Whether any of them is to be replaced."""
        return bool(self._outdated)

    @property
    def has_idle(self) -> bool:
        """Whether one that is idle may be given work."""
        return bool(self._idle) and self.busy < self.slots

    @property
    def have_room(self) -> bool:
        """Whether any of them may be given work: one that is idle, or one with room behind what it runs."""
        if self._idle and self.busy < self.slots:
            return True
        return self._first_roomy() is not None

    @property
    def needs_successor(self) -> bool:
        """Whether one more is to be forked, in whose favour one that is outdated will go."""
        is_full = self.staying > self.wanted or len(self._by_child) >= 2 * self.wanted
        return bool(self._outdated) and not is_full

    def add(self, worker: Worker) -> None:
        """Take in a worker that is being forked."""
        self._by_child[worker.child] = worker
        self._starting += 1

    def started(self, worker: Worker, pid: int) -> None:
        """Note that a worker exists now."""
        worker.pid = pid
        self._starting -= 1
        self._rest(worker)

    def pick(self, generation: int) -> Worker | None:
        """Return the worker that should get the next request, or None if all have enough.

        It is of this generation, or newer: an older one would import what the model needs, for seconds. Where none
        is outdated the first that is looked at will do.
        """
        if self.busy < self.slots:
            for child in reversed(self._idle):
                if self._idle[child].generation >= generation:
                    return self._idle[child]
        self._first_roomy()
        return next((one for one in self._roomy if one.has_room and one.generation >= generation), None)

    def awake(self, generation: int) -> Worker | None:
        """Return a busy worker that will soon be done, where another would take a core from who feeds them."""
        if self.busy < self._spare_cores:
            return None
        one = self._first_roomy()
        return one if one is not None and one.backlog_s <= AWAKE_S and one.generation >= generation else None

    def _first_roomy(self) -> Worker | None:
        while self._roomy and not self._roomy[0].has_room:
            self._roomy.popleft().is_listed = False
        return self._roomy[0] if self._roomy else None

    def hand(self, worker: Worker, attempt: int, expected_s: float, calls: int = 1) -> None:
        """Note that a worker was handed an attempt of so many calls."""
        if worker.life.state == "idle":
            del self._idle[worker.child]
            self._replaceable.pop(worker.child, None)
            worker.life.become("busy")
            self.busy += 1
        if worker.outstanding or calls > 1:
            self.may_block = True
        worker.outstanding[attempt] = expected_s
        worker.backlog_s += expected_s
        self._list_if_roomy(worker)

    def took_back(self, worker: Worker, attempt: int) -> bool:
        """Note that a worker has answered an attempt; false if it did not hold it."""
        expected_s = worker.outstanding.pop(attempt, None)
        if expected_s is None:
            return False
        worker.runs += 1
        worker.is_late = False
        if worker.outstanding:
            worker.backlog_s -= expected_s
            self._list_if_roomy(worker)
        else:
            worker.backlog_s = 0.0
            self.busy -= 1
            self._rest(worker)
        return True

    def outdate(self, worker: Worker) -> None:
        """Note that a worker is to be replaced."""
        if worker.life.state == "leaving":
            return
        worker.is_outdated = True
        self._outdated[worker.child] = worker
        if worker.life.state == "idle":
            self._replaceable[worker.child] = worker

    def replaced(self) -> Worker | None:
        """Return an idle worker whose successor is there; where all outdated are busy, have one become idle."""
        if self.staying - self._starting <= self.wanted:
            return None
        if self._replaceable:
            return next(iter(self._replaceable.values()))
        busy = next((worker for worker in self._outdated.values() if not worker.is_next), None)
        if busy is not None:
            busy.is_next = True
        return None

    def surplus(self) -> Worker | None:
        """Return the worker that was idle for longest, if there are more than are wanted."""
        if self.staying - self._starting <= self.wanted or self._outdated:
            return None
        return next(iter(self._idle.values()), None)

    def leave(self, worker: Worker) -> None:
        """Note that an idle worker was told to go."""
        for listed in (self._idle, self._outdated, self._replaceable):
            listed.pop(worker.child, None)
        worker.life.become("leaving")
        self._leaving += 1

    def died(self, worker: Worker) -> list[int]:
        """Forget a worker; return the attempts that it held, oldest first."""
        held = list(worker.outstanding)
        if worker.life.state == "busy":
            self.busy -= 1
        elif worker.life.state == "leaving":
            self._leaving -= 1
        elif worker.life.state == "starting":
            self._starting -= 1
        for listed in (self._idle, self._outdated, self._replaceable):
            listed.pop(worker.child, None)
        worker.outstanding.clear()
        worker.life.become("dead")
        del self._by_child[worker.child]
        return held

    def _rest(self, worker: Worker) -> None:
        worker.life.become("idle")
        self._idle[worker.child] = worker
        if worker.is_outdated:
            self._replaceable[worker.child] = worker

    def _list_if_roomy(self, worker: Worker) -> None:
        if worker.has_room and not worker.is_listed:
            worker.is_listed = True
            self._roomy.append(worker)
