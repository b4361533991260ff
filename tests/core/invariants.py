"""A core that is checked after every event: against its own state, and against books kept on what it says.

What a pool must never do shows as a contradiction, and fails with the story of the last events.
"""

from __future__ import annotations

from collections import Counter, deque

from core.books import Books
from core.mailing import Lent, check_mailboxes
from onecopy.pool.core import events, instructions
from onecopy.pool.core.admission import FillClaim, ReturnClaim
from onecopy.pool.core.core import Core
from onecopy.pool.core.workers import AHEAD_S, MAX_AHEAD

_STORY_LENGTH = 80
_INFINITY = float("inf")


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
        before_bytes = handed_out_bytes(self.core)
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
            check_memory(self.core, before_bytes)
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
    in_sessions = [one for queue in core.dispatch.sessions._queues.values() for one in queue]
    open_by_model: dict[str, int] = {}
    for asked in books.asked.values():
        open_by_model[asked.submit.model] = open_by_model.get(asked.submit.model, 0) + 1
    assert open_by_model.keys() <= core.library.models.keys(), "a model was forgotten before its requests"
    for name, model in core.library.models.items():
        assert model.unanswered == open_by_model.get(name, 0)
        waiting = [*model.queue, *(one for one in in_sessions if one.submit.model == name)]
        keys = {(request.client, request.submit.request) for request in waiting}
        assert len(keys) == len(waiting)
        assert keys == set(books.queues.get(name, ())), f"the queue of {name} is {keys}"
        assert all(request.is_queued for request in waiting)
        assert model.queue.calls == sum(request.calls for request in model.queue)
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
    assert workers.busy == len(held) <= core.workspace.seats
    most = core.sizing._most  # where the number varies, some of those that were wanted may be leaving yet
    assert core.sizing._least <= workers.wanted <= most
    assert len(workers) <= 2 * most
    assert sorted(core.attempts._running) == sorted(attempt for given in books.held.values() for attempt in given)
    running = [one.weight_set for given in books.held.values() for one in given.values()]
    for version in sets.values():
        assert version.running == running.count(version.number)
        holders = {worker.child for worker in workers if version.number in worker.holds}
        assert version.holders == holders, f"{version} has holders {holders}"
        assert version.holders <= {child for child, has in books.thawed.items() if version.number in has}
        assert version.inheritors <= version.holders
        assert not holders or version.life.state in ("ready", "draining", "evicting")
    for worker in workers:
        assert (worker.life.state == "busy") == bool(worker.outstanding)
        assert len(worker.outstanding) <= MAX_AHEAD
        expected = list(worker.outstanding.values())
        assert sum(expected[:-1]) <= AHEAD_S + 1e-9 or len(expected) == 1
        assert worker.holds <= sets.keys(), f"{worker} holds what was freed"
        for attempt in list(worker.outstanding)[1:] if worker.is_late else ():
            waits = [one for one in core.attempts._running[attempt].requests if one.is_answered_by(attempt)]
            assert not waits or not all(one.may_run_twice for one in waits), f"{waits} wait behind a late run"
        assert worker.thawing.keys() <= worker.holds
    outdated = {one.child: one for one in workers if one.is_outdated and one.life.state != "leaving"}
    assert workers._outdated == outdated
    assert workers._replaceable == {child: one for child, one in outdated.items() if one.life.state == "idle"}
    assert workers._starting == sum(one.life.state == "starting" for one in workers)
    assert workers.staying <= most + 1
    assert core.sizing.is_variable or workers.wanted == most


def check_assignment(core: Core) -> None:
    """Nothing waits that could run, but for batches that are not full yet, which an idle worker takes at once."""
    if core.workspace.is_making:
        return
    workers, sessions = core.fleet.workers, core.dispatch.sessions
    for model in core.library.models.values():
        assert (model in core.schedule) == model.is_runnable, f"{model} has work, but gets no turn, or has none"
        assert not (model in core.schedule._ready and model in core.schedule._filling)
        if model.is_runnable:
            able = [one for one in workers if one.generation >= model.current.generation]
            assert not (workers.has_idle and any(one.life.state == "idle" for one in able)), f"{model} waits"
            has_room = [worker for worker in able if worker.has_room]
            assert model in core.schedule._filling or not has_room, f"{model} waits although {has_room}"
    for model in core.library.models.values():
        seats = [one.child for one in core.attempts._running.values() if one.model is model]
        assert model.seats == Counter(seats)
        roomy = [child for child in model.seats if workers.get(child).has_room]
        assert not model.is_held or (model.is_at_most and not roomy), f"{model} is held although {roomy}"
    for child, queue in sessions._queues.items():
        worker = workers.get(child)
        assert worker is not None, f"{list(queue)} wait for a worker that is gone"
        assert not (queue.calls and worker.life.state == "idle" and workers.has_idle), f"{list(queue)} wait"
    for model, child in sessions._workers.items():
        assert model in sessions._keys[child]


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
        may_wait = len(fleet._loaders) == fleet.most_loaders or core.ledger.is_expecting
        assert not fleet._waiting_loaders or may_wait, "a loader is not forked"
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


