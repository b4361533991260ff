"""What `models`, `memory` and `status` answer: plain values, read from the core and from the system."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ...protocol.errors import InvalidRequest, PoolError
from ...protocol.values import encode
from ..core.accounting import WeightsAccount, account_of
from ..core.batching import Batching
from ..core.core import Core
from ..core.devices import Devices
from ..core.rings import Ring
from ..core.run_times import BOUNDS_S
from ..core.weights import Model, WeightSet
from ..core.workers import Worker
from ..settings import Settings
from .fallbacks import fallbacks_of
from .meter import Meter
from .mover import Mover
from .processes import Processes
from .sampler import ProcessMemory
from .shelf import Shelf

#: Notes that are kept: fallbacks taken, processes replaced.
_KEPT_NOTES = 100

Then = Callable[["bytes | PoolError"], None]


class Answers:
    """Answers queries.

    Args:
        devices, settings, processes, shelf, mover: what is asked about.
        meter: measures processes.

    Attributes:
        notes: what happened that somebody may want to know.
        also: tells what others do in a second-best way, and why.
    """

    def __init__(
        self,
        devices: Devices,
        settings: Settings,
        processes: Processes,
        shelf: Shelf,
        mover: Mover,
        meter: Meter,
    ) -> None:
        self._devices = devices
        self._settings = settings
        self._processes = processes
        self._shelf = shelf
        self._mover = mover
        self._meter = meter
        self._started_at = time.monotonic()
        self.notes: deque[str] = deque(maxlen=_KEPT_NOTES)
        self.also: Callable[[], list[str]] = list

    def ask(self, topic: str, then: Then) -> None:
        """Answer now or, if something must be measured, later."""
        if topic == "models":
            then(encode(self._models()).body)
        elif topic == "status":
            then(encode(self._status()).body)
        elif topic == "memory":
            try:
                self._meter.measure_exactly(lambda *measured: then(encode(self._memory(*measured)).body))
            except PoolError as error:
                then(error)
        else:
            then(InvalidRequest(f"unknown topic {topic!r}; known are models, memory and status"))

    def _models(self) -> list[dict[str, Any]]:
        models: list[dict[str, Any]] = []
        for core in self._devices.cores:
            in_sessions = core.dispatch.sessions.waiting()
            whole = [model for model in core.library.models.values() if not model.is_part]
            models += [self._model(core, model, in_sessions[model.name]) for model in whole]
        return models

    def _model(self, core: Core, model: Model, in_sessions: int) -> dict[str, Any]:
        version = model.current
        return {
            "name": model.name,
            "device": core.name,
            "state": version.life.state,
            "source": version.load.source,
            "method": model.method,
            "weights_bytes": self._weights_bytes(version),
            "workers": len(version.holders),
            "queued": model.queue.calls + in_sessions,
            "running": version.running,
            "answered": model.answered,
            "failed": model.failed,
            "expected_s": model.expected_s,
            "share": model.terms.share,
            "worker_s": model.worker_s,
            "run_times": {"bounds_s": list(BOUNDS_S), "counts": model.run_times.counts[:]},
            "is_warm": bool(version.load.options.get("warm")),
            "batch": _batch(model.batching),
            "error": version.error,
            "predicted": version.expected._asdict(),
            "actual": version.seen._asdict(),
        }

    def _weights_bytes(self, version: WeightSet) -> int:
        """Return what the one copy of a weight set takes, on whatever devices its regions are."""
        regions = dict.fromkeys(version.layout)
        return sum(self._devices.core_of(one).library.holdings.regions[one].size_bytes for one in regions)

    def _status(self) -> dict[str, Any]:
        cores = self._devices.cores
        return {
            "name": self._settings.name,
            "pid": os.getpid(),
            "uptime_s": time.monotonic() - self._started_at,
            "is_stopping": bool(self._devices.stopping),
            "slots": sum(core.workspace.seats for core in cores),
            "workers_note": self._of_each(lambda core: core.sizing.note),
            "concurrency": sum(core.concurrency.limit for core in cores),
            "concurrency_note": self._of_each(lambda core: core.concurrency.note),
            "sessions": sum(len(core.dispatch.sessions) for core in cores),
            "threads": self._settings.threads,
            "clients": self._devices.host.requests.clients,
            "unanswered": self._devices.unanswered,
            "retried": sum(core.attempts.retried for core in cores),
            "zygote_pid": self._processes.zygotes[0].pid,
            "zygotes": {core.name: one.pid for core, one in zip(cores, self._processes.zygotes, strict=True)},
            "workers": [self._worker(core, worker) for core in cores for worker in core.fleet.workers],
            "models": self._models(),
            "rings": [self._ring(core, ring) for core in cores for ring in core.workspace.rings.values()],
            "mailboxes": self._mailboxes(),
            "fallbacks": [*fallbacks_of(self._devices), *self._mover.fallbacks, *self.also()],
            "notes": list(self.notes),
        }

    def _of_each(self, note: Callable[[Core], str]) -> str:
        """Return a note of the only device, or those of all with their names."""
        cores = self._devices.cores
        return note(cores[0]) if len(cores) == 1 else "; ".join(f"{core.name}: {note(core)}" for core in cores)

    def _worker(self, core: Core, worker: Worker) -> dict[str, Any]:
        sets = core.library.holdings.sets
        return {
            "pid": worker.pid,
            "device": core.name,
            "state": worker.life.state,
            "runs": worker.runs,
            "outstanding": len(worker.outstanding),
            "is_thawed": not worker.thawing,
            "running": core.attempts.running_on(next(iter(worker.outstanding), 0))[1],
            "models": sorted(sets[number].load.name for number in worker.holds if number in sets),
        }

    def _mailboxes(self) -> dict[str, int]:
        mailboxes = self._devices.host.mailboxes
        return {
            "clients": mailboxes.clients,
            "granted_bytes": mailboxes.granted_bytes,
            "total_bytes": mailboxes.budget.total_bytes,
            "refused": mailboxes.refused,
            "inline": mailboxes.inline,
        }

    def _ring(self, core: Core, ring: Ring) -> dict[str, Any]:
        sets, stateful = core.library.holdings.sets, core.workspace.stateful
        needs: dict[str, int] = {}
        for number, need_bytes in ring.needs_bytes.items():
            name = sets[number].load.name
            needs[name] = max(need_bytes, needs.get(name, 0))
        return {
            "name": ring.name,
            "device": core.name,
            "slots": len(ring.slots),
            "size_bytes": ring.size_bytes,
            "allocated_bytes": self._shelf.allocated_bytes([slot.region for slot in ring.slots.values()]),
            "spilled_bytes": ring.spilled_bytes,
            "spills": ring.spills,
            "needs_bytes": needs,
            "stateful": sorted(sets[number].load.name for number in stateful & ring.needs_bytes.keys()),
        }

    def _memory(self, roles: dict[int, str], measured: dict[int, ProcessMemory]) -> dict[str, Any]:
        cores = self._devices.cores
        accounts = [
            (core, account_of(core.library.holdings, version))
            for core in cores
            for version in core.library.holdings.sets.values()
        ]
        regions = self._shelf.allocated_bytes()
        slots = self._shelf.allocated_bytes(self._shelf.used_as("slot"))
        mailboxes = self._shelf.allocated_bytes(self._shelf.used_as("mailbox"))
        rings = [ring for core in cores for ring in core.workspace.rings.values()]
        device_of = self._devices_by_pid()
        processes = [
            {
                "pid": pid,
                "role": roles[pid],
                "pss_bytes": one.pss,
                "private_bytes": one.private,
                "device": device_of.get(pid, cores[0].name),
            }
            for pid, one in measured.items()
        ]
        return {
            "total_bytes": sum(one.pss for one in measured.values()) + regions - self._shelf.returned_bytes(),
            "weights_bytes": regions - slots - mailboxes,
            "weights_bytes_unshared": sum(one.size_bytes * len(one.version.holders) for _, one in accounts),
            "weights": [_weights(core, one) for core, one in accounts],
            "slots_bytes": slots,
            "mailboxes_bytes": mailboxes,
            "spilled_bytes": sum(ring.spilled_bytes for ring in rings),
            "processes": processes,
            "devices": [self._device(index, core) for index, core in enumerate(cores)],
        }

    def _devices_by_pid(self) -> dict[int, str]:
        """Return the device of each zygote and child."""
        cores = self._devices.cores
        pids = {zygote.pid: core.name for core, zygote in zip(cores, self._processes.zygotes, strict=True)}
        children = self._processes.children.values()
        return pids | {child.pid: self._devices.core_of(child.number).name for child in children}

    def _device(self, index: int, core: Core) -> dict[str, Any]:
        ledger = core.ledger
        return {
            "name": ledger.name,
            "total_bytes": ledger.total_bytes,
            "available_bytes": max(0, ledger.available_bytes),
            "budget_bytes": ledger.budget_bytes,
            "reserve_bytes": ledger.reserve_bytes,
            "limit_bytes": ledger.limit_bytes,
            "used_bytes": ledger.used_bytes,
            "free_bytes": max(0, ledger.free_bytes),
            "accounts": ledger.accounts(),
            "evicted_bytes": self._mover.evicted_bytes(lambda region: self._devices.index_of(region) == index),
            "disk_bytes": self._mover.disk_bytes(lambda region: self._devices.index_of(region) == index),
        }


def _weights(core: Core, account: WeightsAccount) -> dict[str, Any]:
    version = account.version
    model = core.library.models.get(version.load.name)
    return {
        "model": version.load.options.get("part_of", version.load.name),
        "device": core.name,
        "state": version.life.state,
        "tier": _tier(core, version),
        "size_bytes": account.size_bytes,
        "own_bytes": account.own_bytes,
        "shared_with": account.shared_with,
        "private_bytes": version.private_bytes,
        "opaque": version.opaque,
        "workers": len(version.holders),
        "attached": len(version.attached),
        "is_rebuilt": bool(version.recipe),
        "is_pinned": model is not None and model.is_pinned,
        "evictions": version.evictions,
        "returns": version.returns,
        "return_s": version.return_s,
    }


def _tier(core: Core, version: WeightSet) -> str:
    """Return where a weight set lies; empty if it is not loaded."""
    records = [core.library.holdings.regions[number] for number in version.regions]
    if any(record.life.state in ("away", "returning") for record in records):
        return "disk"
    if any(record.is_file for record in records):
        return "file"
    in_memory = "gpu" if core.is_gpu else "memory"
    return in_memory if records else ""


def _batch(batching: Batching) -> dict[str, Any]:
    return {
        "most": batching.terms.max_batch,
        "limit": batching.limit,
        "wait_s": batching.wait_s,
        "mean": batching.calls / batching.batches if batching.batches else 0.0,
        "note": batching.note,
    }
