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
from collections.abc import Callable
from typing import Any, Final

from ..protocol.channel import Channel, Delivery
from ..protocol.errors import ModelError, PoolError
from ..protocol.messages import (
    Forget,
    Forgot,
    Leave,
    Ran,
    Run,
    RunFailed,
    Thaw,
    ThawFailed,
)
from ..protocol.values import decode, encode
from . import heap
from .failure import record_of
from .held import HeldModel

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
    """

    def __init__(self, channel: Channel, begun: memoryview) -> None:
        self._channel = channel
        self._begun = begun
        self._held: dict[int, HeldModel] = {}
        self._is_resting = True
        self._handlers: dict[type, Callable[[Any, Delivery], None]] = {
            Run: self._run,
            Thaw: self._thaw,
            Forget: self._forget,
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
        try:
            call = held.method(order.method)
            args, kwargs = decode(order.body, delivery.buffers)
            with _mode(grad=held.grad):
                result = call(*args, **kwargs)
                body, buffers = encode(result, name="the result")
        except BaseException as error:  # noqa: BLE001 - whatever the model raises is told to the caller
            record = record_of(error, ModelError, held.name)
            self._channel.send(RunFailed(order.attempt, time.perf_counter() - started_at, record))
        else:
            self._channel.send(Ran(order.attempt, time.perf_counter() - started_at, body), buffers)
        _BEGUN.pack_into(self._begun, 0, 0)

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
        mappings = [weakref.ref(one) for one in held.mappings] if held else []
        del held
        gc.collect()
        is_unmapped = all(one() is None for one in mappings)
        self._channel.send(Forgot(order.weight_set, is_unmapped))


def _mode(*, grad: bool) -> contextlib.AbstractContextManager[Any]:
    import torch

    return torch.enable_grad() if grad else torch.inference_mode()


def main(channel: Channel, begun_fd: int, settings: dict[str, Any]) -> None:
    """Be a worker until told to leave."""
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
    Worker(channel, begun).serve()
