"""The worker: receive, run, reply. One request at a time, one thread.

What it is about to run it notes in a page that the supervisor can read after its death: only an attempt that
had begun is blamed for it.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import socket
import struct
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final

from ..protocol.channel import Channel, Delivery
from ..protocol.errors import ModelError, PoolError
from ..protocol.messages import (
    Forget,
    Forgot,
    Leave,
    MapMailbox,
    MapSlot,
    Ran,
    Record,
    Run,
    RunFailed,
    Thaw,
    ThawFailed,
    UnmapMailbox,
    UnmapSlot,
)
from ..protocol.tensors import Buffer
from ..protocol.values import decode, encode
from . import heap
from .failure import record_of
from .held import HeldModel
from .mailboxes import Mailboxes
from .slot import Stay, Workspace

_BEGUN: Final = struct.Struct("<q")
_TIMEVAL: Final = struct.Struct("@ll")
_FOR_EVER_S: Final = 0
#: A worker that had nothing to do for so long gives the free memory of its heap back.
REST_S: Final = 1


class Worker:
    """The worker's state.

    Args:
        channel: to the supervisor.
        begun: the place for the attempt that runs, in a page shared with the supervisor.
        cores: by seat, the cores that a run may use there; empty: any.
        held: the models that it has from the start, by weight set.
    """

    def __init__(
        self, channel: Channel, begun: memoryview, cores: Sequence[Sequence[int]], held: dict[int, HeldModel]
    ) -> None:
        self._channel = channel
        self._begun = begun
        self._held = held
        self._mailboxes = Mailboxes()
        self._workspace = Workspace(cores, channel.send)
        self._is_resting = True
        self._handlers: dict[type, Callable[[Any, Delivery], None]] = {
            Run: self._run,
            Thaw: self._thaw,
            Forget: self._forget,
            MapSlot: lambda order, delivery: self._workspace.map(order, delivery.fds),
            UnmapSlot: lambda order, _: self._workspace.unmap(order),
            MapMailbox: lambda order, delivery: self._mailboxes.map(order, delivery.fds),
            UnmapMailbox: lambda order, _: self._mailboxes.unmap(order),
        }

    def serve(self) -> None:
        """Handle messages until told to leave, or until the supervisor is gone."""
        while True:
            try:
                delivery = self._channel.receive()
            except BlockingIOError:  # nothing came for a while
                heap.trim()
                self._wait_at_most(_FOR_EVER_S)
                continue
            if delivery is None or isinstance(delivery.message, Leave):
                return
            if self._is_resting:
                self._wait_at_most(REST_S)
            self._handlers[type(delivery.message)](delivery.message, delivery)

    def _wait_at_most(self, seconds: int) -> None:
        """Let the kernel end a wait for messages; it costs no call per message."""
        self._is_resting = seconds == _FOR_EVER_S
        self._channel.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(seconds, 0))

    def _run(self, order: Run, delivery: Delivery) -> None:
        _BEGUN.pack_into(self._begun, 0, order.attempt)
        started_at = time.perf_counter()
        held = self._held[order.weight_set]
        self._workspace.sit(order.seat)
        try:
            call = held.method(order.method)
        except BaseException as error:  # noqa: BLE001 - whatever a model raises when it is thawed is told
            answer = record_of(error, ModelError, held.name)
        else:
            answer = self._workspace.run(
                order, lambda stay: self._answer(held, call, order, delivery, stay), is_strict=held.is_strict
            )
        seconds = time.perf_counter() - started_at
        if isinstance(answer, dict):
            self._channel.send(RunFailed(order.attempt, seconds, answer))
        else:
            body, places, buffers = answer
            self._channel.send(Ran(order.attempt, seconds, body, places), buffers)
        _BEGUN.pack_into(self._begun, 0, 0)

    def _answer(
        self, held: HeldModel, call: Callable[..., Any], order: Run, delivery: Delivery, stay: Stay
    ) -> tuple[bytes, list[Any], Sequence[Buffer]] | Record:
        """Run a request: return its result, of which nothing lies in the slot, or the record of an error."""
        try:
            args, kwargs = decode(order.body, self._mailboxes.take(order.places, delivery.buffers))
            with _mode(grad=held.grad):
                result = call(*args, **kwargs)
                body, buffers = encode(result, name="the result")
            stay.sign(order.method, args, kwargs)
            places, following = self._mailboxes.put(order.reply, buffers)
            if not stay.is_outside:
                following = [bytes(one) for one in following]
            return body, places, following
        except BaseException as error:  # noqa: BLE001 - whatever the model raises is told to the caller
            return record_of(stay.cause_of(error), ModelError, held.name)

    def _thaw(self, order: Thaw, delivery: Delivery) -> None:
        held = self._held[order.weight_set] = HeldModel(order, delivery.fds, self._channel.send)
        if not order.eager:
            return
        try:
            held.model()
        except PoolError as error:
            self._channel.send(ThawFailed(order.weight_set, error.to_record()))

    def _forget(self, order: Forget, _delivery: Delivery) -> None:
        held = self._held.pop(order.weight_set, None)
        self._workspace.forget(order.weight_set)
        mappings = [weakref.ref(one) for one in held.mappings] if held else []
        del held
        gc.collect()
        is_unmapped = all(one() is None for one in mappings)
        self._channel.send(Forgot(order.weight_set, is_unmapped))


def _mode(*, grad: bool) -> contextlib.AbstractContextManager[Any]:
    import torch

    return torch.enable_grad() if grad else torch.inference_mode()


def main(channel: Channel, begun_fd: int, settings: dict[str, Any], held: dict[int, HeldModel]) -> None:
    """Be a worker until told to leave; ``held`` are the models that are there already, by weight set."""
    import numpy
    import torch

    index, page = settings["index"], mmap.mmap(begun_fd, 0)
    os.close(begun_fd)
    begun = memoryview(page)[index * _BEGUN.size : (index + 1) * _BEGUN.size]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    torch.set_num_threads(settings["threads"])
    # Forked from one process, all workers would draw the same random numbers.
    numpy.random.seed()
    torch.seed()
    Worker(channel, begun, settings["cores"], held).serve()
