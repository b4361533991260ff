"""A client's mailboxes: memory that it shares with the workers, asked for as it is needed, given back when idle.

::

    mailbox   ├─ arrays of a request ─┼─ place for its result ─┼─ a result ─┼──── free ────┤
                the supervisor's until it is answered            the user's, until it is garbage

Who collects garbage may be in the midst of anything, with any lock held. So what becomes free is only noted, and
taken back by whoever needs memory next.

A forked child has the mappings too, because results that the user holds lie there. Only its parent goes on using
them: were it to put something new where a result was that the child still holds, that would change under the
child. So a fork retires every mailbox in which anything is; the parent gives it back as soon as it is empty.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, NamedTuple

from ..protocol.errors import PoolError, SupervisorLost
from ..protocol.mapping import Mapping, buffer_in, map_shared
from .blocks import Blocks
from .control import ControlSocket

#: The smallest that is asked for. Each next one is as large as all before it together.
FIRST_BYTES: Final = 8 << 20
#: A mailbox in which nothing was for so long, or at most for twice as long, is given back.
IDLE_S: Final = 2.0
#: How long a client that was refused does without, before it asks again.
REFUSED_S: Final = 5.0


class Mailbox:
    """One mailbox, as its client sees it.

    Attributes:
        was_used: whether something was put into it since somebody last looked.
        is_retired: whether nothing is to be put into it any more.
    """

    def __init__(self, number: int, mapping: Mapping) -> None:
        self.number = number
        self.mapping = mapping
        self.address = ctypes.addressof(mapping)
        self.bytes = buffer_in(mapping, 0, len(mapping))
        self.blocks = Blocks(len(mapping))
        self.was_used = True
        self.is_retired = False

    def __repr__(self) -> str:
        return f"<Mailbox {self.number}: {self.blocks}>"

    def take(self, size_bytes: int) -> Block | None:
        """Return a free block, which is taken now."""
        offset_bytes = None if self.is_retired else self.blocks.take(size_bytes)
        if offset_bytes is None:
            return None
        self.was_used = True
        return Block(self, offset_bytes, size_bytes)


class Block(NamedTuple):
    """A taken part of a mailbox."""

    mailbox: Mailbox
    offset_bytes: int
    size_bytes: int

    def part(self, offset_bytes: int, size_bytes: int) -> Block:
        """Return a part of it."""
        return Block(self.mailbox, self.offset_bytes + offset_bytes, size_bytes)

    def view(self) -> memoryview:
        """Return its bytes, to be written."""
        return self.mailbox.bytes[self.offset_bytes : self.offset_bytes + self.size_bytes]

    def place(self) -> list[int]:
        """Return it as it travels."""
        return [self.mailbox.number, self.offset_bytes, self.size_bytes]


class _Loan(weakref.ref[Any]):
    """A lent block; `weakref.finalize` would do the same, and take longer than all else about a result."""

    __slots__ = ("block",)
    block: Block


class Mailboxes:
    """The mailboxes of one connection.

    Args:
        control: where to ask for them; nobody else asks anything there meanwhile.

    Attributes:
        refusal: why the last one that was asked for was not to be had; empty if none was ever refused.
    """

    def __init__(self, control: ControlSocket) -> None:
        self._control = control
        self._lock = threading.Lock()
        self._held: list[Mailbox] = []
        self._free: deque[Block] = deque()  # noted, and not taken back yet
        self._loans: dict[int, _Loan] = {}  # by their own identity: what is lent has no hash
        self._refused_bytes = 0
        self._ask_again_at = 0.0
        self._closing = threading.Event()
        self._keeper: threading.Thread | None = None
        self.refusal = ""

    def __repr__(self) -> str:
        return f"<Mailboxes {self._held}>"

    def take(self, size_bytes: int) -> Block | None:
        """Return so much memory, in a new mailbox if need be; None if there is none to be had.

        Raises:
            SupervisorLost: it ended meanwhile.
        """
        with self._lock:
            self._take_back()
            for mailbox in self._held:
                block = mailbox.take(size_bytes)
                if block is not None:
                    return block
            grown = self._grow(size_bytes)
            return None if grown is None else grown.take(size_bytes)

    def give(self, blocks: Iterable[Block]) -> None:
        """Note that blocks, or parts of them, are free."""
        self._free.extend(blocks)

    def lend(self, block: Block) -> memoryview:
        """Return the bytes of a block; it is free with the last reference to them."""
        piece: Any = _chars(block.size_bytes).from_address(block.mailbox.address + block.offset_bytes)
        piece.mapping = block.mailbox.mapping  # which lives as long as this does, whatever becomes of the rest
        loan = _Loan(piece, self._ended)
        loan.block = block
        self._loans[id(loan)] = loan
        return memoryview(piece).cast("B")

    def _ended(self, loan: _Loan) -> None:
        del self._loans[id(loan)]
        self._free.append(loan.block)

    def retire(self) -> None:
        """Put nothing more into any mailbox in which something is: a fork is about to happen."""
        for mailbox in list(self._held):
            mailbox.is_retired = mailbox.is_retired or not mailbox.blocks.is_empty

    def close(self) -> None:
        """Ask for no more and give nothing back any more; what was lent stays valid."""
        self._closing.set()
        keeper = self._keeper
        if keeper is not None and keeper is not threading.current_thread():
            keeper.join()

    def _take_back(self) -> None:
        while self._free:
            block = self._free.popleft()
            block.mailbox.blocks.give(block.offset_bytes, block.size_bytes)

    # --- asking for more ------------------------------------------------------------------------------------

    def _grow(self, size_bytes: int) -> Mailbox | None:
        """Ask for another mailbox, larger than needed if that can be had."""
        was_refused = size_bytes >= self._refused_bytes and time.monotonic() < self._ask_again_at
        if was_refused or self._closing.is_set():
            return None
        held_bytes = sum(mailbox.blocks.size_bytes for mailbox in self._held)
        better_bytes = max(FIRST_BYTES, held_bytes, 1 << (size_bytes - 1).bit_length())
        for asked_bytes in dict.fromkeys((better_bytes, size_bytes)):
            try:
                mailbox = self._ask(asked_bytes)
            except SupervisorLost:
                raise
            except (PoolError, OSError) as error:
                self.refusal = str(error)
            else:
                self._held.append(mailbox)
                self._keep()
                return mailbox
        self._refused_bytes = size_bytes
        self._ask_again_at = time.monotonic() + REFUSED_S
        return None

    def _ask(self, size_bytes: int) -> Mailbox:
        granted, fd = self._control.need_mailbox(size_bytes)
        try:
            return Mailbox(granted.mailbox, map_shared(fd, granted.size_bytes, is_inherited=True))
        except OSError:
            self._control.return_mailbox(granted.mailbox)
            raise
        finally:
            os.close(fd)

    # --- giving back ----------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """See to it that a thread looks after what is held."""
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._run_keeper, name="onecopy-mailboxes", daemon=True)
            self._keeper.start()

    def _run_keeper(self) -> None:
        while not self._closing.wait(IDLE_S):
            with self._lock:
                self._take_back()
                self._return_idle()
                if not self._held:
                    self._keeper = None
                    return

    def _return_idle(self) -> None:
        for mailbox in list(self._held):
            if mailbox.blocks.is_empty and (mailbox.is_retired or not mailbox.was_used):
                self._held.remove(mailbox)
                self._control.return_mailbox(mailbox.number)
            mailbox.was_used = False


@lru_cache(maxsize=64)
def _chars(size_bytes: int) -> Any:
    """Return the type of an array of bytes; to make one takes longer than everything else about a result."""
    return ctypes.c_char * size_bytes
