"""Clients of a simulated pool that use mailboxes, and what must be true of the memory that they lend.

What a client put into a request's places is lent until it is told that they are its own again. No worker may touch
a place that is not lent, and nothing stays lent that no worker could touch any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onecopy.pool.core import events, instructions
from onecopy.pool.core.core import Core
from onecopy.pool.core.mailboxes import Budget
from onecopy.protocol import messages

if TYPE_CHECKING:
    from core.books import Books
    from core.world import World

BUDGET = Budget(client_bytes=16 * 4096, total_bytes=24 * 4096)
#: What each request lends: one block for its arrays, one for those of its result.
_BLOCK_BYTES = 64

Key = tuple[object, int]


def has_places(submit: messages.Submit) -> bool:
    return bool(submit.reply or any(submit.places))


class Lent:
    """What clients have lent, by request, as they know it from what they are told."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self.keys: dict[Key, set[int]] = {}

    def take(self, event: events.Event, out: list[instructions.Instruction]) -> None:
        if isinstance(event, events.Submitted) and has_places(event.submit):
            numbers = {place[0] for place in [*event.submit.places, event.submit.reply] if place}
            self.keys[event.client, event.submit.request] = numbers
        elif isinstance(event, events.ClientLeft):
            self.keys = {key: numbers for key, numbers in self.keys.items() if key[0] != event.client}
        for one in out:
            if isinstance(one, instructions.ToClient):
                self._told(one)
            elif isinstance(one, instructions.FreeRegions):
                used = {number for numbers in self.keys.values() for number in numbers} & set(one.regions)
                assert not used, f"mailboxes {used} are freed while something is in them"
        for key in self.keys:
            assert key in self._books.asked or self._is_held(key), f"{key} was never released"

    def _told(self, one: instructions.ToClient) -> None:
        key = (one.client, one.message.request)
        if isinstance(one.message, messages.Released):
            assert key in self.keys, f"{key} is released, and has lent nothing"
            assert key not in self._books.asked, f"{key} is released before it failed"
        if isinstance(one.message, messages.Released | messages.Reply):
            has_lent = self.keys.pop(key, None) is not None
            assert not (has_lent and self._is_held(key)), f"{key} is the client's again, and a worker has it yet"

    def _is_held(self, key: Key) -> bool:
        return any(key in given.keys for held in self._books.held.values() for given in held.values())


def check_mailboxes(core: Core) -> None:
    """Budgets hold, and every mailbox is there for somebody."""
    mailboxes = core.mailboxes
    requests = {
        *core.requests.everyone(),
        *(one for running in core.attempts._running.values() for one in running.requests),
    }
    children = {worker.child for worker in core.fleet.workers}
    sizes: dict[object, int] = {}
    for number, mailbox in mailboxes._by_number.items():
        holders = sum(mailbox in request.mailboxes for request in requests)
        assert mailbox.holders == holders, f"{mailbox} is held by {holders} requests"
        assert holders or not mailbox.is_returned, f"{mailbox} should be freed"
        assert mailbox.mapped_by <= children, f"{mailbox} is mapped by the dead"
        assert mailboxes._by_caller[mailbox.caller][number] is mailbox
        sizes[mailbox.caller] = sizes.get(mailbox.caller, 0) + mailbox.size_bytes
    assert sizes.keys() == mailboxes._by_caller.keys()
    assert all(size_bytes <= mailboxes.budget.client_bytes for size_bytes in sizes.values())
    assert sum(sizes.values()) == mailboxes.granted_bytes <= mailboxes.budget.total_bytes


class Mailing:
    """The clients' side in a world: leases, mailboxes and blocks."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._leases: dict[str, str] = {}
        self._count = 0
        self.granted: dict[str, dict[int, int]] = {}
        self.lent: dict[Key, tuple[bytes, int, int]] = {}

    def join(self, client: str) -> str:
        """Return the name under which a client that joins is known at the unix socket."""
        self._count += 1
        lease = self._leases[client] = f"{client} at the socket, the {self._count}. time"
        self.granted[lease] = {}
        return lease

    def ends(self, client: str) -> None:
        """A client's process is gone."""
        lease = self._leases.pop(client, None)
        if lease is not None:
            del self.granted[lease]
            self._world.feed(events.CallerLeft(lease))

    def want(self, client: str, size_bytes: int) -> None:
        if client in self._leases:
            self._world.feed(events.MailboxWanted(self._leases[client], size_bytes))

    def give_back(self, client: str) -> None:
        """Give a mailbox back in which nothing is."""
        own = self.granted.get(self._leases.get(client, ""), {})
        empty = [number for number in own if number not in {number for _, number, _ in self.lent.values()}]
        if empty:
            del own[empty[0]]
            self._world.feed(events.MailboxReturned(self._leases[client], empty[0]))

    def lend(self, client: str, request: int, body: bytes) -> tuple[list[list[int]], list[int]]:
        """Return places for a request and its result; none if the client has no room."""
        used = {(number, offset) for _, number, offset in self.lent.values()}
        for mailbox, size_bytes in self.granted.get(self._leases.get(client, ""), {}).items():
            for offset in range(0, size_bytes, 2 * _BLOCK_BYTES):
                if (mailbox, offset) not in used:
                    self.lent[client, request] = (body, mailbox, offset)
                    reply = [mailbox, offset + _BLOCK_BYTES, _BLOCK_BYTES]
                    return [[mailbox, offset, _BLOCK_BYTES]], reply
        return [], []

    def told(self, client: str, message: messages.Message) -> None:
        if isinstance(message, messages.Released | messages.Reply):
            self.lent.pop((client, message.request), None)

    def granted_to(self, caller: str, message: messages.MailboxGranted) -> None:
        if caller in self.granted:
            self.granted[caller][message.mailbox] = message.size_bytes

    def touched(self, order: messages.Run, mapped: set[int]) -> None:
        """A worker reads or writes the places of a run."""
        for body, places, *_ in order.parts:
            for mailbox, offset, _ in places:
                assert mailbox in mapped, "it uses a mailbox that it does not have"
                assert mailbox in self._world.regions, "it uses a mailbox that was freed"
                assert (body, mailbox, offset) in self.lent.values(), "it touches what is the client's again"
