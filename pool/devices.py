"""`DeviceSettings`: how much memory of a device a pool may take. Frozen and validated.

Standard library only: the supervisor imports this, and it must start in a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from . import environment
from .checks import ConfigError, check_choice, check_count, read_size

#: The devices that there are.
DEVICES: Final = ("cpu",)
#: Kept free unless it is said otherwise: this part of the memory, and at most so much.
_RESERVED_PART: Final = 20
_MOST_RESERVED_BYTES: Final = 1 << 30


def _usual_reserve_bytes() -> int:
    return min(environment.memory_bytes() // _RESERVED_PART, _MOST_RESERVED_BYTES)


@dataclass(frozen=True)
class DeviceSettings:
    """How much memory of a device a pool may take.

    Args:
        budget_bytes: the most that everything of the pool may take together; 0: all that there is but the reserve.
        reserve_bytes: how much the pool leaves free for others; default: a twentieth of the memory that this
            machine or container has, at most 1 GiB.

    Raises:
        ConfigError: something of it cannot be.
    """

    budget_bytes: int = 0
    reserve_bytes: int = field(default_factory=_usual_reserve_bytes)

    def __post_init__(self) -> None:
        check_count("budget", self.budget_bytes, 0, 1 << 48)
        check_count("reserve", self.reserve_bytes, 0, 1 << 48)
        total_bytes = environment.memory_bytes()
        if self.reserve_bytes >= total_bytes:
            raise ConfigError(
                f"reserve must be less than the {total_bytes:,} bytes that this machine or container has, "
                f"not {self.reserve_bytes:,}"
            )


def read_devices(devices: Any) -> dict[str, DeviceSettings]:
    """Return the settings of all devices from ``{"cpu": {"budget": "2GiB", "reserve": "512MiB"}}``, or fewer.

    Raises:
        ConfigError: a device or key is not known, or a size cannot be; the message names it.
    """
    if not isinstance(devices, Mapping):
        raise ConfigError(f"devices must be a mapping such as {{'cpu': {{'budget': '2GiB'}}}}, not {devices!r}")
    given = {name: _read_device(name, table) for name, table in cast("Mapping[Any, Any]", devices).items()}
    return {name: given.get(name) or DeviceSettings() for name in DEVICES}


def _read_device(name: Any, table: Any) -> DeviceSettings:
    check_choice("the name of a device", name, DEVICES)
    where = f"devices.{name}"
    if isinstance(table, DeviceSettings):
        return table
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} must be a mapping with budget and reserve, not {table!r}")
    sizes_bytes: dict[str, int] = {}
    for key, value in cast("Mapping[Any, Any]", table).items():
        check_choice(f"a key of {where}", key, ("budget", "reserve"))
        sizes_bytes[f"{key}_bytes"] = read_size(f"{where}.{key}", value)
    try:
        return DeviceSettings(**sizes_bytes)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}") from error
