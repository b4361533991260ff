"""A core that is checked after every event: against its own state, and against books kept on what it says.

The books know nothing of how the core works. They follow what it was told and what it answered: which requests
are open, in which order each model's should run, what each worker was handed. What a pool must never do shows
as a contradiction between the two, and fails with the story of the last events.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from core.mailing import Lent, check_mailboxes
from onecopy.pool.core import events, instructions
from onecopy.pool.core.core import Core
from onecopy.pool.core.fleet import MAX_LOADERS
from onecopy.pool.core.workers import AHEAD_S, MAX_AHEAD
from onecopy.protocol import messages

_STORY_LENGTH = 80
_INFINITY = float("inf")

Key = tuple[object, int]


def body_of(client: object, number: int) -> bytes:
    """The body of a request, by which the books recognise it wherever it turns up."""
    return f"{client}/{number}".encode()


def answer_to(body: bytes) -> bytes:
    """The body of the result of a run."""
    return b"answer to " + body


@dataclass
class Asked:
    """An accepted request that is not answered."""

    model: str
    retries: int
    body: bytes
    deaths: int = 0
    attempt: int = 0


@dataclass
class Given:
    """An attempt that a worker holds."""

    key: Key
    weight_set: int
    seat: int
    slot: int


@dataclass
class Books:
    """What must be true of the core's answers."""

    core: Core
    asked: dict[Key, Asked] = field(default_factory=dict)
    queues: dict[str, deque[Key]] = field(default_factory=dict)
    held: dict[int, dict[int, Given]] = field(default_factory=dict)
    thawed: dict[int, set[int]] = field(default_factory=dict)
    zygote: set[int] = field(default_factory=set)  # the weight sets that it has
    thawing: int = 0  # the one that it is about to have
    lost_slots: set[int] = field(default_factory=set)
    callers: dict[object, str] = field(default_factory=dict)
    refused: int = 0
    finished: int = 0

    def take(self, event: events.Event, out: list[instructions.Instruction]) -> None:
        """Follow an event and what the core made of it."""
        new: Key | None = None
        expected: set[Key] = set()
        if isinstance(event, events.Submitted):
            new = self._submitted(event, out)
        elif isinstance(event, events.ClientLeft):
            for key in [key for key in self.asked if key[0] == event.client]:
                self._close(key)
        elif isinstance(event, events.AttemptEnded):
            expected = self._ended(event)
        elif isinstance(event, events.ChildExited):
            expected = self._exited(event)
        elif isinstance(event, events.ZygoteDied):
            self._lost_zygote()
        elif isinstance(event, events.SetAdopted):
            self.zygote |= {self.thawing} if event.error is None else set()
            self.thawing = 0
        elif isinstance(event, events.SetForgotten) and event.unmapped:
            self.thawed.get(event.child, set()).discard(event.weight_set)
        elif isinstance(event, events.ModelDeclared | events.ModelRemoved | events.ModelWanted):
            assert event.caller not in self.callers, "tests must not use a caller twice"
            self.callers[event.caller] = ""
        elif isinstance(event, events.MailboxWanted):  # one caller asks for several, one after the other
            self.callers[event.caller] = ""
        elif isinstance(event, events.CallerLeft) and self.callers.get(event.caller) == "":
            self.callers[event.caller] = "gone"
        for one in out:
            assert not self.finished, f"{one} after Finish"
            if isinstance(one, instructions.ToClient) and not isinstance(one.message, messages.Released):
                self._answered(event, one, new)
            elif isinstance(one, instructions.ToChild):
                self._sent(one)
            elif isinstance(one, instructions.ForkChild):
                assert not self.thawing, "a child is forked behind a thaw, and may or may not inherit it"
                self.thawed[one.child] = set(self.zygote)
            elif isinstance(one, instructions.ToZygote) and isinstance(one.message, messages.Thaw):
                self.thawing = one.message.weight_set
            elif isinstance(one, instructions.ReplaceZygote):
                self._lost_zygote()
            elif isinstance(one, instructions.ToCaller):
                assert self.callers[one.caller] == "", f"{one.caller} is answered twice"
                self.callers[one.caller] = type(one.message).__name__
            elif isinstance(one, instructions.Finish):
                self.finished += 1
                assert not self.asked, f"finished with requests unanswered: {list(self.asked)}"
        assert not expected & self.asked.keys(), f"not answered at once: {expected & self.asked.keys()}"

    # --- what happened --------------------------------------------------------------------------------------

    def _submitted(self, event: events.Submitted, out: list[instructions.Instruction]) -> Key | None:
        """Note an accepted request; return the key of one that was refused."""
        key = (event.client, event.submit.request)
        for one in out:
            if isinstance(one, instructions.ToClient) and (one.client, one.message.request) == key:
                return key
        submit = event.submit
        self.asked[key] = Asked(submit.model, submit.retries, submit.body)
        self.queues.setdefault(submit.model, deque()).append(key)
        return None

    def _ended(self, event: events.AttemptEnded) -> set[Key]:
        given = self.held.get(event.child, {}).pop(event.attempt, None)
        if given is None or given.key not in self.asked or self.asked[given.key].attempt != event.attempt:
            return set()
        return {given.key}

    def _exited(self, event: events.ChildExited) -> set[Key]:
        """Put back what the worker held, in order; return what has died too often."""
        self.thawed.pop(event.child, None)
        held = self.held.pop(event.child, {})
        self.lost_slots |= {given.slot for given in held.values() if given.slot}
        failing: set[Key] = set()
        for attempt, given in reversed(held.items()):
            asked = self.asked.get(given.key)
            if asked is None or asked.attempt != attempt:
                continue
            asked.deaths += attempt == event.begun
            if asked.deaths > asked.retries:
                failing.add(given.key)
            else:
                asked.attempt = 0
                self.queues[asked.model].appendleft(given.key)
        return failing

    # --- what the core said ---------------------------------------------------------------------------------

    def _answered(self, event: events.Event, one: instructions.ToClient, refused: Key | None) -> None:
        key = (one.client, one.message.request)
        if key == refused:
            assert isinstance(one.message, messages.Failed)
            self.refused += 1
            return
        assert key in self.asked, f"{key} is answered, but nobody waits for that: {one.message}"
        asked = self.asked[key]
        if isinstance(one.message, messages.Reply):
            assert isinstance(event, events.AttemptEnded), f"{key} has a result out of nowhere"
            assert event.attempt == asked.attempt, f"{key} is answered by a stale attempt"
            assert one.message.body == answer_to(asked.body), f"{key} got what belongs to another"
        elif one.message.error["code"] == "worker_died":
            assert asked.deaths == asked.retries + 1, f"{key} gave up after {asked.deaths} deaths: {asked}"
        self._close(key)

    def _close(self, key: Key) -> None:
        asked = self.asked.pop(key)
        if key in self.queues[asked.model]:
            self.queues[asked.model].remove(key)

    def _lost_zygote(self) -> None:
        self.zygote.clear()
        self.thawing = 0

    def _sent(self, one: instructions.ToChild) -> None:
        if isinstance(one.message, messages.Thaw):
            given = self.thawed.setdefault(one.child, set())
            assert one.message.weight_set not in given, "a weight set is handed over twice"
            given.add(one.message.weight_set)
        elif isinstance(one.message, messages.Run):
            self._handed(one.child, one.message)
        elif isinstance(one.message, messages.Leave) and not self.core.stopping:
            workers = self.core.fleet.workers
            up = [worker for worker in workers if worker.life.state in ("idle", "busy")]
            assert len(up) >= workers.wanted, f"worker {one.child} goes before its successor is there"

    def _handed(self, child: int, run: messages.Run) -> None:
        version = self.core.library.holdings.sets[run.weight_set]
        assert self.core.fleet.workers.get(child).generation >= version.generation, f"{child} lacks its modules"
        assert run.weight_set in self.thawed.get(child, set()), f"worker {child} does not have {run.weight_set}"
        model = self.core.library.holdings.sets[run.weight_set].load.name
        key = self.queues[model].popleft()
        asked = self.asked[key]
        assert run.body == asked.body, f"{key} is the oldest of {model}, but {run.body!r} was handed out"
        assert asked.attempt == 0, f"{key} is handed out twice"
        asked.attempt = run.attempt
        self._seated(child, run)
        self.held.setdefault(child, {})[run.attempt] = Given(key, run.weight_set, run.seat, run.slot)

    def _seated(self, child: int, run: messages.Run) -> None:
        """A worker keeps its seat as long as it has work; no two have the same, or a slot that one has died in."""
        others = [given for other, held in self.held.items() if other != child for given in held.values()]
        mine = self.held.get(child, {}).values()
        assert run.seat not in {given.seat for given in others}, f"two workers sit on {run.seat}"
        assert {given.seat for given in mine} <= {run.seat}, f"worker {child} moves while it has work"
        if run.slot:
            assert run.slot not in {given.slot for given in others}, f"two workers run in slot {run.slot}"
            assert run.slot not in self.lost_slots, f"somebody died in slot {run.slot}"


