"""Books on what a core says, kept by somebody who knows nothing of how it works.

They follow what it was told and what it answered: which requests are open, in which order each client's should
run, what each worker was handed. What a pool must never do shows as a contradiction between the two.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from onecopy.pool.core import events, instructions
from onecopy.pool.core.core import Core
from onecopy.protocol import messages

Key = tuple[object, int]


def body_of(client: object, number: int) -> bytes:
    """The body of a request, by which the books recognise it wherever it turns up."""
    return f"{client}/{number}".encode()


def answer_to(body: bytes) -> bytes:
    """The body of the result of a run."""
    return b"answer to " + body


def item_of(body: bytes, number: int) -> bytes:
    """The body of an item of a stream, the first being 1."""
    return b"item %d of " % number + body


@dataclass
class Asked:
    """An accepted request that is not answered."""

    submit: messages.Submit
    line: tuple[object, ...]  # those of one line run in order
    credit: int
    deaths: int = 0
    attempt: int = 0
    items: int = 0
    is_suspect: bool = False

    @property
    def calls(self) -> int:
        return self.submit.calls or 1


@dataclass
class Given:
    """An attempt that a worker holds."""

    keys: tuple[Key, ...]
    weight_set: int
    seat: int
    slot: int
    is_interrupted: bool = False


#: What a caller waits for the answer to.
_ASKING = (
    events.ModelDeclared | events.ModelRemoved | events.ModelWanted | events.ModelPinned | events.ModelEvicted
)


@dataclass
class Books:
    """What must be true of the core's answers."""

    core: Core
    asked: dict[Key, Asked] = field(default_factory=dict)
    queues: dict[str, deque[Key]] = field(default_factory=dict)
    by_body: dict[bytes, Key] = field(default_factory=dict)
    sessions: dict[tuple[str, str], int] = field(default_factory=dict)
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
        elif isinstance(event, events.Continued):
            self._continued(event)
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
        elif isinstance(event, _ASKING):
            assert not self.callers.get(event.caller), "tests must not use a caller twice"
            self.callers[event.caller] = ""
        elif isinstance(event, events.RegionsNeeded) and type(event.filler) is not int:
            self.callers[event.filler] = ""  # it gets regions, or is refused
        elif isinstance(event, events.MailboxWanted):  # one caller asks for several, one after the other
            self.callers[event.caller] = ""
        elif isinstance(event, events.CallerLeft) and self.callers.get(event.caller) == "":
            self.callers[event.caller] = "gone"
        for one in out:
            assert not self.finished, f"{one} after Finish"
            if isinstance(one, instructions.ToClient) and isinstance(one.message, messages.Item):
                self._item(event, one)
            elif isinstance(one, instructions.ToClient) and not isinstance(one.message, messages.Released):
                self._answered(event, one, new)
            elif isinstance(one, instructions.Interrupt):
                self._interrupted(event, one)
            elif isinstance(one, instructions.TellLate):
                self._late(event, one)
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
        line = (event.client, submit.priority, submit.session)
        self.asked[key] = Asked(submit, line, submit.credit)
        self.by_body[submit.body] = key
        self.queues.setdefault(submit.model, deque()).append(key)
        return None

    def _continued(self, event: events.Continued) -> None:
        asked = self.asked.get((event.client, event.request))
        if asked is not None and asked.submit.credit and event.items > 0:
            asked.credit += event.items

    def _ended(self, event: events.AttemptEnded) -> set[Key]:
        given = self.held.get(event.child, {}).pop(event.attempt, None)
        keys = given.keys if given is not None else ()
        return {key for key in keys if key in self.asked and self.asked[key].attempt == event.attempt}

    def _exited(self, event: events.ChildExited) -> set[Key]:
        """Put back what the worker held, in order; return what has died too often."""
        self.thawed.pop(event.child, None)
        held = self.held.pop(event.child, {})
        self.lost_slots |= {given.slot for given in held.values() if given.slot}
        self.sessions = {key: child for key, child in self.sessions.items() if child != event.child}
        failing: set[Key] = set()
        for attempt, given in reversed(held.items()):
            is_blamed, is_batch = attempt == event.begun, len(given.keys) > 1
            for key in reversed(given.keys):
                asked = self.asked.get(key)
                if asked is None or asked.attempt != attempt:
                    continue
                asked.is_suspect |= is_blamed and is_batch
                asked.deaths += is_blamed and (not is_batch or not asked.submit.retries)
                if asked.deaths > asked.submit.retries or asked.items:
                    failing.add(key)
                else:
                    asked.attempt = 0
                    self.queues[asked.submit.model].appendleft(key)
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
            assert one.message.body == answer_to(asked.submit.body), f"{key} got what belongs to another"
        elif one.message.error["code"] == "worker_died" and not asked.items:
            assert asked.deaths == asked.submit.retries + 1, f"{key} gave up after {asked.deaths} deaths: {asked}"
        self._close(key)

    def _item(self, event: events.Event, one: instructions.ToClient) -> None:
        key = (one.client, one.message.request)
        assert key in self.asked, f"{key} gets an item, and is over"
        asked = self.asked[key]
        assert isinstance(event, events.ItemYielded), f"{key} has an item out of nowhere"
        assert event.attempt == asked.attempt, f"{key} has an item of a stale attempt"
        asked.items += 1
        assert one.message.body == item_of(asked.submit.body, asked.items), f"{key} got it out of order"
        asked.credit -= 1
        assert asked.credit >= 0, f"{key} got more than it was ready for"

    def _interrupted(self, event: events.Event, one: instructions.Interrupt) -> None:
        held = self.held.get(one.child, {})
        given = held.get(one.attempt)
        assert given is not None, f"{one} is for what the worker does not have"
        assert not given.is_interrupted, f"{one} comes twice"
        given.is_interrupted = True
        waiting = [key for key in given.keys if key in self.asked and self.asked[key].attempt == one.attempt]
        if waiting:  # behind a run that takes too long: they run elsewhere, before those that came after them
            assert isinstance(event, events.TimePassed), f"{one}, but {waiting} wait for it"
            assert one.attempt != next(iter(held)), f"{one}, which {waiting} wait for, may have begun"
        for key in reversed(waiting):
            asked = self.asked[key]
            submit = asked.submit
            assert submit.retries > 0, f"{key} may run once"
            is_bound = submit.session or submit.credit or submit.places or submit.reply
            assert not is_bound, f"{key} is to stay where it is"
            asked.attempt = 0
            self.queues[submit.model].appendleft(key)

    def _late(self, event: events.Event, one: instructions.TellLate) -> None:
        assert isinstance(event, events.TimePassed), f"{one} out of nowhere"
        asked = self.asked[one.client, one.request]
        assert asked.attempt == one.attempt == next(iter(self.held[one.child])), f"{one} is not what runs there"
        assert asked.submit.calls, f"{one} is one call"

    def _close(self, key: Key) -> None:
        asked = self.asked.pop(key)
        del self.by_body[asked.submit.body]
        if asked.attempt == 0:
            self.queues[asked.submit.model].remove(key)

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
        keys = tuple(self.by_body[part[0]] for part in run.parts)
        for key, part in zip(keys, run.parts, strict=True):
            self._handed_part(child, version.load.name, key, part, run)
        taken = [self.asked[key] for key in keys]
        if len(taken) > 1:
            assert sum(one.calls for one in taken) <= version.load.options.get("max_batch", 1), (
                f"{run} is too large"
            )
            alone = [one for one in taken if one.submit.session or one.submit.credit or one.is_suspect]
            assert not alone, f"{alone} should run alone"
            assert len({one.submit.method for one in taken}) == 1, f"{run} is of several methods"
        self._seated(child, run)
        self.held.setdefault(child, {})[run.attempt] = Given(keys, run.weight_set, run.seat, run.slot)

    def _handed_part(self, child: int, model: str, key: Key, part: list[object], run: messages.Run) -> None:
        asked, queue = self.asked[key], self.queues[model]
        submit = asked.submit
        assert part[:4] == [submit.body, submit.places, submit.reply, submit.calls]
        assert asked.attempt == 0, f"{key} is handed out twice"
        assert run.credit == asked.credit, f"{key} has {asked.credit} credit, and gets {run.credit}"
        for other in queue:
            if other == key:
                break
            assert self.asked[other].line != asked.line, f"{key} is handed out before {other}"
        queue.remove(key)
        asked.attempt = run.attempt
        if submit.session:
            has_it = self.sessions.get((model, submit.session))
            worker = self.core.fleet.workers.get(has_it) if has_it else None
            stays = worker is not None and not worker.is_outdated
            assert not stays or child == has_it, f"{key} should go to {has_it}, not {child}"
            self.sessions[model, submit.session] = child

    def _seated(self, child: int, run: messages.Run) -> None:
        """A worker keeps its seat as long as it has work; no two have the same, or a slot that one has died in."""
        others = [given for other, held in self.held.items() if other != child for given in held.values()]
        mine = self.held.get(child, {}).values()
        assert run.seat not in {given.seat for given in others}, f"two workers sit on {run.seat}"
        assert {given.seat for given in mine} <= {run.seat}, f"worker {child} moves while it has work"
        if run.slot:
            assert run.slot not in {given.slot for given in others}, f"two workers run in slot {run.slot}"
            assert run.slot not in self.lost_slots, f"somebody died in slot {run.slot}"
