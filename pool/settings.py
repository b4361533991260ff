"""`Settings`: what a supervisor is told when it starts. Frozen and validated.

Standard library only: the supervisor imports this, and it must start in a tenth of a second.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..protocol.gpu import NO_GPU
from ..protocol.limits import MAX_BUFFER_BYTES, MAX_WORKERS
from . import environment
from .checks import ConfigError, check_choice, check_count, check_flag, check_keys, check_name
from .devices import DeviceSettings, gpu_of, read_devices

#: What one client may have in mailboxes unless it is said otherwise.
MAILBOX_BYTES: Final = 256 << 20
LOG_FORMATS: Final = ("text", "json")
MPS_MODES: Final = ("off", "auto", "on")


@dataclass(frozen=True)
class Settings:
    """What a supervisor is told when it starts.

    Args:
        workers: how many worker processes, at most, on each device.
        least_workers: how many at least: more are forked while requests wait for one, and let go when they were
            idle for long; 0: there are always as many.
        slots: how many of them may run at once; default: the workers, at most the cores.
        adaptive: let the number of workers that run at once follow what gives the highest throughput, between one
            and ``slots``; default: where ``slots`` is not given.
        threads: threads that torch uses in one run; default: cores divided by slots.
        slot_bytes: how much memory each slot may take; default: as much as its models turn out to need.
        pin: let the runs that are under way at once use cores of their own, where there are enough.
        name: what the pool is called in status and logs.
        mailbox_bytes: how much memory one local client may have for its large arrays, and for those of results;
            with 0 they all travel through sockets, which is slower.
        mailbox_total_bytes: how much all clients together may have; default: an eighth of the budget, or of the
            memory that this machine or container has.
        listen: tcp endpoints, besides the ipc endpoint that is always there. Those beyond loopback need ``keys``.
        keys: folder of the keys that clients over tcp have to have, see `keys`; default: none are asked for.
        devices: by name, how much of each device the pool may take.
        max_private_bytes: a worker whose private memory grows beyond this is replaced between two requests; 0:
            none is, as on a GPU.
        metrics: ``HOST:PORT`` where metrics and health are served over HTTP; default: nowhere.
        metrics_public: whether that may be beyond loopback, where anyone may read them.
        record_events: how many events the flight recorder keeps of the pool's start, and of the time before it is
            asked; default: ``$ONECOPY_RECORD_EVENTS``, or 1000.
        log_format: how the log of a standalone supervisor is written: ``text``, or ``json``, an object a line.
        mps: whether processes compute on a GPU at the same time, by NVIDIA's Multi-Process Service, instead of in
            turns: ``off``; ``auto``, where that can be; ``on``, or the pool does not start. A fault of one process
            ends all of them then.

    Raises:
        ConfigError: something of it cannot be.
    """

    workers: int = 1
    least_workers: int = 0
    slots: int = 0
    adaptive: bool | None = None
    threads: int = 0
    slot_bytes: int = 0
    pin: bool = True
    name: str = "default"
    mailbox_bytes: int = MAILBOX_BYTES
    mailbox_total_bytes: int = 0
    listen: tuple[str, ...] = ()
    keys: str = ""
    devices: Mapping[str, DeviceSettings] = field(default_factory=lambda: read_devices({}))
    max_private_bytes: int = 0
    metrics: str = ""
    metrics_public: bool = False
    log_format: str = "text"
    record_events: int | None = None
    mps: str = "off"

    def __post_init__(self) -> None:
        check_count("workers", self.workers, 1, MAX_WORKERS)
        check_count("the least number of workers", self.least_workers, 0, self.workers)
        if self.adaptive is None:
            object.__setattr__(self, "adaptive", not self.slots)
        check_flag("adaptive", self.adaptive)
        cores = max(1, environment.cores() // len(self.devices))
        slots = self.slots or min(self.workers, cores)
        check_count("slots", slots, 1, MAX_WORKERS)
        object.__setattr__(self, "slots", min(slots, self.workers))
        object.__setattr__(self, "threads", self.threads or max(1, cores // self.slots))
        check_count("threads", self.threads, 1, MAX_WORKERS)
        check_flag("pin", self.pin)
        check_count("slot_bytes", self.slot_bytes, 0, 1 << 48)
        check_name("name", self.name)
        check_count("mailbox_bytes", self.mailbox_bytes, 0, MAX_BUFFER_BYTES)
        budgets_bytes = [one.budget_bytes for name, one in self.devices.items() if gpu_of(name) == NO_GPU]
        most_bytes = sum(budgets_bytes) if budgets_bytes and all(budgets_bytes) else environment.memory_bytes()
        total_bytes = self.mailbox_total_bytes or most_bytes // 8
        object.__setattr__(self, "mailbox_total_bytes", total_bytes)
        check_count("mailbox_total_bytes", total_bytes, 1, 1 << 48)
        for endpoint in self.listen:
            check_listen(endpoint, has_keys=bool(self.keys))
        check_count("max_private_bytes", self.max_private_bytes, 0, 1 << 48)
        check_flag("metrics_public", self.metrics_public)
        if self.metrics:
            read_address("metrics", self.metrics, is_public=self.metrics_public)
        if self.record_events is None:
            object.__setattr__(self, "record_events", environment.recorded_events())
        check_count("record_events", self.record_events, 0, 1 << 30)
        if self.log_format not in LOG_FORMATS:
            raise ConfigError(f"log_format must be {' or '.join(LOG_FORMATS)}, not {self.log_format!r}")
        check_choice("mps", self.mps, MPS_MODES)
        shared = [name for name, one in self.devices.items() if one.share]
        if shared and self.mps == "off":
            raise ConfigError(f"devices.{shared[0]}.share needs mps = 'on' or 'auto'")

    def on(self, device: str) -> Settings:
        """Return what holds for one of the devices."""
        own = self.devices[device]
        workers = own.workers or self.workers
        return dataclasses.replace(
            self,
            workers=workers,
            least_workers=min(self.least_workers, workers),
            slots=min(own.slots or self.slots, workers),
            threads=own.threads or self.threads,
            devices={device: own},
        )

    @property
    def cores(self) -> list[int]:
        """The cores that processes of this device may use, where it is one and has some of its own; else empty."""
        return list(next(iter(self.devices.values())).cores) if len(self.devices) == 1 else []

    @property
    def gpu(self) -> int:
        """Which GPU this device is, where it is one and one of these; else `NO_GPU`."""
        return gpu_of(next(iter(self.devices))) if len(self.devices) == 1 else NO_GPU

    @property
    def seat_cores(self) -> list[list[int]]:
        """By slot, the cores that runs there may use; empty: any, because there are too few to tell them apart.

        Nor where a control group grants less time than all these cores have: it says how much, not where, and each
        container of a machine would take the same cores first.
        """
        mine = self.cores or environment.my_cores()
        is_limited = environment.cores_are_limited()
        if not self.pin or is_limited or self.slots * self.threads > len(mine):
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
        devices = {name: DeviceSettings.from_wire(one) for name, one in plain.get("devices", {}).items()}
        plain["devices"] = read_devices(devices)
        return cls(**plain)


def read_workers(value: Any, devices: int = 1) -> tuple[int, int]:
    """Return how many workers there shall be on each device at least, 0 for always as many, and at most.

    Args:
        value: a number; two, the least and the most; ``"auto"``: from one to the cores; None: the cores.
        devices: how many there are, which have as many cores each.

    Raises:
        ConfigError: it is none of these.
    """
    cores = max(1, environment.cores() // devices)
    if value is None:
        return 0, cores
    if value == "auto":
        return 1, cores
    if type(value) is int:
        return 0, value
    if isinstance(value, tuple | list):
        least, most = value if len(value) == 2 else (0, 0)
        if type(least) is type(most) is int and 1 <= least <= most:
            return least, most
    raise ConfigError(
        f"workers must be a whole number, two (the least and the most, such as [1, 8]), or 'auto'; not {value!r}"
    )


def check_listen(endpoint: str, *, has_keys: bool = False) -> None:
    """Refuse to listen anywhere but on loopback without keys: whoever reaches the socket could use the pool.

    Raises:
        ConfigError: the endpoint is not ``tcp://HOST:PORT``, or others reach it and there are no keys.
    """
    match = re.fullmatch(r"tcp://(\[[^\[\]]+\]|[^\s\[\]:]+):(\d{1,5}|\*)", endpoint)
    if match is None or (match[2] != "*" and int(match[2]) > 65535):
        raise ConfigError(
            f"listen {endpoint!r} is not of the form tcp://HOST:PORT, such as tcp://127.0.0.1:5555, or "
            "tcp://0.0.0.0:5555 with keys"
        )
    if not has_keys and not re.fullmatch(r"127(?:\.\d{1,3}){3}|\[::1\]|localhost", match[1]):
        raise ConfigError(
            f"listen {endpoint!r}: only loopback is allowed without keys, such as tcp://127.0.0.1:5555; anyone "
            "who reaches the socket could use the pool. `onecopy keys new NAME` makes keys, for keys = 'NAME'"
        )


def read_address(what: str, address: str, *, is_public: bool) -> tuple[str, int]:
    """Return the host, without brackets, and the port of an address to serve HTTP at.

    Args:
        what: the setting, for errors.
        address: ``HOST:PORT``.
        is_public: whether it may be beyond loopback.

    Raises:
        ConfigError: it is none, or beyond loopback and must not be.
    """
    match = re.fullmatch(r"(\[[^\[\]]+\]|[^\s\[\]:]+):(\d{1,5})", address)
    if match is None or int(match[2]) > 65535:
        raise ConfigError(f"{what} {address!r} is not of the form HOST:PORT, such as 127.0.0.1:9464")
    if not is_public and not re.fullmatch(r"127(?:\.\d{1,3}){3}|\[::1\]|localhost", match[1]):
        raise ConfigError(
            f"{what} {address!r}: beyond loopback anyone may read it; if that is meant, say {what}_public = true "
            f"(or --{what}-public), else {what} = '127.0.0.1:{match[2]}'"
        )
    return match[1].strip("[]"), int(match[2])