class CheckedCore:
    """A core, its clock, and the checks."""

    def __init__(self, workers: int = 1, slots: int = 0, **options: object) -> None:
        self.core = Core(workers, slots or workers, **options)
        self.books = Books(self.core)
        self.lent = Lent(self.books)
        self.now = 1000.0
        self.story: deque[str] = deque(maxlen=_STORY_LENGTH)

    def feed(self, event: events.Event) -> list[instructions.Instruction]:
        """Let the core handle an event; return what it wants, checked."""
        self.story.append(f"{self.now:.4f} {event}")
        try:
            out = self.core.handle(event, self.now)
            self.story.extend(f"    -> {one}" for one in out)
            self.books.take(event, out)
            self.lent.take(event, out)
            check_requests(self.core, self.books)
            check_workers(self.core, self.books)
            check_assignment(self.core)
            check_models(self.core)
            check_warmth(self.core, self.books)
            check_regions(self.core)
            check_workspace(self.core)
            check_mailboxes(self.core)
        except Exception as error:
            error.add_note("the story so far:\n" + "\n".join(self.story))
            raise
        return out

    def check_wake(self) -> float:
        """Return when the core wants to be woken; never for a time that has passed, right after that time."""
        wake_at = self.core.wake_at()
        assert wake_at > self.now, f"it wants to be woken at {wake_at}, again and again:\n" + "\n".join(self.story)
        return wake_at


