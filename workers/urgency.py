"""Calls of a higher priority go first on a GPU that several workers compute on at the same time.

None of this has run on a card yet.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ..protocol.cuda import CudaError
from ..protocol.cuda_streams import PriorityStream, computes_beside_others

if TYPE_CHECKING:
    from ..protocol.gpu import Gpu


class Urgency:
    """The priority of what this process tells its GPU.

    Where workers take turns on the GPU it makes no difference, and calls are made on the default stream.

    Args:
        gpu: the one that models are on, if they are.
    """

    def __init__(self, gpu: Gpu | None) -> None:
        self._stream: PriorityStream | None = None
        if gpu is None:
            return
        try:
            if computes_beside_others(gpu.ordinal):
                self._stream = _made_current(gpu)
        except CudaError as error:
            _complain(error)

    def follow(self, priority: int) -> None:
        """Have the calls from here on go before those of others on the GPU, with them, or behind them.

        Args:
            priority: as a request has it.
        """
        if self._stream is None:
            return
        try:
            self._stream.follow(priority)
        except CudaError as error:
            self._stream = None  # calls go on being made on it, as it is
            _complain(error)


def _made_current(gpu: Gpu) -> PriorityStream:
    """Return a stream on which this thread makes all calls from here on."""
    stream = PriorityStream(gpu.ordinal)
    if gpu.device.type == "cuda":
        import torch

        torch.cuda.set_stream(torch.cuda.ExternalStream(stream.handle, gpu.device))
    return stream


def _complain(error: CudaError) -> None:
    text = f"on the GPU no call goes before others, whatever its priority: {error}"
    print(text, file=sys.stderr)  # noqa: T201 - what is printed goes to the log
