"""The large arrays of requests and results, in mailboxes as far as there is room.

A client copies an array once into a mailbox; a worker reads it there. What a model returns a worker copies once
into a block that was set aside for it, as large as earlier results of that model and method were, and there it
stays: the arrays of a result lie in the mailbox, and each gives its part back when nobody refers to it any more.
Whatever finds no room follows its message instead, which is slower and just as correct.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ..protocol.arrays import copy_bytes
from ..protocol.tensors import Buffer, aligned, read_parts
from .control import ControlSocket
from .mailbox import Block, Mailboxes

#: So many results of a method are remembered at least in how much is set aside for the next.
_WINDOW: Final = 64

MethodKey = tuple[str, str]


class Sent(NamedTuple):
    """How a request travels: as in `Submit`, and the buffers that follow it."""

    places: list[Any]
    reply: list[int]
    following: Sequence[Buffer]


class _Learned:
    """How much the results of a method take: the most of the last 64 of them, or of up to twice as many."""

    __slots__ = ("_before_bytes", "_count", "_now_bytes")

    def __init__(self) -> None:
        self._before_bytes = self._now_bytes = self._count = 0

    @property
    def size_bytes(self) -> int:
        return max(self._before_bytes, self._now_bytes)

    def add(self, size_bytes: int) -> None:
        self._now_bytes = max(self._now_bytes, size_bytes)
        self._count += 1
        if self._count == _WINDOW:
            self._before_bytes, self._now_bytes, self._count = self._now_bytes, 0, 0


class Parcels:
    """What is under way of one connection.

    Args:
        control: where to ask for memory; nobody else asks anything there meanwhile.

    Attributes:
        mailboxes: the memory.
    """

    def __init__(self, control: ControlSocket) -> None:
        self.mailboxes = Mailboxes(control)
        #: The supervisor's blocks, by request: its arrays', and the one for its result's.
        self._under_way: dict[int, tuple[Block | None, Block | None]] = {}
        self._learned: dict[MethodKey, _Learned] = {}

    def __repr__(self) -> str:
        return f"<Parcels of {len(self._under_way)} requests>"

    def __len__(self) -> int:
        return len(self._under_way)

    def __contains__(self, request: int) -> bool:
        return request in self._under_way

    def expects(self, key: MethodKey | None) -> bool:
        """Whether results of this model and method have had large arrays lately."""
        learned = self._learned.get(key) if key is not None else None
        return learned is not None and learned.size_bytes > 0

    def send(self, request: int, key: MethodKey | None, buffers: Sequence[Buffer]) -> Sent:
        """Put the large arrays of a request where they can be read, and set memory aside for those of its result.

        Without a key nothing is set aside.

        Raises:
            SupervisorLost: it ended meanwhile.
        """
        sizes_bytes = [memoryview(buffer).nbytes for buffer in buffers]
        block = self.mailboxes.take(sum(map(aligned, sizes_bytes))) if buffers else None
        learned = self._learned.get(key) if key is not None else None
        result = self.mailboxes.take(learned.size_bytes) if learned is not None and learned.size_bytes else None
        if block is not None or result is not None:
            self._under_way[request] = (block, result)
        reply = [] if result is None else result.place()
        if block is None:
            return Sent([], reply, buffers)
        places: list[list[int]] = []
        offset_bytes = 0
        try:
            for buffer, size_bytes in zip(buffers, sizes_bytes, strict=True):
                part = block.part(offset_bytes, size_bytes)
                copy_bytes(part.view(), buffer)
                places.append(part.place())
                offset_bytes += aligned(size_bytes)
        except BaseException:  # it is interrupted, and will not be sent
            self.ended(request)
            raise
        return Sent(places, reply, ())

    def received(
        self, request: int, key: MethodKey | None, places: Sequence[Any], following: Sequence[Buffer]
    ) -> Sequence[Buffer]:
        """Return the buffers of a result: those that followed it, and those that lie where they were put.

        With a key its size is remembered.

        Raises:
            InvalidRequest: the places are none that could be.
        """
        block, result = self._under_way.pop(request, (None, None))
        if block is not None:
            self.mailboxes.give([block])
        buffers = following
        if result is not None:
            buffers = self._taken_out(result, places, following)
        if key is not None and (buffers or key in self._learned):
            size_bytes = sum(aligned(memoryview(buffer).nbytes) for buffer in buffers)
            self._learned.setdefault(key, _Learned()).add(size_bytes)
        return buffers

    def ended(self, request: int) -> None:
        """A request is in no worker's hands any more, and nobody wants its result."""
        self.mailboxes.give(block for block in self._under_way.pop(request, ()) if block is not None)

    def _taken_out(self, result: Block, places: Sequence[Any], following: Sequence[Buffer]) -> Sequence[Buffer]:
        """Return the buffers of a result; what of its block they do not take is free."""
        if not places:
            self.mailboxes.give([result])
            return following
        buffers: list[Buffer] = []
        rest = iter(following)
        end = 0
        for part in read_parts(places, result.size_bytes, len(following)):
            if part is None:
                buffers.append(next(rest))
                continue
            offset_bytes, size_bytes = part
            self._give_between(result, end, offset_bytes)
            end = offset_bytes + aligned(size_bytes)
            buffers.append(self.mailboxes.lend(result.part(offset_bytes, size_bytes)))
        self._give_between(result, end, result.size_bytes)
        return buffers

    def _give_between(self, block: Block, start: int, end: int) -> None:
        if start < end:
            self.mailboxes.give([block.part(start, end - start)])