def handed_out_bytes(core: Core) -> int:
    """What regions of weights take."""
    regions = core.library.holdings.regions
    return regions.resident_bytes + regions.filling_bytes


def free_as_measured(core: Core) -> int:
    """What would be free if nothing counted that is only expected: for that others may still have to leave."""
    ledger = core.ledger
    expected, ledger._expected = ledger._expected, {}
    try:
        return ledger.free_bytes
    finally:
        ledger._expected = expected


def check_memory(core: Core, before_bytes: int) -> None:
    """Nothing is handed out beyond what the ledger allows; who is out of memory is mapped by nobody."""
    holdings, ledger = core.library.holdings, core.ledger
    regions = holdings.regions
    by_state: dict[str, int] = {}
    for record in regions:
        state = "elsewhere" if record.is_elsewhere else record.life.state
        by_state[state] = by_state.get(state, 0) + record.size_bytes
    assert regions.filling_bytes == by_state.pop("filling", 0)
    by_state.pop("away", 0)
    by_state.pop("elsewhere", 0)
    assert regions.resident_bytes == sum(by_state.values())
    cached = [record for record in regions if record.is_cached]
    assert regions.cached_bytes == sum(record.size_bytes for record in cached)
    assert {record.life.state for record in cached} <= {"returning", "sealed", "leaving"}
    assert handed_out_bytes(core) <= before_bytes or free_as_measured(core) >= 0, f"{ledger} was exceeded"
    returning = {claim.version for claim in core.admission if isinstance(claim, ReturnClaim)}
    for version in holdings.sets.values():
        states = {regions[number].life.state for number in version.regions}
        if version.life.state in ("ready", "draining"):
            assert states <= {"sealed"}, f"{version} lies in regions that are {states}"
        elif version.life.state == "evicted":
            assert not version.is_mapped
            model = core.library.models[version.load.name]
            # Requests that run may be with an older version, whose memory it has to do without.
            waiting = {one.submit.model for one in core.requests.everyone() if one.is_queued}
            is_wanted = version.load.name in waiting and model.current is version and model.successor is None
            assert not is_wanted, f"{version} is wanted, and stays away"
        elif version.life.state == "returning":
            assert not version.is_mapped
            assert (version in returning) != (version in core.eviction._returning), f"{version} waits for nothing"
        elif version.life.state == "evicting":
            assert version in core.eviction._leaving
            assert version.is_mapped or "leaving" in states, f"{version} waits for nothing"
    assert returning <= set(holdings.sets.values())
    for claim in core.admission:
        is_loader = isinstance(claim, FillClaim) and type(claim.filler) is int
        assert not is_loader or core.library.is_loading(claim.filler), "a loader that is gone waits for memory"


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
            may_wait = not slot.size_bytes or slot.life.state == "leased"
            assert may_wait or not (workspace._keeps_size and ring.is_unfit(slot)), f"{slot} should be replaced"
        lacks_slots = len(ring.slots) < workspace.seats and ring.needs_bytes
        assert not lacks_slots or ring.refusal or ring.slots, f"nobody makes slots for {name}"
    assert workspace._by_region.keys() == known
    assert workspace._letting_go <= {worker.child for worker in workers}
    assert workspace._kept_bytes.keys() <= workspace._escapes.keys()
    assert {child for child, _ in workspace._kept_bytes} <= {worker.child for worker in workers}
    assert workspace.stateful <= core.library.holdings.sets.keys()


def _is_coming(core: Core, version: object) -> bool:
    fleet = core.fleet
    if version.life.state in ("evicting", "returning"):  # `check_memory` says what they wait for
        return True
    if version.life.state == "building" and version in core.library._postponed:
        return bool(core.admission or core.library._loaders)
    if version.life.state == "building":
        return version.loader in fleet._loaders or version.loader in fleet._waiting_loaders
    is_importing = bool(fleet.zygote._in_flight) or not fleet.zygote.is_ready
    # While it thaws it is told to import nothing; it does as soon as it has thawed.
    is_importing = is_importing or fleet.zygote._thawing is not None
    return version.life.state == "adopting" and version.generation > fleet.zygote.generation and is_importing
