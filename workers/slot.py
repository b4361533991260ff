"""Where a run takes its memory: it enters a slot, runs, and leaves; what it kept is taken out of the slot.

::

    sit ──► thaw, the first time ──► enter ──► copy inputs in, run, copy outputs out ──► leave ──► answer
                                                                                          └─ keep what escaped

What is in a slot's pages when it is entered is another's, and so it will be again: nothing of a run may live there
when it is answered. The worker is the only one who can tell, so it leaves first and answers then.

On a GPU what escaped cannot be taken out: the worker keeps the slot, and nobody enters it any more. The first run
of a model there is in no slot, because libraries take working memory then that they keep as long as they live.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from ..protocol.errors import WorkspaceOverflow
from ..protocol.messages import MapSlot, Run, UnmapSlot, Used
from .arena import Arena, Slot, Usage
from .signature import signature_of

if TYPE_CHECKING:
    from ..protocol.gpu import Gpu
    from .device_slot import DeviceSlot

_Result = TypeVar("_Result")
AnySlot: TypeAlias = "Slot | DeviceSlot"

#: Runs that take less are not told of: slots are never so small.
TOLD_BYTES: Final = 1 << 20
#: So many signatures of inputs are told apart for one weight set; then only what takes more than all of them.
_MOST_SIGNATURES: Final = 64
#: How large a slot may ever become, or what does not fit into it: as large as memory. It takes addresses only.
_WINDOW_BYTES: Final = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Workspace:
    """The slots that are mapped in this worker, and the cores of the seats.

    Args:
        cores: by seat, the cores that a run may use there; empty: any, on every seat.
        tell: called with what is to be told before the answer of a run.
        gpu: whose memory slots are; None: the processor's.
    """

    def __init__(
        self, cores: Sequence[Sequence[int]], tell: Callable[[Used], None], gpu: Gpu | None = None
    ) -> None:
        self._arena = Arena.preloaded()
        self._cores = cores
        self._tell = tell
        self._gpu = gpu
        self._has_own_memory = gpu is not None and gpu.device.type != "cpu"
        self._seat = -1
        self._slots: dict[int, AnySlot] = {}
        self._kept: list[DeviceSlot] = []  # for what lives in them
        self._warm: set[int] = set()  # weight sets that have run here
        self._peaks: dict[int, dict[str, int]] = {}

    def map(self, order: MapSlot, fds: list[int]) -> None:
        """Map a slot, taking its descriptor out of the list; if that fails, it is said, and runs go without."""
        fd = fds.pop()
        try:
            self._slots[order.slot] = self._mapped(fd, order.size_bytes)
        except (OSError, RuntimeError) as error:
            print(f"runs without a slot: {error}", file=sys.stderr)  # noqa: T201 - what is printed goes to the log
        finally:
            os.close(fd)

    def _mapped(self, fd: int, size_bytes: int) -> AnySlot:
        if self._gpu is not None and self._has_own_memory:
            from .device_slot import DeviceSlot  # it imports torch

            return DeviceSlot(self._gpu, fd, size_bytes)
        assert self._arena is not None
        return self._arena.attach(fd, _WINDOW_BYTES)

    def unmap(self, order: UnmapSlot) -> None:
        """Let go of a slot; one that is kept stays mapped."""
        slot = self._slots.pop(order.slot, None)
        if slot is not None:
            slot.detach()

    def forget(self, weight_set: int) -> None:
        """Forget what runs of a weight set took; on a GPU, give back what nothing lives in now that it is gone."""
        self._peaks.pop(weight_set, None)
        self._warm.discard(weight_set)
        for slot in [one for one in self._kept if one.is_empty]:
            self._kept.remove(slot)
            slot.detach()
        self._trim()

    def sit(self, seat: int) -> None:
        """Run on the cores of a seat from here on, with all threads there are; later ones inherit that."""
        if seat == self._seat or not self._cores:
            return
        self._seat = seat
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError):  # it has ended, or the cores were taken away from this container
                os.sched_setaffinity(int(thread), self._cores[seat])

    def run(self, order: Run, call: Callable[[Stay], _Result], *, is_strict: bool) -> _Result:
        """Call something that takes its memory from the slot of a run, and returns nothing that lives there.

        Args:
            order: the run.
            call: what is called.
            is_strict: refuse what does not fit into the slot.
        """
        slot = self._slots.get(order.slot) if order.slot else None
        if slot is None:
            return call(Stay(None, 0))
        if self._has_own_memory and order.weight_set not in self._warm:
            return self._warm_up(order, call)
        slot.enter(order.limit_bytes, is_strict=is_strict)
        stay = Stay(slot, order.limit_bytes)
        try:
            return call(stay)
        finally:
            if not slot.try_leave():
                self._note(order, stay.signature, self._leave_for_good(order.slot, slot))
            elif slot.peak_bytes >= TOLD_BYTES:
                self._note(order, stay.signature, slot.usage())

    def _warm_up(self, order: Run, call: Callable[[Stay], _Result]) -> _Result:
        """Run outside of slots once; what torch has taken for that, and does not use, goes back."""
        self._warm.add(order.weight_set)
        try:
            return call(Stay(None, 0))
        finally:
            self._trim()

    def _trim(self) -> None:
        if self._gpu is not None and self._has_own_memory:
            from .device_pool import trim  # it imports torch

            trim(self._gpu.device)

    def _leave_for_good(self, number: int, slot: AnySlot) -> Usage:
        """Leave a slot in which something lives: drop what only a cycle holds, and keep the rest."""
        gc.collect()
        usage = slot.leave()
        if usage.live_blocks:
            slot.keep()
            if not isinstance(slot, Slot):
                self._kept.append(slot)
                del self._slots[number]
        return usage

    def _note(self, order: Run, signature: str, usage: Usage) -> None:
        taken_bytes = usage.footprint_bytes + usage.spilled_bytes
        peaks = self._peaks.setdefault(order.weight_set, {})
        is_new = signature in peaks or len(peaks) < _MOST_SIGNATURES
        is_larger = taken_bytes > (peaks.get(signature, 0) if is_new else max(peaks.values()))
        if not (is_larger or usage.spilled_bytes or usage.live_blocks):
            return
        if is_new:
            peaks[signature] = max(taken_bytes, peaks.get(signature, 0))
        self._tell(Used(order.weight_set, signature, usage.footprint_bytes, usage.spilled_bytes, usage.live_bytes))


class Stay:
    """One run's time in a slot, or outside of any.

    Attributes:
        signature: of its inputs, if it took enough for that to matter.
    """

    def __init__(self, slot: AnySlot | None, limit_bytes: int) -> None:
        self._slot = slot
        self._limit_bytes = limit_bytes
        self.signature = ""

    @property
    def is_outside(self) -> bool:
        """Whether its memory is its own, and may stay in use after the run."""
        return self._slot is None

    def sign(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Note what the run was given, at its end, while that is still there."""
        if self._slot is not None and self._slot.peak_bytes >= TOLD_BYTES:
            self.signature = signature_of(method, args, kwargs)

    def cause_of(self, error: BaseException) -> BaseException:
        """Return why a call failed with this error: perhaps because it was refused memory."""
        refused_bytes = self._slot.take_refusal() if self._slot is not None else 0
        if not refused_bytes:
            return error
        return WorkspaceOverflow(
            f"the run needs at least {refused_bytes:,} bytes, and its slot has {self._limit_bytes:,}; make the "
            "slots larger, or let what does not fit spill (on_overflow='spill')",
            needed_bytes=refused_bytes,
            available_bytes=self._limit_bytes,
        )