def check_requests(core: Core, books: Books) -> None:
    """Counters and queues agree with the books."""
    assert core.requests.unanswered == len(books.asked)
    open_by_model: dict[str, int] = {}
    for asked in books.asked.values():
        open_by_model[asked.model] = open_by_model.get(asked.model, 0) + 1
    assert open_by_model.keys() <= core.library.models.keys(), "a model was forgotten before its requests"
    for name, model in core.library.models.items():
        assert model.unanswered == open_by_model.get(name, 0)
        queue = [(request.client, request.submit.request) for request in model.queue]
        assert queue == list(books.queues.get(name, ())), f"the queue of {name} is {queue}"
        assert all(request.is_queued for request in model.queue)
    for client, book in core.requests._clients.items():
        assert book.queued_bytes == sum(request.size_bytes for request in book.requests.values())
        assert {(client, number) for number in book.requests} <= books.asked.keys()
    timed = sum(request.deadline != _INFINITY for request in core.requests.everyone())
    assert core.requests._timed == timed
    assert timed <= len(core.requests._deadlines) <= 2 * timed + 65


def check_workers(core: Core, books: Books) -> None:
    """Who holds what agrees with the books, and is not more than anyone may hold."""
    workers, sets = core.fleet.workers, core.library.holdings.sets
    held = {worker.child: list(worker.outstanding) for worker in workers if worker.outstanding}
    assert held == {child: list(given) for child, given in books.held.items() if given}
    assert workers.busy == len(held) <= workers.slots
    assert len(workers) <= 2 * workers.wanted
    assert sorted(core.attempts._running) == sorted(attempt for given in books.held.values() for attempt in given)
    running = [one.weight_set for given in books.held.values() for one in given.values()]
    for version in sets.values():
        assert version.running == running.count(version.number)
        holders = {worker.child for worker in workers if version.number in worker.holds}
        assert version.holders == holders, f"{version} has holders {holders}"
        assert version.holders <= {child for child, has in books.thawed.items() if version.number in has}
        assert version.inheritors <= version.holders
        assert not holders or version.life.state in ("ready", "draining")
    for worker in workers:
        assert (worker.life.state == "busy") == bool(worker.outstanding)
        assert len(worker.outstanding) <= MAX_AHEAD
        expected = list(worker.outstanding.values())
        assert sum(expected[:-1]) <= AHEAD_S + 1e-9 or len(expected) == 1
        assert worker.holds <= sets.keys(), f"{worker} holds what was freed"
        assert worker.thawing.keys() <= worker.holds
    outdated = {one.child: one for one in workers if one.is_outdated and one.life.state != "leaving"}
    assert workers._outdated == outdated
    assert workers._replaceable == {child: one for child, one in outdated.items() if one.life.state == "idle"}
    assert workers._starting == sum(one.life.state == "starting" for one in workers)
    assert workers.staying <= workers.wanted + 1


