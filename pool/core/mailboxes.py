"""Mailboxes: memory in which large arrays of local clients travel. Who has which, in what budget, used by whom.

::

    asked for ──► being made ──► granted ──► given back, or its client gone ──► freed, once nothing uses it
                       └──► refused

A client alone decides what lies where in its mailboxes, so two blocks of its own that overlap harm nobody else.
But a block that came with a request is no longer the client's: a worker reads it or, late, writes into it. So a
request **holds** its mailboxes from being accepted until it is answered and no attempt of it is in any worker;
what it holds is not freed, and the client is told when it may use the memory again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from ...protocol.errors import InvalidRequest, OutOfBudget
from ...protocol.manifest import PAGE_BYTES
from ...protocol.messages import MailboxGranted, MapMailbox, Record, Refused, Submit, UnmapMailbox
from ...protocol.tensors import Place, read_place, read_places
from .events import CallerKey, ClientKey
from .instructions import FreeRegions, Instruction, MakeRegion, Report, ToCaller, ToChild
from .ledger import Ledger
from .regions import Regions

#: What one client may have of them. Each is a descriptor here and a mapping in each worker; sizes that grow
#: geometrically need few.
MAX_MAILBOXES: Final = 64


class Budget(NamedTuple):
    """How much memory one client, and all clients together, may have in mailboxes."""

    client_bytes: int
    total_bytes: int


NO_BUDGET: Final = Budget(0, 0)


class Mailbox:
    """One mailbox.

    Attributes:
        number: that of its region.
        caller: whose it is.
        is_granted: whether it is made, and its client knows of it.
        is_returned: whether its client has no more use for it.
        holders: how many requests hold it.
        mapped_by: the workers that have it mapped.
    """

    __slots__ = ("caller", "holders", "is_granted", "is_returned", "mapped_by", "number", "size_bytes")

    def __init__(self, number: int, size_bytes: int, caller: CallerKey) -> None:
        self.number = number
        self.size_bytes = size_bytes
        self.caller = caller
        self.is_granted = False
        self.is_returned = False
        self.holders = 0
        self.mapped_by: set[int] = set()

    def __repr__(self) -> str:
        return f"<Mailbox {self.number} of {self.caller}: {self.size_bytes:,} bytes, {self.holders} holders>"


class Mailboxes:
    """All mailboxes.

    Args:
        budget: how much there may be.
        regions: who numbers regions.
        ledger: what memory there is.
        out: where instructions go.

    Attributes:
        granted_bytes: the sizes of all that exist; only pages that were written are memory.
        refused: how many were refused.
        inline: how many requests of local clients came with large arrays that lay in none.
    """

    def __init__(self, budget: Budget, regions: Regions, ledger: Ledger, out: list[Instruction]) -> None:
        self.budget = budget
        self.granted_bytes = 0
        self.refused = 0
        self.inline = 0
        self._regions = regions
        self._ledger = ledger
        self._out = out
        self._by_number: dict[int, Mailbox] = {}
        self._by_caller: dict[CallerKey, dict[int, Mailbox]] = {}
        self._callers: dict[ClientKey, CallerKey] = {}

    @property
    def clients(self) -> int:
        """How many clients have some."""
        return len(self._by_caller)

    # --- clients --------------------------------------------------------------------------------------------

    def join(self, client: ClientKey, caller: CallerKey) -> None:
        """A client was admitted by way of the unix socket, where it may ask for mailboxes."""
        self._callers[client] = caller

    def leave(self, client: ClientKey) -> None:
        """A client is gone; its mailboxes stay until its connection to the unix socket ends."""
        self._callers.pop(client, None)

    def want(self, caller: CallerKey, size_bytes: int) -> None:
        """Somebody at the unix socket asks for a mailbox; its size becomes whole pages."""
        if size_bytes <= 0:
            error = InvalidRequest(f"a mailbox of {size_bytes:,} bytes was asked for; it must have at least one")
            self._out.append(ToCaller(caller, Refused(error.to_record())))
            return
        size_bytes = -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
        reason = self._reason_against(caller, size_bytes)
        if reason:
            self._refuse(caller, OutOfBudget(reason).to_record())
            return
        mailbox = Mailbox(self._regions.new_number(), size_bytes, caller)
        self._by_number[mailbox.number] = mailbox
        self._by_caller.setdefault(caller, {})[mailbox.number] = mailbox
        self.granted_bytes += size_bytes
        self._out.append(MakeRegion(mailbox.number, size_bytes, "mailbox"))

    def region_made(self, region: int) -> None:
        """A mailbox is there: its client may use it."""
        mailbox = self._by_number.get(region)
        if mailbox is not None and not mailbox.is_returned:
            mailbox.is_granted = True
            granted = MailboxGranted(region, mailbox.size_bytes)
            self._out.append(ToCaller(mailbox.caller, granted, (region,)))

    def region_failed(self, region: int, error: Record) -> None:
        """A mailbox could not be made: its client does without."""
        mailbox = self._by_number.get(region)
        if mailbox is not None:
            self._free(mailbox)
            self._refuse(mailbox.caller, error)

    def give_back(self, caller: CallerKey, number: int) -> None:
        """A client has no more use for a mailbox; whatever still uses it comes to its end first.

        Raises:
            InvalidRequest: it has no such mailbox.
        """
        mailbox = self._by_caller.get(caller, {}).get(number)
        if mailbox is None or mailbox.is_returned:
            raise InvalidRequest(f"mailbox {number} is not yours to give back")
        self._return(mailbox)

    def caller_left(self, caller: CallerKey) -> None:
        """A client is gone, and with it whatever it had."""
        for mailbox in list(self._by_caller.get(caller, {}).values()):
            if not mailbox.is_returned:
                self._return(mailbox)

    # --- requests -------------------------------------------------------------------------------------------

    def needed_by(self, client: ClientKey, submit: Submit, following: int) -> tuple[Mailbox, ...]:
        """Return the mailboxes in which a request has places.

        Args:
            client: who asks.
            submit: what for.
            following: how many buffers came along.

        Raises:
            InvalidRequest: a place is none, or does not lie inside a mailbox of this client.
        """
        places: list[Place | None] = list(read_places(submit.places, following)) if submit.places else []
        if submit.reply:
            places.append(read_place(submit.reply))
        own = self._by_caller.get(self._callers.get(client), {})
        needed: dict[int, Mailbox] = {}
        for place in places:
            if place is None:
                continue
            mailbox = own.get(place.mailbox)
            if mailbox is None or mailbox.is_returned or not mailbox.is_granted:
                raise InvalidRequest(f"place {list(place)}: mailbox {place.mailbox} is not yours")
            if place.offset_bytes + place.size_bytes > mailbox.size_bytes:
                raise InvalidRequest(
                    f"place {list(place)} does not lie inside mailbox {place.mailbox}, "
                    f"which has {mailbox.size_bytes:,} bytes"
                )
            needed[mailbox.number] = mailbox
        return tuple(needed.values())

    def note_inline(self, client: ClientKey) -> None:
        """A request came with buffers that follow it."""
        self.inline += client in self._callers

    def hold(self, mailboxes: Sequence[Mailbox]) -> None:
        """A request that has places in these was accepted."""
        for mailbox in mailboxes:
            mailbox.holders += 1

    def let_go(self, mailboxes: Sequence[Mailbox]) -> None:
        """That request is answered, and no worker will touch its places any more."""
        for mailbox in mailboxes:
            mailbox.holders -= 1
            if mailbox.is_returned and not mailbox.holders:
                self._free(mailbox)

    # --- workers --------------------------------------------------------------------------------------------

    def give(self, child: int, mailboxes: Sequence[Mailbox]) -> None:
        """See to it that a worker, which is to run such a request, has them mapped."""
        for mailbox in mailboxes:
            if child not in mailbox.mapped_by:
                mailbox.mapped_by.add(child)
                order = MapMailbox(mailbox.number, mailbox.size_bytes)
                self._out.append(ToChild(child, order, [], (mailbox.number,)))

    def worker_died(self, child: int) -> None:
        """A worker is gone, and its mappings with it."""
        for mailbox in self._by_number.values():
            mailbox.mapped_by.discard(child)

    # --- the end of one -------------------------------------------------------------------------------------

    def _return(self, mailbox: Mailbox) -> None:
        mailbox.is_returned = True
        if not mailbox.holders:
            self._free(mailbox)

    def _free(self, mailbox: Mailbox) -> None:
        del self._by_number[mailbox.number]
        own = self._by_caller[mailbox.caller]
        del own[mailbox.number]
        if not own:
            del self._by_caller[mailbox.caller]
        self.granted_bytes -= mailbox.size_bytes
        for child in sorted(mailbox.mapped_by):
            self._out.append(ToChild(child, UnmapMailbox(mailbox.number), [], ()))
        self._out.append(FreeRegions((mailbox.number,)))

    def _reason_against(self, caller: CallerKey, size_bytes: int) -> str:
        """Return why a client gets no mailbox of this size; empty if it does."""
        client_bytes, total_bytes = self.budget
        if not client_bytes:
            return "this pool has no mailboxes (mailbox = 0)"
        own = self._by_caller.get(caller, {})
        has_bytes = sum(mailbox.size_bytes for mailbox in own.values())
        asked = f"a mailbox of {size_bytes:,} bytes"
        if has_bytes + size_bytes > client_bytes:
            return f"{asked}: this client has {has_bytes:,}, and may have {client_bytes:,}"
        if self.granted_bytes + size_bytes > total_bytes:
            return f"{asked}: all clients have {self.granted_bytes:,}, and may have {total_bytes:,}"
        if not self._regions.is_gpu and size_bytes > self._ledger.free_bytes:  # which is not of a GPU's memory
            free_bytes = max(0, self._ledger.free_bytes)
            return f"{asked}: {free_bytes:,} bytes are free of the {self._ledger.limit_bytes:,} of this pool"
        if len(own) >= MAX_MAILBOXES:
            return f"{asked}: this client has {len(own)} mailboxes, and may have {MAX_MAILBOXES}"
        return ""

    def _refuse(self, caller: CallerKey, error: Record) -> None:
        """Tell a client that it gets none, the log the first time."""
        if not self.refused and self.budget.client_bytes:
            self._out.append(
                Report(f"large arrays travel with their messages, which is slower: {error['message']}")
            )
        self.refused += 1
        self._out.append(ToCaller(caller, Refused(error)))
