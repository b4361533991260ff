"""A ring of pinned host memory, through which the processor and a GPU give one another bytes.

::

    to the GPU      bytes  ── processor ──► piece ── GPU ──► tensor
    from the GPU    tensor ── GPU ──► piece ── processor ──► bytes

    ring   │ free │ oldest piece │ ... │ newest piece │ free │
                    └─ ended, and so made free, when its room is needed, or when all are waited for

A GPU copies by itself, beside the processor, only from and to memory that is pinned. The mailboxes of clients are
not: each worker would have to pin all of all of them. What is larger than a piece goes in pieces: while the GPU
copies one, the processor copies the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import torch

#: A piece takes a GPU some 80 us at the 50 GB/s of PCIe 5, beside which the few to start a copy are little.
PIECE_BYTES: Final = 4 << 20
#: Of each worker: pinned memory is never paged out, so it is kept small. Four pieces are enough that neither side
#: waits for the other, but for the slower one.
RING_BYTES: Final = 4 * PIECE_BYTES
#: Pieces begin at multiples of this, as torch's own memory of the processor does.
_ALIGNMENT_BYTES: Final = 64

Bytes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"
#: Begins to copy bytes from the second tensor to the first, on the stream of the calls; returns what waits for it.
Copy: TypeAlias = Callable[[torch.Tensor, torch.Tensor], Callable[[], object]]


class _Piece(NamedTuple):
    """Room that is taken.

    Attributes:
        start: where it begins, counted on and on.
        end: what is done before it is free again.
        source: what the GPU copies from. It is held so long because a model that uses several streams could write
            into its memory, were it free, before it is copied.
    """

    start: int
    end: Callable[[], object]
    source: torch.Tensor


class PinnedRing:
    """The ring of one worker; it never grows. For one thread.

    Args:
        memory: the ring, a flat tensor of bytes.
        copy: has the GPU copy.
        piece_bytes: the largest piece; at most half of the ring, or the two sides would wait for one another.
    """

    def __init__(self, memory: torch.Tensor, copy: Copy, piece_bytes: int = PIECE_BYTES) -> None:
        self._memory = memory
        self._copy = copy
        self._piece_bytes = piece_bytes
        self._next = 0
        self._taken: deque[_Piece] = deque()

    def send(self, source: Bytes, destination: torch.Tensor) -> None:
        """Copy bytes to the GPU; they are read before this returns, and are there when the stream comes to it.

        Raises:
            RuntimeError: something that the GPU was told before has failed.
        """
        for start, end in self._parts(source.nbytes):
            at, piece = self._take(end - start)
            np.copyto(_bytes(piece), source[start:end])
            wait = self._copy(destination[start:end], piece)
            self._taken.append(_Piece(at, wait, piece))

    def fetch(self, source: torch.Tensor, destination: Bytes) -> None:
        """Copy bytes from the GPU, as they are when the stream comes to it; they are there after `finish`.

        Raises:
            RuntimeError: something that the GPU was told before has failed.
        """
        for start, end in self._parts(destination.nbytes):
            at, piece = self._take(end - start)
            wait = self._copy(piece, source[start:end])
            self._taken.append(_Piece(at, partial(_copy_on, wait, piece, destination[start:end]), source))

    def finish(self) -> None:
        """Wait until everything is copied.

        Raises:
            RuntimeError: something that the GPU was told has failed.
        """
        while self._taken:
            self._taken.popleft().end()

    def _parts(self, size_bytes: int) -> Iterator[tuple[int, int]]:
        for start in range(0, size_bytes, self._piece_bytes):
            yield start, min(start + self._piece_bytes, size_bytes)

    def _take(self, size_bytes: int) -> tuple[int, torch.Tensor]:
        """Return room behind what was taken last, and where it begins, once it is free."""
        ring_bytes = self._memory.numel()
        offset = self._next % ring_bytes
        if offset + size_bytes > ring_bytes:  # not in one piece: the rest of this round is left out
            self._next += ring_bytes - offset
            offset = 0
        start = self._next
        self._next += -(-size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        while self._taken and self._taken[0].start < self._next - ring_bytes:
            self._taken.popleft().end()
        return start, self._memory[offset : offset + size_bytes]


def pinned_ring() -> PinnedRing:
    """Return a ring for the GPU of this process; the copies are made on the stream that is current then.

    Raises:
        RuntimeError: the memory cannot be pinned.
    """
    return PinnedRing(torch.empty(RING_BYTES, dtype=torch.uint8, pin_memory=True, device="cpu"), copy_on_stream)


def copy_on_stream(destination: torch.Tensor, source: torch.Tensor) -> Callable[[], object]:
    """See `Copy`: on the stream that is current."""
    destination.copy_(source, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return event.synchronize


def _copy_on(wait: Callable[[], object], piece: torch.Tensor, destination: Bytes) -> None:
    wait()
    np.copyto(destination, _bytes(piece))


def _bytes(tensor: torch.Tensor) -> Bytes:
    return tensor.numpy()
