"""What the next call is given, brought to the GPU while that computes the present one.

::

    processor        tells call 1 ── brings inputs of call 2 ── waits ──► tells call 2 ── brings inputs of call 3
    GPU, computing           ──────────── call 1 ────────────►          ──────────── call 2 ────────────►
    GPU, copying                         inputs of call 2 ──►                        inputs of call 3 ──►

They go into pinned memory, and on a stream of their own into a *landing* on the GPU, which is this worker's:
memory of the slot is the present call's. When its turn has come the next call has them copied into the slot, at
the speed of the GPU's own memory.

There are two halves of both: out of one a call may still read, while the other is written to. What was brought and
is not wanted any more is written over in the order in which it was brought, so nobody waits for it.

None of this has run on a card yet.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch

from ..protocol.arrays import bytes_of
from .nested import changed
from .pinned import PIECE_BYTES

#: What is smaller is copied as fast as it is looked up.
LEAST_BYTES: Final = 64 << 10
#: Of each half: what is given to a call besides goes through the ring when its turn has come.
HALF_BYTES: Final = PIECE_BYTES
_ALIGNMENT_BYTES: Final = 64

#: Where the bytes of a tensor are, and how many: what has these is that tensor as long as somebody holds it.
_Key: TypeAlias = tuple[int, int]


class Copies(Protocol):
    """What the GPU copies beside what it computes, one after the other."""

    def begin(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        """Begin to copy from pinned memory to the GPU, once all is copied that was begun before."""
        ...

    def join(self) -> None:
        """Let what the GPU is told to compute from here on wait until all is there that was begun."""
        ...


class CopyStream:
    """A stream for that on a real GPU; see `Copies`.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def begin(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        """Copy on it."""
        with torch.cuda.stream(self._stream):
            destination.copy_(source, non_blocking=True)

    def join(self) -> None:
        """Have the stream that is current wait for it."""
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)


class _Half(NamedTuple):
    """Where what is brought for one attempt lies.

    Attributes:
        pinned: in the processor's memory.
        landing: and on the GPU; as large.
    """

    pinned: torch.Tensor
    landing: torch.Tensor


class _Brought:
    """What was brought for an attempt.

    Args:
        attempt: which.
        value: what it is given; held, so that nothing else comes to lie where its tensors are.
        half: where to.
        copies: how it comes to the GPU.
    """

    def __init__(self, attempt: int, value: Any, half: _Half, copies: Copies) -> None:
        self.attempt = attempt
        self.pieces: dict[_Key, torch.Tensor] = {}  # of the landing
        self._half = half
        self._copies = copies
        self._end = 0
        self._value = value
        changed(value, self._bring)

    def _bring(self, array: Any) -> Any:
        if isinstance(array, torch.Tensor) and _is_plain(array):
            start, end = self._end, self._end + array.nbytes
            if array.nbytes >= LEAST_BYTES and end <= self._half.pinned.numel():
                pinned, landed = self._half.pinned[start:end], self._half.landing[start:end]
                np.copyto(pinned.numpy(), bytes_of(array).numpy())
                self._copies.begin(landed, pinned)
                self.pieces[_key(array)] = landed
                self._end = -(-end // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        return array


class Ahead:
    """What is brought ahead of one attempt, and what was brought for the present one. For one thread.

    Args:
        pinned: both halves, a flat tensor of pinned bytes.
        landing: as many bytes of the GPU.
        copies: how they come from one to the other.
    """

    def __init__(self, pinned: torch.Tensor, landing: torch.Tensor, copies: Copies) -> None:
        half_bytes = pinned.numel() // 2
        starts = (0, half_bytes)
        self._halves = [_Half(pinned[at : at + half_bytes], landing[at : at + half_bytes]) for at in starts]
        self._copies = copies
        self._next: _Brought | None = None
        self._present: _Brought | None = None

    def has(self, attempt: int) -> bool:
        """Whether something was brought for an attempt that is to come."""
        return self._next is not None and self._next.attempt == attempt

    def bring(self, attempt: int, value: Any) -> None:
        """Bring what an attempt will be given, as far as there is room, in the place of what was brought before.

        Nothing that it is given may change, or move, until it has ended or `forget` is called.

        Raises:
            RecursionError: it is nested too deeply.
        """
        self._next = None
        self._next = _Brought(attempt, value, self._halves[0], self._copies)

    def begin(self, attempt: int) -> None:
        """An attempt begins, all before it have ended, and the GPU has done all that it was told."""
        self._present = self._next if self.has(attempt) else None
        self._next = None
        if self._present is not None:
            self._halves.reverse()
            self._copies.join()

    def landed(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the bytes of a tensor on the GPU, as they are until the attempt has ended; None: not brought."""
        return self._present.pieces.get(_key(tensor)) if self._present is not None else None

    def end(self) -> None:
        """The attempt has ended."""
        self._present = None

    def forget(self) -> None:
        """Let go of what was brought for what is to come."""
        self._next = None


def ahead_of_calls(device: torch.device) -> Ahead:
    """Return what brings inputs to the GPU of this process.

    Raises:
        RuntimeError: memory cannot be pinned, or there is none on the GPU.
    """
    pinned = torch.empty(2 * HALF_BYTES, dtype=torch.uint8, pin_memory=True, device="cpu")
    landing = torch.empty(2 * HALF_BYTES, dtype=torch.uint8, device=device)
    return Ahead(pinned, landing, CopyStream(device))


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is its bytes, one after the other, in the host's memory."""
    is_dense = tensor.layout == torch.strided and not tensor.is_quantized and tensor.is_contiguous()
    return tensor.device.type == "cpu" and is_dense and not (tensor.is_conj() or tensor.is_neg())


def _key(tensor: torch.Tensor) -> _Key:
    return tensor.data_ptr(), tensor.nbytes
