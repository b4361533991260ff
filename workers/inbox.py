"""What the supervisor sends to a worker, in its order, but for what is said about attempts."""

from __future__ import annotations

import select
from collections import deque
from typing import Final

from ..protocol.channel import Channel, Delivery
from ..protocol.messages import ContinueRun, Interrupt
from . import heap

#: A worker that had nothing to do for so long gives the free memory of its heap back.
REST_MS: Final = 1000


class Inbox:
    """Waits for messages, and sorts out those that are about attempts: they are known at once.

    Args:
        channel: to the supervisor; blocking.

    Attributes:
        given_up: the attempts that nobody waits for.
        interrupts: how many messages have said so.
    """

    def __init__(self, channel: Channel) -> None:
        self.given_up: set[int] = set()
        self.interrupts = 0
        self._channel = channel
        self._kept: deque[Delivery] = deque()
        self._credit: dict[int, int] = {}
        # Whoever sleeps in a read of a unix stream is woken, too, whenever the other side has read something.
        self._poller = select.poll()
        self._poller.register(channel.fileno(), select.POLLIN)

    def next(self) -> Delivery | None:
        """Wait for the next of all other messages; None: the supervisor is gone."""
        while not self._kept:
            if not self._receive():
                return None
        return self._kept.popleft()

    def ahead(self) -> Delivery | None:
        """Return the message that will be next, without taking it; None: none has come that is kept."""
        if not self._kept and (self._channel.has_arrived or self._poller.poll(0)):
            self._receive()
        return self._kept[0] if self._kept else None

    def more(self, attempt: int) -> int:
        """Wait until a stream may go on; return how many more items may come, 0 if nobody reads it any more."""
        self._credit = {one: items for one, items in self._credit.items() if one >= attempt}  # others are over
        while attempt not in self._credit and attempt not in self.given_up:
            if not self._receive():
                return 0
        return self._credit.pop(attempt, 0)

    def read_interrupts(self, count: int) -> None:
        """Read on until so many have been read since the beginning."""
        while self.interrupts < count and self._receive():
            pass

    def _receive(self) -> bool:
        """Wait for a message, and keep what it says; false: the supervisor is gone."""
        if not self._channel.has_arrived and not self._poller.poll(REST_MS):
            heap.trim()
        delivery = self._channel.receive()
        if delivery is None:
            return False
        message = delivery.message
        if isinstance(message, Interrupt):
            self.interrupts += 1
            self.given_up.add(message.attempt)
        elif isinstance(message, ContinueRun):
            self._credit[message.attempt] = self._credit.get(message.attempt, 0) + message.items
        else:
            self._kept.append(delivery)
        return True
