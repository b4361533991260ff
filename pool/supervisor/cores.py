"""From settings to the cores of a pool's devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...protocol.gpu import NO_GPU
from ..core.core import Core
from ..core.ledger import Allowance
from ..core.mailboxes import Budget
from ..core.position import Position
from ..settings import Settings
from .history import Known


def make_cores(
    settings: Settings,
    totals_bytes: Sequence[int],
    peers: Mapping[str, Sequence[str]],
    known: Known,
    spare_cores: int,
) -> list[Core]:
    """Return a core for each device; the first is the host of the others.

    Args:
        settings: of the pool.
        totals_bytes: by device, how much memory there is.
        peers: by device, the others whose memory its workers can use; see `devices.peers_of`.
        known: what earlier pools have seen.
        spare_cores: how many cores are left for workers, of all devices; see `environment.spare_cores`.
    """
    mailboxes = Budget(settings.mailbox_bytes, settings.mailbox_total_bytes)
    cores: list[Core] = []
    own_cores = max(1, spare_cores // len(settings.devices))
    devices = zip(settings.devices.items(), totals_bytes, strict=True)
    for index, ((name, device), total_bytes) in enumerate(devices):
        own = settings.on(name)
        host = cores[0] if cores else None
        cores.append(
            Core(
                own.workers,
                own.slots,
                known.needs,
                mailboxes,
                own.slot_bytes,
                Allowance(total_bytes, device.budget_bytes, device.reserve_bytes),
                own.max_private_bytes if own.gpu == NO_GPU else 0,  # that is of the processor's memory
                own.least_workers,
                Position(name, index, len(settings.devices), own.gpu, tuple(peers[name]), own_cores),
                host,
                loads=known.loads,
                is_adaptive=bool(own.adaptive),
            )
        )
    return cores
