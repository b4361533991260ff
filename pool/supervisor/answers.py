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
from ..core.weights import Model, WeightSet
from ..core.workspace import Ring
from ..settings import Settings
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
        core, settings, processes, shelf, mover: what is asked about.
        meter: measures processes.
    """

    def __init__(
        self, core: Core, settings: Settings, processes: Processes, shelf: Shelf, mover: Mover, meter: Meter
    ) -> None:
        self._core = core
        self._settings = settings
        self._processes = processes
        self._shelf = shelf
        self._mover = mover
        self._meter = meter
        self._started_at = time.monotonic()
        self.notes: deque[str] = deque(maxlen=_KEPT_NOTES)

    def ask(self, topic: str, then: Then) -> None:
        """Answer now or, if something must be measured, later."""
        if topic == "models":
            then(encode(self._models()).body)
        elif topic == "status":
            then(encode(self._status()).body)
        elif topic == "memory":
            roles = self._meter.roles()
            self._meter.measure_exactly(lambda measured: then(encode(self._memory(roles, measured)).body))
        else:
            then(InvalidRequest(f"unknown topic {topic!r}; known are models, memory and status"))

    def _models(self) -> list[dict[str, Any]]:
        in_sessions = self._core.dispatch.sessions.waiting()
        return [self._model(model, in_sessions[model.name]) for model in self._core.library.models.values()]

    def _model(self, model: Model, in_sessions: int) -> dict[str, Any]:
        version = model.current
        return {
            "name": model.name,
            "state": version.life.state,
            "source": version.load.source,
            "method": model.method,
            "weights_bytes": account_of(self._core.library.holdings, version).size_bytes,
            "workers": len(version.holders),
            "queued": model.queue.calls + in_sessions,
            "running": version.running,
            "answered": model.answered,
            "failed": model.failed,
            "expected_s": model.expected_s,
            "share": model.terms.share,
            "worker_s": model.worker_s,
            "batch": _batch(model.batching),
            "error": version.error,
        }

    def _status(self) -> dict[str, Any]:
        fleet = self._core.fleet
        return {
            "name": self._settings.name,
            "pid": os.getpid(),
            "uptime_s": time.monotonic() - self._started_at,
            "is_stopping": bool(self._core.stopping),
            "slots": self._settings.slots,
            "workers_note": self._core.sizing.note,
            "concurrency": self._core.concurrency.limit,
            "concurrency_note": self._core.concurrency.note,
            "sessions": len(self._core.dispatch.sessions),
            "threads": self._settings.threads,
            "clients": self._core.requests.clients,
            "unanswered": self._core.requests.unanswered,
            "retried": self._core.attempts.retried,
            "zygote_pid": self._processes.zygote_pid,
            "workers": [
                {
                    "pid": worker.pid,
                    "state": worker.life.state,
                    "runs": worker.runs,
                    "outstanding": len(worker.outstanding),
                    "is_thawed": not worker.thawing,
                    "models": sorted(
                        self._core.library.holdings.sets[number].load.name
                        for number in worker.holds
                        if number in self._core.library.holdings.sets
                    ),
                }
                for worker in fleet.workers
            ],
            "models": self._models(),
            "rings": [self._ring(ring) for ring in self._core.workspace.rings.values()],
            "mailboxes": self._mailboxes(),
            "fallbacks": self._fallbacks(),
            "notes": list(self.notes),
        }

    def _mailboxes(self) -> dict[str, int]:
        mailboxes = self._core.mailboxes
        return {
            "clients": mailboxes.clients,
            "granted_bytes": mailboxes.granted_bytes,
            "total_bytes": mailboxes.budget.total_bytes,
            "refused": mailboxes.refused,
            "inline": mailboxes.inline,
        }

    def _ring(self, ring: Ring) -> dict[str, Any]:
        sets, stateful = self._core.library.holdings.sets, self._core.workspace.stateful
        needs: dict[str, int] = {}
        for number, need_bytes in ring.needs_bytes.items():
            name = sets[number].load.name
            needs[name] = max(need_bytes, needs.get(name, 0))
        return {
            "name": ring.name,
            "slots": len(ring.slots),
            "size_bytes": ring.size_bytes,
            "allocated_bytes": self._shelf.allocated_bytes([slot.region for slot in ring.slots.values()]),
            "spilled_bytes": ring.spilled_bytes,
            "spills": ring.spills,
            "needs_bytes": needs,
            "stateful": sorted(sets[number].load.name for number in stateful & ring.needs_bytes.keys()),
        }

    def _fallbacks(self) -> list[str]:
        library = self._core.library
        modules = list(self._core.fleet.zygote.refused.items())
        models = [(library.holdings.sets[one].load.name, why) for one, why in library.warming.refused.items()]
        without = self._core.workspace.without
        slots = [("slots", f"runs take private memory: {without}")] if without else []
        return [f"{name}: {reason}" for name, reason in modules + models + slots]

    def _memory(self, roles: dict[int, str], measured: dict[int, ProcessMemory]) -> dict[str, Any]:
        holdings = self._core.library.holdings
        accounts = [account_of(holdings, version) for version in holdings.sets.values()]
        regions = self._shelf.allocated_bytes()
        slots, mailboxes = self._shelf.allocated_bytes("slot"), self._shelf.allocated_bytes("mailbox")
        weights = regions - slots - mailboxes
        processes = [
            {
                "pid": pid,
                "role": roles[pid],
                "pss_bytes": one.pss,
                "private_bytes": one.private,
                "device": "cpu",
            }
            for pid, one in measured.items()
        ]
        return {
            "total_bytes": sum(one.pss for one in measured.values()) + regions,
            "weights_bytes": weights,
            "weights_bytes_unshared": sum(one.size_bytes * len(one.version.holders) for one in accounts),
            "weights": [self._weights(one) for one in accounts],
            "slots_bytes": slots,
            "mailboxes_bytes": mailboxes,
            "spilled_bytes": sum(ring.spilled_bytes for ring in self._core.workspace.rings.values()),
            "processes": processes,
            "devices": [self._device()],
        }

    def _device(self) -> dict[str, Any]:
        ledger = self._core.ledger
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
            "evicted_bytes": self._mover.evicted_bytes,
            "disk_bytes": self._mover.disk_bytes,
        }

    def _weights(self, account: WeightsAccount) -> dict[str, Any]:
        version = account.version
        model = self._core.library.models.get(version.load.name)
        return {
            "model": version.load.name,
            "state": version.life.state,
            "tier": self._tier(version),
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

    def _tier(self, version: WeightSet) -> str:
        """Return where a weight set lies; empty if it is not loaded."""
        records = [self._core.library.holdings.regions[number] for number in version.regions]
        if any(record.life.state in ("away", "returning") for record in records):
            return "disk"
        if any(record.is_file for record in records):
            return "file"
        return "memory" if records else ""


def _batch(batching: Batching) -> dict[str, Any]:
    return {
        "most": batching.terms.max_batch,
        "limit": batching.limit,
        "wait_s": batching.wait_s,
        "mean": batching.calls / batching.batches if batching.batches else 0.0,
        "note": batching.note,
    }
