"""Requests: who asked for what, what is late."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ...protocol.errors import InvalidRequest, PoolBusy, PoolError
from ...protocol.limits import (
    MAX_CALLS,
    MAX_CREDIT,
    MAX_OUTBOX_BYTES,
    MAX_PRIORITY,
    MAX_REQUESTS_PER_CLIENT,
    MAX_RETRIES,
    MAX_SESSION_CHARACTERS,
)
from ...protocol.messages import Submit
from ...protocol.states import Lifecycle
from .events import ClientKey
from .mailboxes import Mailbox

if TYPE_CHECKING:
    from .queue import Line, Queue

#: What one client may have waiting, arrays included, in bytes.
MAX_QUEUED_BYTES = MAX_OUTBOX_BYTES
#: Deadlines of answered requests that are kept at least, before they are cleared away.
_KEPT_DEADLINES = 64


class Request:
    """One accepted request, until it is answered.

    Attributes:
        client: who waits for the answer.
        submit: what was asked.
        buffers: its large arrays; kept until the answer, because a retry needs them.
        attempt: the number of the attempt that may answer it; 0 while it waits.
        calls: how many calls of the model it stands for.
        credit: for a stream, how many items the client is ready for; 0 for anything else, or if it is to wait.
        items: how many items of it were sent.
        queue, line: where it waits to be handed to a worker, and, in ``line``, where it waited last.
        deaths: how many workers died while they ran it.
        is_suspect: whether a worker died over a batch that it was in: it may be what killed it, and runs alone.
        deadline: when it is late, on the core's clock; infinity for never.
        mailboxes: those that it holds until no worker can touch its places any more.
        is_abandoned: whether its client is gone.
    """

    __slots__ = (
        "attempt", "buffers", "calls", "client", "credit", "deadline", "deaths", "is_abandoned", "is_suspect",
        "items", "life", "line", "mailboxes", "queue", "size_bytes", "submit",
    )  # fmt: skip

    def __init__(self, client: ClientKey, submit: Submit, buffers: list[Any], now: float) -> None:
        self.client = client
        self.submit = submit
        self.buffers = buffers
        self.size_bytes = len(submit.body) + sum(memoryview(buffer).nbytes for buffer in buffers)
        self.attempt = 0
        self.calls = submit.calls or 1
        self.credit = submit.credit
        self.items = 0
        self.deaths = 0
        self.is_suspect = False
        self.queue: Queue | None = None
        self.line: Line | None = None
        self.deadline = now + submit.timeout_s if submit.timeout_s > 0 else float("inf")
        self.mailboxes: tuple[Mailbox, ...] = ()
        self.is_abandoned = False
        self.life = Lifecycle("request", (submit.request, submit.model), "queued")

    def __repr__(self) -> str:
        return f"<Request {self.submit.request} for {self.submit.model}: {self.life.state}>"

    @property
    def is_stream(self) -> bool:
        """Whether its items are wanted one by one."""
        return self.submit.credit > 0

    @property
    def is_queued(self) -> bool:
        """Whether it waits to be handed to a worker."""
        return self.life.state == "queued"

    @property
    def is_answered(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.life.state == "answered"

    @property
    def may_run_twice(self) -> bool:
        """Whether nobody could tell that two workers run it, each for itself."""
        submit = self.submit
        return submit.retries > 0 and not (self.is_stream or submit.session or self.mailboxes)

    def is_answered_by(self, attempt: int) -> bool:
        """Whether the result of this attempt is its answer, rather than stale."""
        return self.attempt == attempt and self.life.state == "running"


class _Client:
    __slots__ = ("queued_bytes", "requests")

    def __init__(self) -> None:
        self.requests: dict[int, Request] = {}
        self.queued_bytes = 0


class Requests:
    """All requests that are not answered, by client; and their deadlines."""

    def __init__(self) -> None:
        self._clients: dict[ClientKey, _Client] = {}
        self._deadlines: list[tuple[float, int, Request]] = []  # a heap; some of them answered meanwhile
        self._serial = 0
        self._timed = 0  # unanswered requests that have a deadline
        self.unanswered = 0

    def join(self, client: ClientKey) -> None:
        """Take a client in."""
        self._clients.setdefault(client, _Client())

    def leave(self, client: ClientKey) -> list[Request]:
        """Let a client go; return what it still waited for, each now answered."""
        book = self._clients.pop(client, None)
        if book is None:
            return []
        abandoned = list(book.requests.values())
        for request in abandoned:
            request.is_abandoned = True
            self._ended(request)
        return abandoned

    def check_number(self, client: ClientKey, number: int) -> None:
        """Look whether a client may give a request this number.

        Raises:
            InvalidRequest: nobody knows the client, or it waits for another request of this number.
        """
        if client not in self._clients:
            raise InvalidRequest("say hello first")
        if number in self._clients[client].requests:
            raise InvalidRequest(f"request number {number} is in use")

    def accept(self, client: ClientKey, submit: Submit, buffers: list[Any], now: float) -> Request | PoolError:
        """Return the new request of a client that may give it its number, or why it is refused."""
        book = self._clients[client]
        if complaint := _complaint(submit):
            return InvalidRequest(complaint)
        if len(book.requests) >= MAX_REQUESTS_PER_CLIENT:
            return PoolBusy(f"{MAX_REQUESTS_PER_CLIENT:,} requests of this client wait; read answers first")
        request = Request(client, submit, buffers, now)
        if book.queued_bytes and book.queued_bytes + request.size_bytes > MAX_QUEUED_BYTES:
            return PoolBusy(
                f"{book.queued_bytes:,} bytes of this client's requests wait; with this one it would be more "
                f"than {MAX_QUEUED_BYTES:,}: read answers first"
            )
        self._enter(book, request)
        return request

    def adopt(self, request: Request) -> None:
        """Take in a request that another device has accepted, and let go."""
        self._enter(self._clients[request.client], request)

    def let_go(self, requests: Iterable[Request]) -> None:
        """Forget requests that another device answers."""
        gone = set(requests)
        for request in gone:
            book = self._clients[request.client]
            del book.requests[request.submit.request]
            book.queued_bytes -= request.size_bytes
            self.unanswered -= 1
            self._timed -= request.deadline != float("inf")
        self._deadlines = [entry for entry in self._deadlines if entry[2] not in gone]
        heapq.heapify(self._deadlines)

    def find(self, client: ClientKey, number: int) -> Request | None:
        """Return a client's unanswered request."""
        book = self._clients.get(client)
        return book.requests.get(number) if book else None

    def settle(self, request: Request) -> None:
        """Note that a request has its answer."""
        book = self._clients[request.client]
        del book.requests[request.submit.request]
        book.queued_bytes -= request.size_bytes
        self._ended(request)

    def everyone(self) -> Iterator[Request]:
        """Yield every unanswered request."""
        for book in self._clients.values():
            yield from book.requests.values()

    @property
    def clients(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    def next_deadline(self) -> float:
        """Return when the next unanswered request is late; infinity if none will be."""
        while self._deadlines and self._deadlines[0][2].is_answered:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else float("inf")

    def late(self, now: float) -> list[Request]:
        """Return the unanswered requests whose deadline has passed."""
        late: list[Request] = []
        while self.next_deadline() <= now:
            late.append(heapq.heappop(self._deadlines)[2])
        return late

    def _enter(self, book: _Client, request: Request) -> None:
        book.requests[request.submit.request] = request
        book.queued_bytes += request.size_bytes
        self.unanswered += 1
        if request.deadline != float("inf"):
            self._serial += 1
            self._timed += 1
            heapq.heappush(self._deadlines, (request.deadline, self._serial, request))

    def _ended(self, request: Request) -> None:
        request.life.become("answered")
        self.unanswered -= 1
        if request.deadline == float("inf"):
            return
        self._timed -= 1
        if len(self._deadlines) > 2 * self._timed + _KEPT_DEADLINES:
            # Answered ones leave the heap at the top only; below one that is far off they would pile up there,
            # and all their arrays with them.
            self._deadlines = [entry for entry in self._deadlines if not entry[2].is_answered]
            heapq.heapify(self._deadlines)


def _complaint(submit: Submit) -> str:
    """Return what of a request cannot be, in a sentence; empty if all of it can."""
    if not 0 <= submit.timeout_s < float("inf"):
        return f"timeout_s must be a number of seconds from 0, not {submit.timeout_s}"
    if not 0 <= submit.retries <= MAX_RETRIES:
        return f"retries must be from 0 to {MAX_RETRIES}, not {submit.retries}"
    if not -MAX_PRIORITY <= submit.priority <= MAX_PRIORITY:
        return f"priority must be from -{MAX_PRIORITY} to {MAX_PRIORITY}, not {submit.priority}"
    if not 0 <= submit.calls <= MAX_CALLS:
        return f"calls must be from 0 to {MAX_CALLS:,}, not {submit.calls}"
    if not 0 <= submit.credit <= MAX_CREDIT:
        return f"credit must be from 0 to {MAX_CREDIT:,}, not {submit.credit}"
    if submit.credit and submit.calls:
        return "a stream is of one call, and calls are for many"
    if submit.credit and submit.reply:
        return "items of a stream are never put into a place; reply must be empty"
    if len(submit.session) > MAX_SESSION_CHARACTERS:
        return f"session must have at most {MAX_SESSION_CHARACTERS} characters, not {len(submit.session)}"
    return ""
