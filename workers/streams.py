"""Streams: the items of a result as they come, no faster than they are read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ..protocol.channel import Channel
from ..protocol.errors import ModelError
from ..protocol.messages import Run, Yielded
from ..protocol.values import encode
from .calls import Caller
from .inbox import Inbox
from .interrupts import Interrupted, Interrupts


class Streams:
    """Sends items while their run goes on.

    Args:
        channel: where they go.
        inbox: where it is said that more may come.
        interrupts: whether to go on.
    """

    def __init__(self, channel: Channel, inbox: Inbox, interrupts: Interrupts) -> None:
        self._channel = channel
        self._inbox = inbox
        self._interrupts = interrupts

    def send_items(self, order: Run, result: Any, caller: Caller) -> None:
        """Send what a model yields until it ends, or nobody reads it; it runs on only as items are asked for.

        Raises:
            Interrupted: nobody reads it any more.
            ModelError: the result is none that yields.
        """
        if not hasattr(result, "__next__"):
            method = "" if order.method == "__call__" else f".{order.method}"
            raise ModelError(
                f"{caller.held.name}: stream needs a method that yields; {caller.held.name}{method} returned a "
                f"{type(result).__name__}: call it without stream"
            )
        try:
            self._send(order, result, caller)
        finally:
            self._interrupts.end()  # what the model does to finish must not end early
            with contextlib.suppress(BaseException):
                getattr(result, "close", lambda: None)()

    def _send(self, order: Run, items: Iterator[Any], caller: Caller) -> None:
        credit = order.credit
        for item in items:
            body, buffers = encode(caller.item(item), name="the item")
            if credit == 0:
                credit = self._inbox.more(order.attempt)
                if credit == 0:
                    raise Interrupted
            self._channel.send(Yielded(order.attempt, body), buffers)
            credit -= 1
            self._interrupts.check()
