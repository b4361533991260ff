"""How much of a slot a recorded run would use: its blocks are allocated in one, in that order, and not touched.

The slot's allocator decides where blocks go and what gaps stay between them, so it is asked rather than modelled.
That takes addresses and no memory. What kernels take for themselves is measured: each is run once for each kind of
its arguments, on blank ones.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from ..protocol.manifest import ALIGNMENT_BYTES
from .arena import Arena, Slot, Usage
from .fake_run import Allocated, Computed, Event, Freed, Shape

#: Addresses for a slot: more than any run takes.
_WINDOW_BYTES: Final = 1 << 42


class Need(NamedTuple):
    """What a run takes, in bytes.

    Attributes:
        footprint_bytes: the part of a slot that is used.
        peak_bytes: the most that lives at once.
    """

    footprint_bytes: int
    peak_bytes: int


class Scratch(NamedTuple):
    """The blocks that a kernel has, besides its results, when it has the most.

    Attributes:
        before_bytes: sizes of those that are there when it makes its first result.
        after_bytes: sizes of those that come after that; None: there is no result yet when it has the most.
    """

    before_bytes: list[int]
    after_bytes: list[int] | None


_NO_SCRATCH: Final = Scratch([], [])
#: So many blocks of a kernel are told apart.
_MOST_BLOCKS: Final = 64


def need_of(events: Sequence[Event]) -> Need:
    """Return what a recorded run would take; without slots here, what lives at once stands for the footprint."""
    arena = Arena.preloaded()
    if arena is None:
        peak_bytes = _peak_bytes(events)
        return Need(peak_bytes, peak_bytes)
    slot = blank_slot(arena)
    computed = {event.key: event for event in events if isinstance(event, Computed)}
    scratches = {key: _scratch_of(event, slot) for key, event in computed.items()}
    _, usage = in_slot(slot, lambda: _replay(events, scratches))
    slot.detach()
    return Need(usage.footprint_bytes, usage.peak_bytes)


def blank_slot(arena: Arena) -> Slot:
    """Return a slot that is large enough for anything; only what is touched of it is memory."""
    fd = os.memfd_create("onecopy-rehearsed", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, _WINDOW_BYTES)
        return arena.attach(fd, _WINDOW_BYTES)
    finally:
        os.close(fd)


def in_slot(slot: Slot, function: Callable[[], Any], limit_bytes: int | None = None) -> tuple[Any, Usage]:
    """Call something in a slot; return its result, which is kept elsewhere, and what was used at its end.

    Args:
        slot: which.
        function: what is called.
        limit_bytes: how much it may take, so that it fails if it takes more; default: as much as it likes.
    """
    slot.enter(_WINDOW_BYTES if limit_bytes is None else limit_bytes, is_strict=limit_bytes is not None)
    try:
        result = function()
    finally:
        usage = slot.leave()
        if usage.live_blocks:
            slot.keep()
    return result, usage


def _replay(events: Sequence[Event], scratches: Mapping[str, Scratch]) -> None:
    blocks: dict[int, torch.UntypedStorage] = {}
    scratch = _NO_SCRATCH
    for event in events:
        if isinstance(event, Allocated):
            before = list(map(torch.UntypedStorage, scratch.before_bytes))
            if scratch.after_bytes is None:
                before.clear()
            blocks[event.block] = torch.UntypedStorage(event.size_bytes)
            after = list(map(torch.UntypedStorage, scratch.after_bytes or ()))
            before.clear()
            after.clear()
            scratch = _NO_SCRATCH
        elif isinstance(event, Freed):
            del blocks[event.block]
        else:
            scratch = scratches[event.key]


# --- scratch -------------------------------------------------------------------------------------------------


def _scratch_of(event: Computed, slot: Slot) -> Scratch:
    """Run a kernel alone in a slot, which fills up from its start: where its result lies tells when it came."""
    args, kwargs = tree_map_only(Shape, _blank, (event.args, event.kwargs), is_leaf=_is_shape)

    def compute() -> list[torch.UntypedStorage]:
        with torch.no_grad():
            result = event.function(*args, **kwargs)
        storages = [one.untyped_storage() for one in tree_leaves(result) if isinstance(one, torch.Tensor)]
        return [one for one in storages if one.nbytes()]

    sizes_bytes = _blocks_of(compute, slot)
    start = in_slot(slot, lambda: torch.UntypedStorage(1).data_ptr())[0]
    results, _ = in_slot(slot, compute)
    offsets_bytes = list(itertools.accumulate(sizes_bytes, initial=0))[:-1]
    if not results or results[0].data_ptr() - start not in offsets_bytes:
        return Scratch(sizes_bytes, None)
    at = offsets_bytes.index(results[0].data_ptr() - start)
    if at == 0 and sizes_bytes[0] != _in_granules(results[0]):  # it has taken the place of what was freed
        return Scratch(sizes_bytes, None)
    after_bytes = sizes_bytes[at + 1 :]
    for other in results[1:]:
        with contextlib.suppress(ValueError):
            after_bytes.remove(_in_granules(other))
    return Scratch(sizes_bytes[:at], after_bytes)


def _blocks_of(compute: Callable[[], Any], slot: Slot) -> list[int]:
    """Return by how much the memory that is taken grows, each time that it grows beyond what it was before.

    There is more and more room, and what is refused each time tells the next block.
    """
    sizes_bytes: list[int] = []
    while len(sizes_bytes) < _MOST_BLOCKS:
        taken_bytes = sum(sizes_bytes)
        try:
            in_slot(slot, compute, taken_bytes)
        except RuntimeError:
            refused_bytes = slot.take_refusal()
            if not refused_bytes:
                raise
            if refused_bytes <= taken_bytes:  # there would be room, but for a gap
                break
            sizes_bytes.append(refused_bytes - taken_bytes)
        else:
            break
    return sizes_bytes


def _in_granules(storage: torch.UntypedStorage) -> int:
    return -(-storage.nbytes() // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _is_shape(value: Any) -> bool:
    return isinstance(value, Shape)


def _blank(shape: Shape) -> torch.Tensor:
    """Return a tensor of zeros whose pages nobody has touched: only what is written of them is memory."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(shape.size, shape.stride, strict=True))
    items = max(0, extent) if all(shape.size) else 0
    plain = torch.from_numpy(np.zeros(items * shape.dtype.itemsize, np.uint8)).view(shape.dtype)
    return plain.as_strided(shape.size, shape.stride)


def _peak_bytes(events: Sequence[Event]) -> int:
    sizes_bytes: dict[int, int] = {}
    live_bytes = peak_bytes = 0
    for event in events:
        if isinstance(event, Allocated):
            sizes_bytes[event.block] = event.size_bytes
            live_bytes += event.size_bytes
            peak_bytes = max(peak_bytes, live_bytes)
        elif isinstance(event, Freed):
            live_bytes -= sizes_bytes.pop(event.block)
    return peak_bytes
