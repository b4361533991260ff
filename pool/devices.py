"""`DeviceSettings`: how much of a device a pool may take. Frozen and validated.

A device is where weights lie and workers run. There is one, ``cpu``, unless it is said otherwise: a machine can be
divided into logical ones, ``cpu:0``, ``cpu:1`` and so on, each with a budget and cores of its own, or by its NUMA
nodes. GPUs are ``cuda:0``, ``cuda:1`` and so on, as this process can see them.

Standard library only: the supervisor imports this, and it must start in a tenth of a second.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

from ..protocol.gpu import NO_GPU
from ..protocol.limits import MAX_DEVICES, MAX_WORKERS
from . import environment
from .checks import ConfigError, check_choice, check_count, read_size
from .memory.gpus import ordinal_of, visible

#: The only device of a machine that is not divided.
WHOLE: Final = "cpu"
#: What a device may be called.
NAMES: Final = re.compile(r"cpu(:\d{1,3})?|numa:\d{1,3}|cuda:\d{1,3}")
_BY_UUID: Final = re.compile(r"cuda:GPU-[\da-f-]+", re.IGNORECASE)
#: Divide the machine by its nodes.
BY_NODE: Final = "numa"
#: All GPUs that this process can see.
ALL_GPUS: Final = "cuda"
#: Kept free unless it is said otherwise: this part of the memory, and at most so much.
_RESERVED_PART: Final = 20
_MOST_RESERVED_BYTES: Final = 1 << 30
#: Of a GPU: for what libraries take there besides what is accounted for.
_GPU_RESERVED_BYTES: Final = 256 << 20
_KEYS: Final = ("budget", "reserve", "workers", "slots", "threads", "cores", "share")


def _usual_reserve_bytes() -> int:
    return min(environment.memory_bytes() // _RESERVED_PART, _MOST_RESERVED_BYTES)


@dataclass(frozen=True)
class DeviceSettings:
    """How much of a device a pool may take.

    Args:
        budget_bytes: the most that everything of the pool on it may take together; 0: all that there is but the
            reserve, or an equal part of that where a machine is divided.
        reserve_bytes: how much the pool leaves free for others; default: a twentieth of the memory that this
            machine or container has, at most 1 GiB; of a GPU 256 MiB.
        workers, slots, threads: as in `Settings`, for this device; 0: as there.
        cores: those that its processes may use; empty: any, or an equal part of them where a machine is divided.
        share: of a GPU, how many percent of its multiprocessors each process may use; 0: all. It takes ``mps``.

    Raises:
        ConfigError: something of it cannot be.
    """

    budget_bytes: int = 0
    reserve_bytes: int = field(default_factory=_usual_reserve_bytes)
    workers: int = 0
    slots: int = 0
    threads: int = 0
    cores: tuple[int, ...] = ()
    share: int = 0

    def __post_init__(self) -> None:
        check_count("budget", self.budget_bytes, 0, 1 << 48)
        check_count("reserve", self.reserve_bytes, 0, 1 << 48)
        for key in ("workers", "slots", "threads"):
            check_count(key, getattr(self, key), 0, MAX_WORKERS)
        check_count("share", self.share, 0, 100)
        total_bytes = environment.memory_bytes()
        if self.reserve_bytes >= total_bytes:
            raise ConfigError(
                f"reserve must be less than the {total_bytes:,} bytes that this machine or container has, "
                f"not {self.reserve_bytes:,}"
            )
        mine = environment.my_cores()
        if foreign := [core for core in self.cores if core not in mine]:
            raise ConfigError(f"cores {foreign} are not among those that this process may use: {mine}")

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> DeviceSettings:
        """Return the settings that a message carries."""
        plain = dict(values)
        plain["cores"] = tuple(plain.get("cores", ()))
        return cls(**plain)


def read_devices(devices: Any) -> dict[str, DeviceSettings]:
    """Return the settings of all devices.

    Args:
        devices: ``{"cpu": {"budget": "2GiB", "reserve": "512MiB"}}``, or fewer keys. Several of the names
            ``cpu:N`` divide the machine; ``"numa"`` divides it by its nodes. ``"cuda"`` is all GPUs; one may be
            named by its UUID, too, or the beginning of that: ``cuda:GPU-1b6f``. It is ``cuda:N`` from then on.

    Raises:
        ConfigError: a device or key is not known, or a value cannot be; the message names it.
    """
    if devices == BY_NODE:
        return _divided(_by_node())
    if devices == ALL_GPUS:
        return {f"cuda:{gpu.ordinal}": DeviceSettings(reserve_bytes=_GPU_RESERVED_BYTES) for gpu in visible()}
    if not isinstance(devices, Mapping):
        raise ConfigError(
            f"devices must be {ALL_GPUS!r}, {BY_NODE!r} or a mapping such as {{'cpu': {{'budget': '2GiB'}}}}, "
            f"not {devices!r}"
        )
    by_name = {_known_name(name): table for name, table in cast("Mapping[Any, Any]", devices).items()}
    given = {name: _read_device(name, table) for name, table in by_name.items()}
    if len(given) > MAX_DEVICES:
        raise ConfigError(f"a pool may have {MAX_DEVICES} devices, not {len(given)}")
    parts = {name: one for name, one in given.items() if gpu_of(name) == NO_GPU}
    if len(parts) > 1 and WHOLE in parts:
        raise ConfigError(f"{WHOLE!r} is the whole machine; name its parts 'cpu:0', 'cpu:1' and so on")
    divided = _divided(parts) if len(parts) > 1 else parts
    return {name: divided.get(name, one) for name, one in given.items()} or {WHOLE: DeviceSettings()}


def check_device(name: Any) -> str:
    """Return what a device may be called.

    Raises:
        ConfigError: none is ever called that.
    """
    if not isinstance(name, str) or not NAMES.fullmatch(name):
        raise ConfigError(
            "the name of a device must be 'cpu', or 'cpu:0', 'cpu:1' and so on, or 'cuda:0' and so on, "
            f"not {name!r}"
        )
    return name


def gpu_of(name: str) -> int:
    """Return which GPU a device is, among those that this process can see; `NO_GPU` if it is none."""
    kind, _, number = name.partition(":")
    return int(number) if kind == "cuda" else NO_GPU


def peers_of(names: Iterable[str], of_gpus: Mapping[int, Collection[int]]) -> dict[str, Sequence[str]]:
    """Return, by device, the others whose memory its processes can use as if it were its own.

    Args:
        names: of the devices.
        of_gpus: by number of a GPU, those others whose memory it can use; none where that is not known.
    """
    numbers = {name: gpu_of(name) for name in names}
    return {
        name: [
            other
            for other, its in numbers.items()
            if other != name and (its in of_gpus.get(number, ()) if number != NO_GPU else its == NO_GPU)
        ]
        for name, number in numbers.items()
    }


def _by_node() -> dict[str, DeviceSettings]:
    """Return a device for each node; what the pool may take of the machine is divided as its memory is."""
    nodes = environment.numa_nodes()
    if not nodes:
        raise ConfigError("the kernel of this machine tells of no NUMA nodes")
    reserve_bytes = _usual_reserve_bytes()
    limit_bytes = environment.memory_bytes() - reserve_bytes
    all_bytes = max(1, sum(node.memory_bytes for node in nodes.values()))
    return {
        f"numa:{number}": DeviceSettings(limit_bytes * node.memory_bytes // all_bytes, cores=node.cores)
        for number, node in nodes.items()
    }


def _divided(given: Mapping[str, DeviceSettings]) -> dict[str, DeviceSettings]:
    """Return devices that are parts of one machine: what is not said of one is an equal part of the whole."""
    shares = _shares_of_cores(len(given))
    made: dict[str, DeviceSettings] = {}
    for (name, one), cores in zip(given.items(), shares, strict=True):
        limit_bytes = environment.memory_bytes() - one.reserve_bytes
        budget_bytes = one.budget_bytes or max(1, limit_bytes // len(given))
        made[name] = replace(one, budget_bytes=budget_bytes, cores=one.cores or cores)
    return made


def _shares_of_cores(parts: int) -> Sequence[tuple[int, ...]]:
    """Return cores of its own for each of so many parts; none where there are too few, or no core is anybody's."""
    mine = environment.my_cores()
    if len(mine) < parts or environment.cores_are_limited():
        return [()] * parts
    bounds = [len(mine) * part // parts for part in range(parts + 1)]
    return [tuple(mine[first:last]) for first, last in itertools.pairwise(bounds)]


def _known_name(name: Any) -> Any:
    """Return the name with its number of a GPU that is called by its UUID; any other as it is."""
    if isinstance(name, str) and _BY_UUID.fullmatch(name):
        return f"cuda:{ordinal_of(name, visible())}"
    return name


def _read_device(name: Any, table: Any) -> DeviceSettings:
    where = f"devices.{check_device(name)}"
    if isinstance(table, DeviceSettings):
        return table
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} must be a mapping with budget and reserve, not {table!r}")
    values: dict[str, Any] = {}
    for key, value in cast("Mapping[Any, Any]", table).items():
        check_choice(f"a key of {where}", key, _KEYS)
        if key == "share" and gpu_of(name) == NO_GPU:
            raise ConfigError(f"{where}.share is a part of a GPU, which {name!r} is not")
        if key in ("budget", "reserve"):
            values[f"{key}_bytes"] = read_size(f"{where}.{key}", value)
        else:
            values[key] = _read_cores(where, value) if key == "cores" else value
    if gpu_of(name) != NO_GPU:
        values.setdefault("reserve_bytes", _GPU_RESERVED_BYTES)
    try:
        return DeviceSettings(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}") from error


def _read_cores(where: str, value: Any) -> tuple[int, ...]:
    is_list = isinstance(value, list | tuple)
    if not is_list or not value or any(type(core) is not int for core in cast("list[Any]", value)):
        raise ConfigError(f"{where}.cores must be a list of the numbers of cores, such as [0, 1], not {value!r}")
    return tuple(dict.fromkeys(cast("list[int]", value)))