def check_assignment(core: Core) -> None:
    """Nothing waits that could run."""
    if core.workspace.is_making:
        return
    workers = core.fleet.workers
    for model in core.library.models.values():
        if model.is_runnable:
            able = [one for one in workers if one.generation >= model.current.generation]
            is_free = workers.busy < workers.slots and any(one.life.state == "idle" for one in able)
            assert not is_free, f"{model} waits although a worker is idle"
            has_room = [worker for worker in able if worker.has_room]
            assert not has_room, f"{model} waits although {has_room} may be handed more"
            assert model in core.attempts._runnable, f"{model} has work, but gets no turn"


def check_models(core: Core) -> None:
    """Everything that somebody waits for is on its way, or the reason why it is not passes by itself."""
    fleet, library = core.fleet, core.library
    for model in library.models.values():
        assert model.current.number in library.holdings.sets
        on_the_way = [one for one in (model.current, model.successor) if one is not None and _is_coming(core, one)]
        assert not model.queue or model.current.is_ready or on_the_way, f"nothing will answer {model}"
        assert not (model.is_leaving and not model.unanswered), f"{model} should be gone"
    for version in library.holdings.sets.values():
        is_held = version.is_mapped or version.attached
        assert version.life.state != "draining" or is_held, f"{version} should be freed"
        for caller in version.waiting_for_load + version.waiting_to_attach:
            assert _is_coming(core, version), f"{caller} waits for {version} in vain"
    if fleet.can_fork:
        assert not fleet._waiting_loaders or len(fleet._loaders) == MAX_LOADERS, "a loader is not forked"
        assert fleet.zygote.is_complete, "nobody has the zygote thaw what it lacks"
        assert library.warming._trial or not library.warming._untried, "nobody tries what is to be warm"
    if fleet.can_fork and not fleet.is_pausing:
        assert fleet.workers.missing <= 0, "workers are missing, and nobody forks them"
        assert not fleet.workers.needs_successor, "a worker is outdated, and nobody replaces it"


