"""What clients ask a pool for: all kinds of requests, each noted before it is sent, and whatever comes of it.

One `Load` is one thread's: it draws what to do next until it is told to stop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from random import Random
from typing import Any, Final

import numpy as np
from onecopy.pool import Pool
from onecopy.protocol.errors import SupervisorLost
from onecopy.protocol.messages import Failed, Reply

from . import pattern
from .books import Asked
from .journal import Journal

#: Which models there always are, and what of them is asked for, see `stage`.
SMALL: Final = ("plain", "swapped", "cold", "handed")
PASSING: Final = ("passing-0", "passing-1")
NOBODY: Final = "nobody"
#: How many deaths most requests survive: more than they will see.
PATIENT: Final = 30
_PAUSE_S: Final = 0.02
#: For whoever waits to find out that nothing comes: longer than anything takes.
_LONGEST_S: Final = 90.0


class Load:
    """Asks for things.

    Args:
        pool: whom.
        journal: notes it.
        random: draws what.
        name: what its tags begin with; no other's do.
        pause_s: how long it rests between two requests, on average.
    """

    def __init__(self, pool: Pool, journal: Journal, random: Random, name: str, pause_s: float = _PAUSE_S) -> None:
        self._pool = pool
        self._journal = journal
        self._random = random
        self._name = name
        self._pause_s = pause_s
        self._serial = 0
        self._is_lost = False
        self._rows_from = random.getrandbits(40) << 20  # rows have numbers for tags, and no others have these
        self._kinds: dict[Callable[[], None], int] = {
            self.small: 8, self.burst: 3, self.mapped: 3, self.rows: 4, self.array: 3, self.stream: 2,
            self.session: 2, self.cancelled: 2, self.deadline: 2, self.failing: 1, self.unknown: 1, self.deadly: 1,
            self.crowd: 1, self.gathered: 2, self.passing: 2,
        }  # fmt: skip

    def run(self, is_over: threading.Event) -> None:
        """Go on until told to stop, or until the pool is gone."""
        kinds, weights = list(self._kinds), list(self._kinds.values())
        while not self._is_lost and not is_over.wait(self._random.expovariate(1 / self._pause_s)):
            self._random.choices(kinds, weights)[0]()

    # --- one at a time --------------------------------------------------------------------------------------

    def small(self) -> None:
        """One small request; now and then one that survives no death."""
        model = self._random.choice(SMALL)
        retries = self._random.choice((0, PATIENT, PATIENT, PATIENT))
        self._call(model, "", self._small(), retries=retries, priority=self._random.choice((-10, 0, 0, 0, 10)))

    def passing(self) -> None:
        """One for a model that comes and goes."""
        self._call(self._random.choice(PASSING), "", self._small(), may=("model_not_found",), retries=PATIENT)

    def array(self) -> None:
        """One with a large array, which is answered by one as large."""
        tag, count = self._tag(), self._random.choice((1 << 12, 1 << 15, 1 << 17))
        model = self._random.choice(("plain", "handed"))
        args = (tag, pattern.array_of(tag, count))
        self._call(model, "array", ("array", tag, count), args=args, retries=PATIENT)

    def rows(self) -> None:
        """Some rows, which others' may be put together with."""
        count = self._random.randint(1, 5)
        first, places = self._rows_from, [self._random.randrange(pattern.SIZE) for _ in range(count)]
        self._rows_from += count
        x = np.array([[first + index, place] for index, place in enumerate(places)])
        self._call("rows", "rows", ("rows", first, places), args=(x,), retries=PATIENT)

    def deadline(self) -> None:
        """One that may be too late."""
        tag, timeout_s = self._tag(), self._random.choice((0.005, 0.05, 0.5))
        what = ("nap", tag)
        self._call("plain", "nap", what, args=(tag, 0.02), retries=PATIENT, timeout_s=timeout_s)

    def failing(self) -> None:
        """One that the model refuses."""
        tag = self._tag()
        self._call("plain", "fail", ("fail", tag), args=(tag,), may=("model_error",), retries=PATIENT)

    def unknown(self) -> None:
        """One for a model that nobody has."""
        self._call(NOBODY, "", self._small(), may=("model_not_found",))

    def deadly(self) -> None:
        """One that kills whoever runs it."""
        tag = self._tag()
        self._journal.killed()
        self._call("plain", "die", ("die", tag), args=(tag,), may=("worker_died",))

    def session(self) -> None:
        """Some in a session, one after the other."""
        session = f"{self._name} {self._number()}"
        for _ in range(self._random.randint(2, 6)):
            tag = self._tag()
            what = ("count", tag, session)
            self._call("plain", "count", what, args=(tag, session), retries=PATIENT, session=session)

    def cancelled(self) -> None:
        """One that is given up, perhaps at the price of the worker that is at it."""
        tag = self._tag()
        asked = self._asked("plain", ("nap", tag), retries=PATIENT)
        number = self._journal.asked(asked)
        try:
            future = self._pool.model("plain", method="nap", retries=PATIENT).submit(tag, 0.1)
            time.sleep(self._random.choice((0.0, 0.01, 0.05, 0.15)))
            is_to_kill = self._random.random() < 0.2
            if is_to_kill:
                self._journal.killed()
            if future.cancel(kill=is_to_kill):
                self._journal.given_up(number)
            else:
                self._journal.answered(number, future.result(0))
        except Exception as error:  # noqa: BLE001 - the books judge it
            self._failed(number, error)

    # --- many -----------------------------------------------------------------------------------------------

    def burst(self) -> None:
        """Many at once; half of them with one argument, so that they may travel together."""
        model, is_one = self._random.choice(SMALL), self._random.random() < 0.5
        handle = self._pool.model(model, method="one" if is_one else None, retries=PATIENT)
        whats = [self._small() for _ in range(self._random.choice((4, 16, 64)))]
        each = [(what, (list(what[1:]),) if is_one else what[1:]) for what in whats]
        self._wait_for([self._submit(handle, model, what, args, retries=PATIENT) for what, args in each])

    def crowd(self) -> None:
        """More at once than may wait."""
        handle = self._pool.model("narrow", method="nap", retries=PATIENT)
        whats = [("nap", self._tag()) for _ in range(16)]
        may = ("pool_busy",)
        self._wait_for(
            [self._submit(handle, "narrow", what, (what[1], 0.005), retries=PATIENT, may=may) for what in whats]
        )

    def mapped(self) -> None:
        """Many, one after the other, in packs."""
        numbers: list[int] = []
        model = self._random.choice(("plain", "swapped"))

        def xs() -> Iterator[list[Any]]:
            for _ in range(count):
                what = self._small()
                numbers.append(self._journal.asked(self._asked(model, what, retries=PATIENT)))
                yield list(what[1:])

        count, done = self._random.choice((5, 40, 200)), 0
        try:
            for answer in self._pool.model(model, method="one", retries=PATIENT).map(xs(), buffersize=64):
                self._journal.answered(numbers[done], answer)
                done += 1
        except Exception as error:  # noqa: BLE001 - the books judge it
            numbers, failed = numbers[done + 1 :], numbers[done]
            for number in numbers:
                self._journal.given_up(number)
            self._failed(failed, error)

    def gathered(self) -> None:
        """Many at once, from asyncio."""
        model = self._random.choice(SMALL)
        handle = self._pool.model(model, method="one", retries=PATIENT)

        async def one(what: tuple[Any, ...]) -> None:
            number = self._journal.asked(self._asked(model, what, retries=PATIENT))
            try:
                self._journal.answered(number, await handle.arun(list(what[1:])))
            except Exception as error:  # noqa: BLE001 - the books judge it
                self._failed(number, error)

        async def all_of_them() -> None:
            await asyncio.gather(*(one(self._small()) for _ in range(32)))

        asyncio.run(all_of_them())

    def stream(self) -> None:
        """Items as they come; now and then not all of them are read."""
        tag, count = self._tag(), self._random.choice((3, 30, 200))
        stops_at = self._random.choice((count, count, count // 2))
        asked = self._asked("plain", ("items", tag, count), retries=PATIENT, is_stream=True)
        number = self._journal.asked(asked)
        items: list[Any] = []
        try:
            with self._pool.model("plain", method="items", retries=PATIENT).stream(tag, count) as stream:
                for item in stream:
                    items.append(item)
                    if len(items) == stops_at < count:
                        self._journal.given_up(number)
                        return
            self._journal.answered(number, put_together(items))
        except Exception as error:  # noqa: BLE001 - the books judge it
            self._failed(number, error)

    # --- what they have in common ---------------------------------------------------------------------------

    def _call(
        self,
        model: str,
        method: str,
        what: tuple[Any, ...],
        *,
        args: tuple[Any, ...] = (),
        may: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        """Ask, and wait for what comes of it."""
        asked = {name: options[name] for name in ("retries", "timeout_s") if name in options}
        handle = self._pool.model(model, method=method or None, **{"retries": 0, **options})
        self._wait_for([self._submit(handle, model, what, args or what[1:], may=may, **asked)])

    def _submit(self, handle: Any, model: str, what: tuple[Any, ...], args: tuple[Any, ...], **asked: Any) -> Any:
        number = self._journal.asked(self._asked(model, what, **asked))
        try:
            return number, handle.submit(*args)
        except Exception as error:  # noqa: BLE001 - the books judge it
            self._failed(number, error)
            return number, None

    def _wait_for(self, under_way: list[Any]) -> None:
        for number, future in under_way:
            try:
                if future is not None:
                    self._journal.answered(number, future.result(_LONGEST_S))
            except Exception as error:  # noqa: BLE001 - the books judge it
                self._failed(number, error)

    def _failed(self, number: int, error: BaseException) -> None:
        """Note an error, of whatever kind."""
        if isinstance(error, CancelledError):
            self._journal.given_up(number)
            return
        self._journal.failed(number, error)
        self._is_lost |= isinstance(error, SupervisorLost)

    def _asked(self, model: str, what: tuple[Any, ...], **more: Any) -> Asked:
        return Asked(time.monotonic(), model, what, **more)

    def _small(self) -> tuple[Any, ...]:
        start = self._random.randrange(pattern.SIZE - 4096)
        return ("small", self._tag(), start, self._random.randint(1, 4096))

    def _number(self) -> int:
        self._serial += 1
        return self._serial

    def _tag(self) -> str:
        return f"{self._name}/{self._number()}"


def put_together(items: list[Any]) -> Any:
    """Return a stream's items as one answer; what does not belong together stays apart, and is wrong."""
    if not items or any(item[:3] != [*items[0][:2], index] for index, item in enumerate(items)):
        return ["torn", items[:3], len(items)]
    return [*items[0][:2], [item[3] for item in items]]


def count_answers(pool: Pool, journal: Journal) -> None:
    """See to it that a second answer to the same request is noticed where it arrives, before anybody drops it."""
    handlers, answered = pool._connection._handlers, set[int]()
    for kind in (Reply, Failed):

        def handle(message: Any, buffers: Any, then: Any = handlers[kind]) -> None:
            if message.request in answered:
                journal.complain(f"request {message.request} was answered twice, now with {message!r:.300}")
            answered.add(message.request)
            then(message, buffers)

        handlers[kind] = handle
