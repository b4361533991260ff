"""What a model on a GPU is called with goes there, and what it returns comes back.

::

    arguments ── tensors: sent ──► call ──► result ── tensors: fetched ──► finish ──► answer
              └─ NumPy arrays: copied, they stay on the host

Calls that are made as one are joined before they are sent, and cut after they are fetched: on the host, so that
each tensor of them is one transfer. All is told to the GPU in order, on the default stream, the only one that
threads of a model and libraries besides torch share with it. It is waited for only before something is answered.
What the GPU has made of it is known then: whatever failed there fails the wait.

None of this has run on a card yet: tests drive it with memory of the processor in the place of the GPU's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..protocol.arrays import bytes_of
from ..protocol.errors import InvalidRequest
from ..protocol.gpu import Gpu
from .ahead import Ahead, ahead_of_calls
from .cuda_errors import ContextLost
from .nested import changed
from .pinned import PinnedRing, pinned_ring


class Transfers:
    """Moves values between the host and the GPU of this process. For one thread.

    Args:
        gpu: which.
        ring: what they go through; None: nothing could be pinned, or the GPU's memory is the host's.
        ahead: what brings the inputs of the next call.

    Attributes:
        ahead: the same.
        while_waiting: called whenever the GPU is about to be waited for.
    """

    def __init__(self, gpu: Gpu, ring: PinnedRing | None, ahead: Ahead | None = None) -> None:
        self.ahead = ahead
        self.while_waiting: Callable[[], None] = _nothing
        self._gpu = gpu
        self._device = gpu.device
        self._ring = ring

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that takes values of the host and returns such; they can be read after `finish`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            return self.fetched(function(*self.sent(args), **self.sent(kwargs)))

        return call

    def sent(self, value: Any) -> Any:
        """Return a value with its tensors on the GPU; whatever is written into it, what was given stays.

        Raises:
            InvalidRequest: it is nested too deeply.
        """
        try:
            with torch.inference_mode(False):  # as on the CPU, a model may ask for gradients of its inputs
                return changed(value, self._send)
        except RecursionError as error:
            raise InvalidRequest("the arguments are nested too deeply for a model on a GPU") from error

    def fetched(self, value: Any) -> Any:
        """Return a value with its tensors on the host, where their bytes are after `finish`."""
        try:
            return changed(value, self._fetch)
        except RecursionError:  # it cannot travel, and will be told so
            return value

    def finish(self) -> None:
        """Wait until the GPU has done all that it was told, and what was fetched is there.

        Raises:
            ContextLost: something of it failed.
        """
        self.while_waiting()
        try:
            if self._ring is not None:
                self._ring.finish()
            self._gpu.synchronize()
        except RuntimeError as error:
            raise ContextLost from error

    def _send(self, array: Any) -> Any:
        if isinstance(array, np.ndarray):
            return array.copy()
        if array.device.type != "cpu":
            return array.clone()  # a method that joins calls has put it there, and may keep it
        if array.layout != torch.strided or array.is_quantized:
            return array.to(self._device, copy=True)
        there = torch.empty(array.shape, dtype=array.dtype, device=self._device)
        landed = self.ahead.landed(array) if self.ahead is not None else None
        if landed is not None:
            bytes_of(there).copy_(landed)
        elif self._ring is None:
            there.copy_(array)
        else:
            self._ring.send(bytes_of(array).numpy(), bytes_of(there))
        return there

    def _fetch(self, array: Any) -> Any:
        if isinstance(array, np.ndarray) or array.device.type == "cpu":
            return array
        if array.layout != torch.strided or array.is_quantized or array.device != self._device:
            return array  # the codec says what is wrong with it, or fetches it by itself
        if self._ring is None:
            return array.detach().cpu()
        here = torch.empty(array.shape, dtype=array.dtype, device="cpu")
        self._ring.fetch(bytes_of(array), bytes_of(here).numpy())
        return here


def transfers_of(gpu: Gpu | None) -> Transfers | None:
    """Return what moves values to the GPU of this process and back, if there is one."""
    if gpu is None:
        return None
    if gpu.device.type != "cuda":
        return Transfers(gpu, None)
    ring = ahead = None
    try:
        ring = pinned_ring()
        ahead = ahead_of_calls(gpu.device)
    except RuntimeError as error:
        print(  # noqa: T201 - what is printed goes to the log
            f"what goes to the GPU and back is copied more slowly, because there is no memory for that: {error}",
            file=sys.stderr,
        )
    return Transfers(gpu, ring, ahead)


def _nothing() -> None:
    """There is nothing to do meanwhile."""