def check_warmth(core: Core, books: Books) -> None:
    """Each warm weight set is in one place on its way into the zygote; who has inherited what is known."""
    library, zygote = core.library, core.fleet.zygote
    warming, sets = library.warming, library.holdings.sets
    if core.fleet.is_dismissing:  # a zygote is not replaced any more, and goes soon
        return
    assert books.zygote == zygote.has.keys() <= zygote._wanted.keys()
    assert books.thawing == (zygote._thawing.number if zygote._thawing else 0)
    trying = [warming._trial.version.number] if warming._trial and warming._trial.is_open else []
    places = [*warming._untried, *trying, *zygote._wanted, *warming.refused]
    assert len(places) == len(set(places))
    ready = {number for number, one in sets.items() if one.is_ready}
    assert set(places) == {number for number in ready if sets[number].load.options.get("warm")}
    for version in sets.values():
        passing = {warming._trial.child} if warming._trial and version in warming._trial.holds else set()
        assert version.passing == passing
        if version.number in zygote.has:
            lacking = {one.child for one in core.fleet.workers if one.life.state != "leaving"} - version.inheritors
            assert all(core.fleet.workers.get(child).is_outdated for child in lacking)


def check_regions(core: Core) -> None:
    """Regions are held by who knows of them, found by their content, and waited for only while they are filled."""
    holdings = core.library.holdings
    regions = holdings.regions
    assert not regions.freed
    assert not regions.answers
    for number, record in regions._by_number.items():
        assert record.holders, f"{record} should be freed"
        lying = {one.number for one in holdings.sets.values() if number in one.regions}
        assert set(record.weight_sets) == lying, f"{record} is held by {record.holders}"
        fillers = {filler for filler, held in regions._held.items() if number in held}
        assert record.holders - {("set", one) for one in lying} == fillers
        assert (record.life.state == "filling") == (record.filler is not None)
    for key, record in regions._by_key.items():
        assert record.key == key
        assert regions._by_number[record.number] is record
    waiting = [(filler, number) for number, waiters in regions._waiting.items() for filler, *_ in waiters]
    for filler, number in waiting:
        assert regions[number].life.state == "filling", f"{filler} waits for {regions[number]} in vain"
        filling = [record for record in regions._held.get(filler, {}).values() if record.filler == filler]
        assert not filling, f"{filler} waits for {number} and lets others wait for {filling}"


def check_workspace(core: Core) -> None:
    """Whoever has work has a seat, and its slots; slots are there for models, and only for them."""
    workspace, workers = core.workspace, core.fleet.workers
    assert workspace._seats.keys() == {worker.child for worker in workers if worker.outstanding}
    taken = list(workspace._seats.values())
    assert sorted(taken + workspace._free_seats) == list(range(workspace.seats))
    known: set[int] = set()
    for name, ring in workspace.rings.items():
        assert ring.slots or ring.needs_bytes, f"{name} is a ring of nothing"
        for number in ring.needs_bytes:
            assert core.library.holdings.sets[number].workspace == name != "private"
        for seat, slot in ring.slots.items():
            known.add(slot.region)
            assert workspace._by_region[slot.region] == (ring, seat)
            assert slot.life.state in ("free", "leased")
            assert slot.life.state == "free" or seat in taken, f"{slot} is leased by nobody"
            assert ring.needs_bytes or slot.life.state == "leased", f"{slot} should be freed"
            assert slot.mapped_by <= {worker.child for worker in workers}, f"{slot} is mapped by the dead"
            assert slot.size_bytes <= slot.asked_bytes
    assert workspace._by_region.keys() == known
    assert workspace.stateful <= core.library.holdings.sets.keys()


def _is_coming(core: Core, version: object) -> bool:
    fleet = core.fleet
    if version.life.state == "building":
        return version.loader in fleet._loaders or version.loader in fleet._waiting_loaders
    is_importing = bool(fleet.zygote._in_flight) or not fleet.zygote.is_ready
    # While it thaws it is told to import nothing; it does as soon as it has thawed.
    is_importing = is_importing or fleet.zygote._thawing is not None
    return version.life.state == "adopting" and version.generation > fleet.zygote.generation and is_importing
