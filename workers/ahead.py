"""What the next call is given, brought into pinned memory while the GPU computes the present one.

::

    processor   tells call 1 ── brings inputs of call 2 ── waits ──► tells call 2 ── brings inputs of call 3 ── ...
    GPU                      ───────── call 1 ─────────►           inputs, call 2 ──────────────────────────► ...

The processor would only wait in that time. What it has brought the GPU fetches by itself, first thing in the call.
There are two halves: out of one the GPU may still fetch, while the other is written to.

None of this has run on a card yet.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
import torch

from ..protocol.arrays import bytes_of
from .nested import changed
from .pinned import PIECE_BYTES, Copy, copy_on_stream

#: What is smaller is copied as fast as it is looked up.
LEAST_BYTES: Final = 64 << 10
#: Of each half: what is given to a call besides goes through the ring when its turn has come.
HALF_BYTES: Final = PIECE_BYTES
_ALIGNMENT_BYTES: Final = 64

#: Where the bytes of a tensor are, and how many: what has these is that tensor as long as somebody holds it.
_Key: TypeAlias = tuple[int, int]


class _Brought:
    """What was brought for an attempt.

    Args:
        attempt: which.
        value: what it is given; held, so that nothing else comes to lie where its tensors are.
        memory: where to.
    """

    def __init__(self, attempt: int, value: Any, memory: torch.Tensor) -> None:
        self.attempt = attempt
        self.pieces: dict[_Key, torch.Tensor] = {}
        self._memory = memory
        self._end = 0
        self._value = value
        changed(value, self._bring)

    def _bring(self, array: Any) -> Any:
        if isinstance(array, torch.Tensor) and _is_plain(array):
            start, end = self._end, self._end + array.nbytes
            if array.nbytes >= LEAST_BYTES and end <= self._memory.numel():
                piece = self._memory[start:end]
                np.copyto(piece.numpy(), bytes_of(array).numpy())
                self.pieces[_key(array)] = piece
                self._end = -(-end // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        return array


class Ahead:
    """What is brought ahead of one attempt, and what was brought for the present one. For one thread.

    Args:
        memory: both halves, a flat tensor of pinned bytes.
        copy: has the GPU copy.
    """

    def __init__(self, memory: torch.Tensor, copy: Copy) -> None:
        half_bytes = memory.numel() // 2
        self._halves = [memory[:half_bytes], memory[half_bytes : 2 * half_bytes]]
        self._copy = copy
        self._next: _Brought | None = None
        self._present: _Brought | None = None

    def has(self, attempt: int) -> bool:
        """Whether something was brought for an attempt that is to come."""
        return self._next is not None and self._next.attempt == attempt

    def bring(self, attempt: int, value: Any) -> None:
        """Copy what an attempt will be given, as far as there is room, in the place of what was brought before.

        Nothing that it is given may change, or move, until it has ended or `forget` is called.

        Raises:
            RecursionError: it is nested too deeply.
        """
        self._next = None
        self._next = _Brought(attempt, value, self._halves[0])

    def begin(self, attempt: int) -> None:
        """An attempt begins, all before it have ended, and the GPU has done all that it was told."""
        self._present = self._next if self.has(attempt) else None
        self._next = None
        if self._present is not None:
            self._halves.reverse()

    def send(self, tensor: torch.Tensor, there: torch.Tensor) -> bool:
        """Have the GPU copy a tensor from where it was brought to; false: it was not brought."""
        piece = self._present.pieces.pop(_key(tensor), None) if self._present is not None else None
        if piece is None:
            return False
        self._copy(bytes_of(there), piece)
        return True

    def end(self) -> None:
        """The attempt has ended."""
        self._present = None

    def forget(self) -> None:
        """Let go of what was brought for what is to come."""
        self._next = None


def ahead_of_calls() -> Ahead:
    """Return what brings inputs for the GPU of this process; it copies on the stream that is current then.

    Raises:
        RuntimeError: the memory cannot be pinned.
    """
    return Ahead(torch.empty(2 * HALF_BYTES, dtype=torch.uint8, pin_memory=True, device="cpu"), copy_on_stream)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is its bytes, one after the other, in the host's memory."""
    is_dense = tensor.layout == torch.strided and not tensor.is_quantized and tensor.is_contiguous()
    return tensor.device.type == "cpu" and is_dense and not (tensor.is_conj() or tensor.is_neg())


def _key(tensor: torch.Tensor) -> _Key:
    return tensor.data_ptr(), tensor.nbytes
