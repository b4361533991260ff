"""Models and their weight sets: what is loaded, what is being loaded, who holds it."""

from __future__ import annotations

from math import log
from typing import Any, Final

from ...protocol.errors import PoolBusy
from ...protocol.messages import LoadModel
from ...protocol.states import Lifecycle
from .batching import Batching
from .events import CallerKey
from .queue import Queue
from .run_times import RunTimes
from .seen import NOTHING, Seen
from .terms import Terms, terms_of
from .workers import QUICK_S

#: The option of a part of a model that is divided among devices: whose it is.
PART_OF: Final = "part_of"
#: The option that tells a loader what there is room for, by device: only that of a model that is to be divided.
ROOM: Final = "room"
#: Weight of the newest measurement in a model's expected run time.
_NEWEST = 0.2
#: In this time half of what was asked of a model is forgotten.
HALF_LIFE_S = 60.0
#: So many processes in a row may die over a warm weight set: those that try it, zygotes, workers that are to thaw
#: it at once. After that it is thawed when it is run. One is no proof: the system, too, kills who takes memory.
MAX_THAW_DEATHS = 2


class WeightSet:
    """One version of one model: a skeleton, and the regions that hold its storages.

    Raises:
        InvalidRequest: its options cannot be.

    Attributes:
        number: never used twice.
        load: where it comes from.
        terms: on what terms its requests are served.
        manifest, skeleton, modules, regions, recipe: what workers need; empty until it is built.
        private_bytes, opaque: what it took a worker besides the regions when it was last thawed, and what of it
            lies outside of them, by path, and why.
        notes: what its loader could not do as well as it should.
        layout: the same regions in the manifest's order, with those that are on other devices.
        generation: the zygote generation whose children have its modules.
        loader: the child that builds it, or 0.
        forked_at: when that was forked; None: it was not.
        refusals: by device, why there was no memory for it, in this try at loading it.
        room: by device, what there is for a part of it, if this try is to divide it.
        expected, seen: what it should take, as earlier loads have, and what it took here.
        holders: workers that have it: were given it, or forked from a zygote that has it.
        inheritors: those of them that were forked so, and let go of it only when they end.
        passing: throwaway forks that have it, for a moment.
        attached: who else maps it, at the unix socket.
        waiting_to_attach: who wants to as soon as it is ready.
        running: attempts that run on it.
        workspace: the ring in whose slots it runs.
        thaw_deaths: how many processes in a row died when they were to thaw it at once.
        is_dangerous: whether to thaw it costs processes, so that it is done only when it must be.
        error: why the last attempt to build it failed.
        waiting_for_load: who is told when it is ready or has failed.
        evictors: who is told when it is out of memory.
        evictions, returns: how often it was moved out of memory, and back.
        return_s: how long the last return took.
        stays_because: why it is not to be evicted again.
        is_given_up: whether nothing is left of it that could come back.
        rebuilt_because: why a loader builds it anew when it was evicted.
        resident_since: when it was there, or there again.
        unloaders: who is told when its memory was freed.
    """

    def __init__(self, number: int, load: LoadModel) -> None:
        self.number = number
        self.load = load
        self.terms = terms_of(load.options)
        self.workspace = str(load.options.get("workspace", "device"))
        self.manifest = load.manifest if load.source == "frozen" else []
        self.skeleton = load.pickled if load.source == "frozen" else b""
        self.modules = load.modules
        self.regions: tuple[int, ...] = tuple(load.regions)
        self.layout = self.regions
        self.recipe: list[Any] = []
        self.notes: list[str] = []
        self.opaque: dict[str, str] = {}
        self.private_bytes = 0
        self.generation = 0
        self.loader = 0
        self.forked_at: float | None = None
        self.refusals: dict[str, str] = {}
        self.room: dict[str, int] = {}
        self.expected = NOTHING
        self.seen: Seen = NOTHING
        self.holders: set[int] = set()
        self.inheritors: set[int] = set()
        self.passing: set[int] = set()
        self.attached: set[CallerKey] = set()
        self.waiting_to_attach: list[CallerKey] = []
        self.running = 0
        self.thaw_deaths = 0
        self.is_dangerous = False
        self.error: dict[str, Any] | None = None
        self.waiting_for_load: list[CallerKey] = []
        self.evictors: list[CallerKey] = []
        self.evictions = 0
        self.returns = 0
        self.return_s = 0.0
        self.stays_because = ""
        self.is_given_up = False
        self.rebuilt_because = ""
        self.resident_since = 0.0
        self.unloaders: list[CallerKey] = []
        self.life = Lifecycle("weight set", f"{number} of {load.name}", "declared")

    def __repr__(self) -> str:
        return f"<WeightSet {self.number} of {self.load.name}: {self.life.state}, {len(self.holders)} holders>"

    @property
    def is_ready(self) -> bool:
        """Whether workers can run it."""
        return self.life.state == "ready"

    @property
    def is_divided(self) -> bool:
        """Whether some of it is on other devices."""
        return len(self.layout) > len(self.regions)

    def begin_anew(self) -> None:
        """Forget what this try at loading it has found of devices: by the next one they may have room."""
        self.refusals, self.room = {}, {}

    @property
    def is_mapped(self) -> bool:
        """Whether a process of the pool has it."""
        return bool(self.holders or self.passing)

    @property
    def is_warm(self) -> bool:
        """Whether every worker shall have it thawed before it is run."""
        return bool(self.load.options.get("warm")) and not self.is_dangerous


