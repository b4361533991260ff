"""Measures what the machine and the pool's processes take, for the core: soon after anything has happened.

The first figures are there before the first model, those of the machine. Then, as long as something runs or
happens, they are taken every second, and otherwise every ten; in the background, because it takes milliseconds.
Every ten seconds, if anything has happened, processes are measured that have hardly changed, too. When nothing
goes on any more, the supervisor's own heap is tidied: what its free part holds would count as taken.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias, cast

from ...protocol.errors import PoolBusy
from ...protocol.heap import trim
from ..core import events
from ..core.devices import Devices
from ..core.numbers import device_of
from ..memory.gpus import GpuMachine
from .background import Background
from .exporter import Exporter
from .memories import Memories
from .processes import Processes
from .reactor import Reactor
from .sampler import ProcessMemory, Sampler
from .shelf import Shelf

#: How long after something has happened it is measured what came of it.
_SOON_S: Final = 1.0
#: How often it is measured anyhow.
_ANYHOW_S: Final = 10.0
#: How often the heap is tidied although something goes on.
_TIDY_S: Final = 60.0
#: So many may wait to be told what processes take.
MOST_ASKED: Final = 1000

#: Called with what each process is, and what it takes.
Then: TypeAlias = Callable[[dict[int, str], "dict[int, ProcessMemory]"], None]


class _Figures(NamedTuple):
    """What was measured: of each device, and of processes by their pid."""

    devices: list[_Memory]
    processes: dict[int, ProcessMemory]


class _Memory(NamedTuple):
    """What a device has in all and available, and what other programs are known to have of it if it is a GPU."""

    total_bytes: int
    available_bytes: int
    foreign_bytes: int


class Meter:
    """Measures on its own, and on request.

    Args:
        devices, processes, exporter, shelf: what is measured.
        memories: by device, what it has its memory of; and who copies what is on a GPU.
        reactor: its timer wakes the meter.
        feed: takes events for the core.
    """

    def __init__(
        self,
        devices: Devices,
        processes: Processes,
        exporter: Exporter,
        shelf: Shelf,
        memories: Memories,
        reactor: Reactor,
        feed: Callable[[events.Event], None],
    ) -> None:
        self._devices = devices
        self._processes = processes
        self._exporter = exporter
        self._shelf = shelf
        self._memories = memories.devices
        self._carriers = memories.carriers
        self._reactor = reactor
        self._feed = feed
        self._background = Background("onecopy-meter", reactor)
        self._sampler = Sampler()
        self._is_due = False
        self._is_exact = False
        self._is_measuring = False
        self._has_happened = True
        self._is_untidy = True
        self._is_active = True  # something has happened since the measurement before
        self._measured_at = 0.0
        self._tidied_at = time.monotonic()
        self._processes_last: dict[int, ProcessMemory] = {}
        self._asked: list[Then] = []
        self._is_answering = False

    def start(self) -> None:
        """Tell what the machine has, and measure from now on."""
        self._tell(self._figures({}))
        self._measure_anyhow()

    def touch(self) -> None:
        """Something has happened: measure what came of it, within a second."""
        self._has_happened = self._is_untidy = self._is_active = True
        self._measure_soon()

    def available(self) -> list[events.MemoryAvailable]:
        """Return what there is now."""
        return [
            events.MemoryAvailable(memory.available_bytes(), device)
            for device, memory in enumerate(self._memories)
        ]

    def gone(self, pid: int) -> None:
        """A process has ended: tell at once that its memory is free."""
        if pid in self._processes_last:
            self._tell(self._figures(self._processes_last))

    def roles(self) -> dict[int, str]:
        """Return what each process of the pool is, by its pid."""
        roles = {os.getpid(): "supervisor"}
        roles |= {zygote.pid: "zygote" for zygote in self._processes.zygotes if zygote.pid}
        if self._exporter.pid:
            roles[self._exporter.pid] = "metrics"
        roles |= dict.fromkeys(self._carriers.pids, "carrier")
        for child in self._processes.children.values():
            if child.pid:
                roles[child.pid] = child.role
        return roles

    def measure_exactly(self, then: Then) -> None:
        """Measure every process; call ``then`` with what each is, and takes, by pid, once the core knows it too.

        All who ask while one such measurement is under way get the next.

        Raises:
            PoolBusy: too many wait for that.
        """
        if len(self._asked) >= MOST_ASKED:
            raise PoolBusy(f"{MOST_ASKED:,} questions about memory wait already; try again later")
        self._asked.append(then)
        if not self._is_answering:
            self._answer_asked()

    def _answer_asked(self) -> None:
        asked, self._asked = self._asked, []
        self._is_answering = True
        roles = self.roles()

        def measured(figures: _Figures) -> None:
            self._is_answering = False
            self._tell(figures)
            for then in asked:
                then(roles, figures.processes)
            if self._asked:
                self._answer_asked()

        self._background.do(self._measuring(is_exact=True), measured)

    def close(self) -> None:
        """Measure no more."""
        self._background.close()

    def _measure_anyhow(self) -> None:
        self._is_exact, self._has_happened = self._has_happened, False
        self._measure_soon()
        self._reactor.call_at(time.monotonic() + _ANYHOW_S, self._measure_anyhow)

    def _measure_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._reactor.call_at(max(time.monotonic(), self._measured_at + _SOON_S), self._measure)

    def _measure(self) -> None:
        self._is_due = False
        self._measured_at = time.monotonic()
        if self._is_measuring:  # it takes that long
            self._measure_soon()
            return
        self._is_measuring = True
        is_exact, self._is_exact = self._is_exact, False
        self._background.do(self._measuring(is_exact=is_exact), self._measured)

    def _measuring(self, *, is_exact: bool) -> Callable[[], _Figures]:
        """Return what measures the processes that there are now."""
        pids = list(self.roles())
        return lambda: self._figures(self._sampler.measure(pids, is_exact=is_exact))

    def _figures(self, processes: dict[int, ProcessMemory]) -> _Figures:
        return _Figures([self._memory(index) for index in range(len(self._memories))], processes)

    def _memory(self, device: int) -> _Memory:
        one = self._memories[device]
        foreign_bytes = 0
        if self._devices.cores[device].is_gpu:
            known = self.roles()
            processes = cast("GpuMachine", one).private_bytes()
            foreign_bytes = sum(taken for pid, taken in processes.items() if pid not in known)
        return _Memory(one.total_bytes(), one.available_bytes(), foreign_bytes)

    def _measured(self, figures: _Figures) -> None:
        self._is_measuring = False
        self._tell(figures)
        if self._devices.unanswered or "loader" in self.roles().values():
            self.touch()  # what runs may take memory without a word
        elif self._is_active and time.monotonic() < self._tidied_at + _TIDY_S:
            # Tidying takes tens of milliseconds, which the next request shall not wait, unless that is rare.
            self._is_active = False
            self._measure_soon()
        elif self._is_untidy:
            self._is_untidy, self._tidied_at = False, time.monotonic()
            gc.collect()
            trim()

    def _tell(self, figures: _Figures) -> None:
        roles = self.roles()  # some may have ended since
        self._processes_last = {pid: one for pid, one in figures.processes.items() if pid in roles}
        for device in range(len(self._devices.cores)):
            self._feed(self._measured_on(device, figures))

    def _measured_on(self, device: int, figures: _Figures) -> events.MemoryMeasured:
        """Return what is on a device; what is of the whole pool, such as mailboxes, is on the first."""
        memory = figures.devices[device]
        if self._devices.cores[device].is_gpu:
            return self._measured_on_gpu(device, memory)
        devices = len(self._devices.cores)
        private = {pid: memory.private for pid, memory in self._processes_last.items()}
        by_role: dict[str, dict[int, int]] = {"worker": {}, "loader": {}}
        others_bytes = private.get(self._processes.zygotes[device].pid, 0)
        if not device:
            alone = (os.getpid(), self._exporter.pid, *self._carriers.pids)
            others_bytes += sum(private.get(pid, 0) for pid in alone)
        for child in self._processes.children.values():
            if child.pid not in private or device_of(child.number, devices) != device:
                continue
            if child.role in by_role:
                by_role[child.role][child.number] = private[child.pid]
            else:
                others_bytes += private[child.pid]
        return events.MemoryMeasured(
            memory.total_bytes,
            memory.available_bytes,
            self._shelf.allocated_bytes(self._slots_on(device)),
            0 if device else self._shelf.allocated_bytes(self._shelf.used_as("mailbox")),
            by_role["worker"],
            by_role["loader"],
            others_bytes,
            device,
        )

    def _measured_on_gpu(self, device: int, memory: _Memory) -> events.MemoryMeasured:
        """Return what is on a GPU: what is taken by nobody else and no region is the children's, each as much."""
        devices = len(self._devices.cores)
        children = [
            child
            for child in self._processes.children.values()
            if child.pid and child.role in ("worker", "loader") and device_of(child.number, devices) == device
        ]
        regions_bytes = self._shelf.allocated_on(device)
        taken_bytes = memory.total_bytes - memory.available_bytes - memory.foreign_bytes
        private_bytes = max(0, taken_bytes - regions_bytes)
        each_bytes = private_bytes // len(children) if children else 0
        return events.MemoryMeasured(
            memory.total_bytes,
            memory.available_bytes,
            self._shelf.allocated_bytes(self._slots_on(device)),
            0,
            {child.number: each_bytes for child in children if child.role == "worker"},
            {child.number: each_bytes for child in children if child.role == "loader"},
            0,
            device,
        )

    def _slots_on(self, device: int) -> list[int]:
        devices = len(self._devices.cores)
        return [number for number in self._shelf.used_as("slot") if device_of(number, devices) == device]
