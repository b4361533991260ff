"""The worker: receive, run, reply. One request at a time, one thread.

What it is about to run it notes in a page that the supervisor can read after its death: only an attempt that
had begun is blamed for it.
"""

from __future__ import annotations

import gc
import mmap
import os
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import Any, NoReturn, cast

from ..protocol.channel import Channel, Delivery
from ..protocol.errors import InvalidRequest, ModelError, PoolError
from ..protocol.gpu import NO_GPU, Gpu, begin
from ..protocol.marks import Marks
from ..protocol.messages import (
    Forget,
    Forgot,
    Leave,
    MapMailbox,
    MapSlot,
    Ran,
    Run,
    Thaw,
    ThawFailed,
    UnmapMailbox,
    UnmapSlot,
)
from .cuda_errors import EXIT_CODE, last_words, lost_by
from .failure import record_of
from .held import HeldModel
from .inbox import Inbox
from .interrupts import Interrupts, cancelled
from .mailboxes import Mailboxes
from .runs import Answers, Runs
from .slot import Workspace
from .streams import Streams
from .transfers import transfers_of
from .urgency import Urgency


class Worker:
    """The worker's state.

    Args:
        channel: to the supervisor.
        marks: which attempt runs, and which are given up.
        cores: by seat, the cores that a run may use there; empty: any.
        held: the models that it has from the start, by weight set.
        gpu: the one that models are on, if they are.
    """

    def __init__(
        self,
        channel: Channel,
        marks: Marks,
        cores: Sequence[Sequence[int]],
        held: dict[int, HeldModel],
        gpu: Gpu | None,
    ) -> None:
        self._channel = channel
        self._marks = marks
        self._held = held
        self._gpu = gpu
        self._urgency = Urgency(gpu)  # first of all, because memory belongs to the stream that it is used on
        self._inbox = Inbox(channel)
        transfers = transfers_of(gpu)
        self._mailboxes = Mailboxes(copies=transfers is None)
        self._workspace = Workspace(cores, channel.send, gpu)
        self._interrupts = Interrupts(marks, self._inbox)
        streams = Streams(channel, self._inbox, self._interrupts)
        self._runs = Runs(self._mailboxes, self._interrupts, streams, transfers)
        self._ahead = transfers.ahead if transfers is not None else None
        if transfers is not None and self._ahead is not None:
            transfers.while_waiting = self._look_ahead
        self._handlers: dict[type, Callable[[Any, Delivery], None]] = {
            Run: self._run,
            Thaw: self._thaw,
            Forget: self._forget,
            MapSlot: lambda order, delivery: self._workspace.map(order, delivery.fds),
            UnmapSlot: lambda order, _: self._workspace.unmap(order),
            MapMailbox: lambda order, delivery: self._mailboxes.map(order, delivery.fds),
            UnmapMailbox: lambda order, _: self._unmap_mailbox(order),
        }

    def serve(self) -> None:
        """Handle messages until told to leave, or until the supervisor is gone."""
        while True:
            delivery = self._inbox.next()
            if delivery is None or isinstance(delivery.message, Leave):
                return
            self._handlers[type(delivery.message)](delivery.message, delivery)

    def _look_ahead(self) -> None:
        self._runs.look_ahead(self._inbox.ahead())

    def _unmap_mailbox(self, order: UnmapMailbox) -> None:
        if self._ahead is not None:
            self._ahead.forget()
        self._mailboxes.unmap(order)

    def _run(self, order: Run, delivery: Delivery) -> None:
        self._marks.begun = order.attempt
        started_at = time.perf_counter()
        try:
            answers, buffers = self._answers(order, delivery)
        except BaseException as error:
            if lost := lost_by(error):
                self._end(order, lost, time.perf_counter() - started_at)
            raise
        seconds = time.perf_counter() - started_at
        try:
            self._channel.send(Ran(order.attempt, seconds, answers), buffers)
        except InvalidRequest as error:  # each of them could travel, but not all together
            refusal = InvalidRequest(f"the results of a batch: {error}; let max_batch be lower").to_record()
            self._channel.send(Ran(order.attempt, seconds, [refusal] * len(answers)))
        self._marks.begun = 0

    def _end(self, order: Run, lost: BaseException, seconds: float) -> NoReturn:
        """End, because this process cannot use its GPU any more.

        Of several requests nobody can tell whose fault it was: unanswered, each of them will be run alone.
        """
        record = last_words(lost, self._held[order.weight_set].name)
        print(record["message"], file=sys.stderr)  # noqa: T201 - what is printed goes to the log
        if len(order.parts) == 1:
            self._channel.send(Ran(order.attempt, seconds, [record]))
            self._marks.begun = 0
        raise SystemExit(EXIT_CODE)

    def _answers(self, order: Run, delivery: Delivery) -> Answers:
        if self._interrupts.is_given_up(order.attempt):
            return [cancelled()] * len(order.parts), []
        held = self._held[order.weight_set]
        self._workspace.sit(order.seat)
        self._urgency.follow(order.priority)
        try:
            function = held.method(order.method)
        except BaseException as error:
            if lost_by(error):
                raise
            return [record_of(error, ModelError, held.name)] * len(order.parts), []
        return self._workspace.run(
            order, lambda stay: self._runs.run(order, delivery, held, function, stay), is_strict=held.is_strict
        )

    def _thaw(self, order: Thaw, delivery: Delivery) -> None:
        held = self._held[order.weight_set] = HeldModel(order, delivery.fds, self._channel.send, self._gpu)
        if not order.eager:
            return
        try:
            held.model()
        except PoolError as error:
            self._channel.send(ThawFailed(order.weight_set, error.to_record()))

    def _forget(self, order: Forget, _delivery: Delivery) -> None:
        held = self._held.pop(order.weight_set, None)
        mappings = [weakref.ref(one) for one in held.mappings] if held else []
        del held
        gc.collect()
        self._workspace.forget(order.weight_set)
        is_unmapped = all(one() is None for one in mappings)
        self._channel.send(Forgot(order.weight_set, is_unmapped))


def main(channel: Channel, marks_fd: int, settings: dict[str, Any], held: dict[int, HeldModel]) -> None:
    """Be a worker until told to leave; ``held`` are the models that are there already, by weight set."""
    import torch

    index, page = settings["index"], mmap.mmap(marks_fd, 0)
    os.close(marks_fd)
    for stream in (cast(TextIOWrapper, sys.stdout), cast(TextIOWrapper, sys.stderr)):
        stream.reconfigure(line_buffering=True)
    torch.set_num_threads(settings["threads"])
    _seed_generators()
    Worker(channel, Marks(page, index), settings["cores"], held, begin(settings.get("gpu", NO_GPU))).serve()


def _seed_generators() -> None:
    """Make this process draw random numbers of its own: forked from one, all workers would draw the same."""
    import numpy
    import torch

    if "numpy.random" in sys.modules:  # numpy imports it when it is asked for, and then it seeds itself
        numpy.random.seed()
    if torch.accelerator.is_available():
        torch.seed()
    else:  # the above seeds accelerators later, and keeps source lines of who asked for it: 1.5 MB in each process
        torch.default_generator.seed()
