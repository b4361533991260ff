"""One attempt, from what came to what is answered."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from ..protocol.channel import Delivery
from ..protocol.messages import Record, Run
from ..protocol.tensors import Buffer
from .ahead import LEAST_BYTES
from .calls import Caller
from .cuda_errors import ContextLost
from .held import HeldModel
from .interrupts import Interrupted, Interrupts, cancelled
from .mailboxes import Mailboxes
from .parts import Part, encoded_result, parts_of
from .rows import Arguments
from .slot import Stay
from .streams import Streams
from .transfers import Transfers

#: A call with more than that besides its arrays is not looked at before its turn has come.
MOST_BODY_BYTES: Final = 64 << 10
#: What `Ran` tells of the parts, and the buffers that go along.
Answers: TypeAlias = "tuple[list[list[Any] | Record], Sequence[Buffer]]"


class Runs:
    """Runs attempts.

    Args:
        mailboxes: where large arrays lie.
        interrupts: whether to go on.
        streams: where the items of streams go.
        transfers: to and from the GPU of this process, if it has one.
    """

    def __init__(
        self, mailboxes: Mailboxes, interrupts: Interrupts, streams: Streams, transfers: Transfers | None
    ) -> None:
        self._mailboxes = mailboxes
        self._interrupts = interrupts
        self._streams = streams
        self._transfers = transfers

    def run(
        self, order: Run, delivery: Delivery, held: HeldModel, function: Callable[..., Any], stay: Stay
    ) -> Answers:
        """Run an attempt; of what is returned nothing lies in the slot.

        Args:
            order: the attempt.
            delivery: the order as it came.
            held: the model.
            function: what of it is called.
            stay: in the slot.

        Raises:
            ContextLost: this process cannot use its GPU any more, and nothing of the attempt is answered.
        """
        caller = Caller(held, order.method, function, stay, self._interrupts, self._transfers)
        wires = order.parts
        ahead = self._transfers.ahead if self._transfers is not None else None
        if ahead is not None:
            ahead.begin(order.attempt)
        try:
            self._interrupts.start(order.attempt)
            if len(wires) == 1 and not wires[0][3]:
                return self._one(order, delivery, caller)
            parts = parts_of(wires, delivery.buffers, self._mailboxes)
            if len(parts) == 1 and held.batching.max_batch == 1:
                _run_each(parts[0], caller)
            else:
                _run_batch(parts, caller)
        except ContextLost:
            raise
        except Interrupted:
            caller.finish()
            return [cancelled()] * len(wires), []
        finally:
            self._interrupts.end()
            if ahead is not None:
                ahead.end()
        return [one.answer.wire for one in parts], [buffer for one in parts for buffer in one.answer.buffers]

    def look_ahead(self, delivery: Delivery | None) -> None:
        """While the GPU computes: bring what the next attempt is given, if that is one call with large tensors.

        Calls that are made as one are joined first, which makes one piece of theirs anyhow.
        """
        ahead = self._transfers.ahead if self._transfers is not None else None
        if ahead is None or delivery is None or not isinstance(delivery.message, Run):
            return
        order = delivery.message
        if len(order.parts) > 1 or not _is_large(order.parts[0], delivery) or ahead.has(order.attempt):
            return
        with contextlib.suppress(Exception):  # what is wrong with it will be told when its turn has come
            ahead.bring(order.attempt, Part(order.parts[0], delivery.buffers, self._mailboxes).calls())

    def _one(self, order: Run, delivery: Delivery, caller: Caller) -> Answers:
        part = Part(order.parts[0], delivery.buffers, self._mailboxes)
        function, stay = caller.function, caller.stay
        try:
            [(args, kwargs)] = part.calls()
            with caller.mode():
                result = function(*args, **kwargs)
                if order.credit:
                    self._streams.send_items(order, result, caller)
                    result = None
                caller.finish()
                encoded = encoded_result(result)
            stay.sign(order.method, args, kwargs)
            answer = part.sent(encoded, [], is_copied=not stay.is_outside)
        except Interrupted:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the model raises is told to the caller
            return [caller.failure(error).record], []
        return [answer.wire], answer.buffers


def _is_large(wire: Sequence[Any], delivery: Delivery) -> bool:
    """Whether a part is one call with a large array, and little besides that would take long to look at."""
    body, places, _, count, _ = wire
    arrays = bool(places) or any(memoryview(one).nbytes >= LEAST_BYTES for one in delivery.buffers)
    return not count and arrays and len(body) <= MOST_BODY_BYTES


def _run_each(part: Part, caller: Caller) -> None:
    """Make many calls, one after the other."""
    try:
        values = part.values()
    except Exception as error:  # noqa: BLE001 - whatever is wrong with them is told to the caller
        part.fail(caller.failure(error))
        return
    with caller.mode():
        part.end(caller.each(values), caller)


def _run_batch(parts: Sequence[Part], caller: Caller) -> None:
    """Make the calls of several requests together, as far as their model allows."""
    calls: list[Arguments] = []
    takers: list[tuple[Part, int]] = []
    for part in parts:
        try:
            own = part.calls()
        except Exception as error:  # noqa: BLE001 - what is wrong with one is none of the others' business
            part.fail(caller.failure(error))
            continue
        calls += own
        takers += [(part, index) for index in range(len(own))]

    def take(index: int, result: Any) -> None:
        part, at = takers[index]
        part.take(at, result, caller)

    with caller.mode():
        caller.held.batching.run(calls, caller, take)
