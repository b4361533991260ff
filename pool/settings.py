"""`Settings`: what a supervisor is told when it starts. Frozen and validated.

Standard library only: the supervisor imports this, and it must start in a tenth of a second.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..protocol.limits import MAX_BUFFER_BYTES
from . import environment
from .checks import ConfigError, check_count, check_flag, check_keys, check_name

#: What one client may have in mailboxes unless it is said otherwise.
MAILBOX_BYTES: Final = 256 << 20
#: Workers beyond this are surely a mistake; each is a process.
MAX_WORKERS: Final = 1024


@dataclass(frozen=True)
class Settings:
    """What a supervisor is told when it starts.

    Args:
        workers: how many worker processes.
        slots: how many of them may run at once; default: the workers, at most the cores.
        adaptive: let the number of workers that run at once follow what gives the highest throughput, between one
            and ``slots``; default: where ``slots`` is not given.
        threads: threads that torch uses in one run; default: cores divided by slots.
        slot_bytes: how much memory each slot may take; default: as much as its models turn out to need.
        pin: let the runs that are under way at once use cores of their own, where there are enough.
        name: what the pool is called in status and logs.
        mailbox_bytes: how much memory one local client may have for its large arrays, and for those of results;
            with 0 they all travel through sockets, which is slower.
        mailbox_total_bytes: how much all clients together may have; default: an eighth of the machine's memory.
        listen: tcp endpoints on loopback, besides the ipc endpoint that is always there.

    Raises:
        ConfigError: something of it cannot be.
    """

    workers: int = 1
    slots: int = 0
    adaptive: bool | None = None
    threads: int = 0
    slot_bytes: int = 0
    pin: bool = True
    name: str = "default"
    mailbox_bytes: int = MAILBOX_BYTES
    mailbox_total_bytes: int = 0
    listen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_count("workers", self.workers, 1, MAX_WORKERS)
        if self.adaptive is None:
            object.__setattr__(self, "adaptive", not self.slots)
        check_flag("adaptive", self.adaptive)
        slots = self.slots or min(self.workers, environment.cores())
        check_count("slots", slots, 1, MAX_WORKERS)
        object.__setattr__(self, "slots", min(slots, self.workers))
        object.__setattr__(self, "threads", self.threads or max(1, environment.cores() // self.slots))
        check_count("threads", self.threads, 1, MAX_WORKERS)
        check_flag("pin", self.pin)
        check_count("slot_bytes", self.slot_bytes, 0, 1 << 48)
        check_name("name", self.name)
        check_count("mailbox_bytes", self.mailbox_bytes, 0, MAX_BUFFER_BYTES)
        total_bytes = self.mailbox_total_bytes or environment.memory_bytes() // 8
        object.__setattr__(self, "mailbox_total_bytes", total_bytes)
        check_count("mailbox_total_bytes", total_bytes, 1, 1 << 48)
        for endpoint in self.listen:
            check_listen(endpoint)

    @property
    def seat_cores(self) -> list[list[int]]:
        """By slot, the cores that runs there may use; empty: any, because there are too few to tell them apart."""
        mine = environment.my_cores()
        if not self.pin or self.slots * self.threads > len(mine):
            return []
        return [mine[seat * self.threads :][: self.threads] for seat in range(self.slots)]

    def to_wire(self) -> dict[str, Any]:
        """Return plain values for a message."""
        return dataclasses.asdict(self) | {"listen": list(self.listen)}

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> Settings:
        """Return the settings that a message carries."""
        check_keys("the settings", values, cls)
        plain = dict(values)
        plain["listen"] = tuple(plain.get("listen", ()))
        return cls(**plain)


def check_listen(endpoint: str) -> None:
    """Refuse to listen anywhere but on loopback: whoever reaches the socket can use the pool.

    Raises:
        ConfigError: the endpoint is not ``tcp://127.0.0.1:PORT`` or ``tcp://[::1]:PORT``.
    """
    match = re.fullmatch(r"tcp://(127(?:\.\d{1,3}){3}|\[::1\]|localhost):(\d{1,5}|\*)", endpoint)
    if match is None or (match[2] != "*" and int(match[2]) > 65535):
        raise ConfigError(
            f"listen {endpoint!r}: only loopback is allowed, such as tcp://127.0.0.1:5555; "
            "anyone who reaches the socket can use the pool, and beyond loopback nothing would protect it"
        )