class Heat:
    """How often something is used lately: a count in which what is past fades, by half in `HALF_LIFE_S`."""

    __slots__ = ("_at", "_count")

    def __init__(self) -> None:
        self._count = 0.0
        self._at = 0.0

    def add(self, calls: int, now: float) -> None:
        """Note that it was asked for."""
        self._count = self.at(now) + calls
        self._at = now

    def at(self, now: float) -> float:
        """Return the count as of now."""
        return self._count * 0.5 ** ((now - self._at) / HALF_LIFE_S)


class Model:
    """What a name stands for: a queue, the weight set that answers, and the one that will replace it.

    Attributes:
        queue: the requests that wait to be handed to a worker; each is unanswered.
        unanswered: how many requests wait or run.
        current: the version that runs.
        successor: a newer version that is being loaded; it takes over between two requests.
        batching: how large batches are.
        expected_s: what a call takes, a moving average of the workers' measurements; None before the first.
        worker_s: how much of workers' time it has had.
        run_times: how long its runs took.
        seats: the workers that run it, with how many attempts they hold.
        is_held: whether it runs on as many workers as it may, and none of them has room for more.
        clock_s, weight: see `turns.Member`.
        heat: how often it is asked for.
        is_pinned: whether it stays in memory.
        waiting_for_unload: who is told when the model is gone.
    """

    def __init__(self, name: str, current: WeightSet) -> None:
        self.name = name
        self.current = current
        self.successor: WeightSet | None = None
        self.queue = Queue()
        self.unanswered = 0
        self.batching = Batching(current.terms)
        self.expected_s: float | None = None
        self._unit_s = 0.0
        self.worker_s = 0.0
        self.run_times = RunTimes()
        self.seats: dict[int, int] = {}
        self.is_held = False
        self.clock_s = 0.0
        self.weight = current.terms.share
        self.heat = Heat()
        self.is_pinned = bool(current.load.options.get("pin"))
        self.answered = 0
        self.failed = 0
        self.waiting_for_unload: list[CallerKey] = []
        self.is_leaving = False

    def __repr__(self) -> str:
        return f"<Model {self.name}: {self.current.life.state}, {len(self.queue)} queued>"

    def replace(self, version: WeightSet) -> None:
        """Let another version run from now on; what was measured is of the one before."""
        self.current = version
        self.batching = Batching(version.terms)
        self.expected_s = None
        self._unit_s = 0.0
        self.weight = version.terms.share
        self.is_held = False
        self.is_pinned = self.is_pinned or bool(version.load.options.get("pin"))

    def check_room(self, calls: int) -> None:
        """Refuse calls for which there is no room in the queue.

        Raises:
            PoolBusy: there is none.
        """
        most = self.current.terms.max_queue
        if most and self.queue.calls + calls > most:
            raise PoolBusy(
                f"{self.queue.calls:,} calls of {self.name!r} wait, and max_queue={most:,}; try again later"
            )

    @property
    def is_part(self) -> bool:
        """Whether it is a part of a model on another device, which nobody can call."""
        return PART_OF in self.current.load.options

    @property
    def is_runnable(self) -> bool:
        """Whether a worker could take a request of it now."""
        return self.queue.calls > 0 and self.current.is_ready and not self.is_held

    @property
    def is_below_least(self) -> bool:
        """Whether it runs on fewer workers than its owner wants it to, if it has anything to run."""
        return len(self.seats) < self.current.terms.min_workers

    @property
    def is_at_most(self) -> bool:
        """Whether it runs on as many workers as it may."""
        return 0 < self.current.terms.max_workers <= len(self.seats)

    def demand(self, now: float) -> float:
        """Return how many workers it has kept busy lately."""
        calls = self.answered + self.failed
        return self.heat.at(now) * log(2) / HALF_LIFE_S * self.worker_s / calls if calls else 0.0

    def entered(self, child: int) -> None:
        """A worker holds one more attempt of it."""
        self.seats[child] = self.seats.get(child, 0) + 1

    def left(self, child: int) -> None:
        """An attempt of it is over."""
        attempts = self.seats[child] - 1
        if attempts:
            self.seats[child] = attempts
        else:
            del self.seats[child]

    @property
    def terms(self) -> Terms:
        """On what terms its requests are served."""
        return self.current.terms

    @property
    def method(self) -> str:
        """The method that runs when a request names none."""
        return str(self.current.load.options.get("method", "__call__"))

    @property
    def is_quick(self) -> bool:
        """Whether a call runs for less than it takes to wake a worker up for it."""
        return self.expected_s is not None and self.expected_s <= QUICK_S and self.current.terms.max_batch == 1

    def expected(self, calls: int) -> float | None:
        """Return what so many calls should take, in seconds; None if that is not known."""
        known_s = self.batching.expected_s(calls) if self.current.terms.max_batch > 1 else None
        if known_s is not None or self.expected_s is None:
            return known_s
        return self.expected_s * calls

    def work_s(self, calls: int) -> float:
        """Return how much work so many calls are, in seconds of the first one that was measured."""
        return calls * self._unit_s

    def measured(self, calls: int, seconds: float) -> None:
        """Take a measured run of so many calls into the expectation."""
        each_s = seconds / calls
        self._unit_s = self._unit_s or each_s
        if self.expected_s is None:
            self.expected_s = each_s
        else:
            self.expected_s += _NEWEST * (each_s - self.expected_s)
        if self.current.terms.max_batch > 1:
            self.batching.measured(calls, seconds)
