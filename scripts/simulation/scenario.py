"""What is simulated: a machine, the models on it, who asks for them and how much. From options, or a TOML file."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

SERVICES: Final = ("fixed", "exponential", "lognormal")


@dataclass(frozen=True)
class ModelKind:
    """Some models that are alike.

    Attributes:
        count: how many there are.
        service: how the time of a run is distributed around its mean: ``base_ms``, and ``item_ms`` for each call
            of the batch.
        sigma: of the logarithm, if that is ``lognormal``: with 1, one run in 100 takes over 6 times the mean.
        demand: how often one of them is asked for, relative to others.
        max_batch, max_wait_ms, share, adaptive: as of a `Model` in a pool.
    """

    name: str = "model"
    count: int = 1
    service: str = "lognormal"
    base_ms: float = 10.0
    item_ms: float = 0.0
    sigma: float = 1.0
    demand: float = 1.0
    max_batch: int = 1
    max_wait_ms: float = 0.0
    share: float = 1.0
    adaptive: bool = True

    def run_s(self, calls: int) -> float:
        """Return the mean time of a run of so many calls."""
        return (self.base_ms + self.item_ms * calls) / 1000

    @property
    def call_s(self) -> float:
        """The mean time that one call takes of a worker, when batches are full."""
        return self.run_s(self.max_batch) / self.max_batch


@dataclass(frozen=True)
class ClientKind:
    """Some clients that are alike.

    Attributes:
        count: how many there are.
        demand: how much of the load is theirs, relative to others.
        outstanding: so many requests each keeps unanswered, sending the next when one is answered; it takes no
            part in the load then.
        backlog: so many each sends at once, when the simulation begins, and none after that.
        priority: that of all their requests.
    """

    name: str = "client"
    count: int = 1
    demand: float = 1.0
    outstanding: int = 0
    backlog: int = 0
    priority: int = 0


@dataclass(frozen=True)
class Scenario:
    """What is simulated.

    Attributes:
        devices, workers: how many devices there are, and workers on each.
        load: what is asked for, as a part of what all workers can do when all batches are full.
        warmup_s, duration_s: requests are sent for both, and measured in the second.
        hours: how long a machine is attacked.
    """

    devices: int = 1
    workers: int = 8
    load: float = 0.8
    warmup_s: float = 0.5
    duration_s: float = 1.0
    hours: float = 1.0
    seed: int = 1
    models: tuple[ModelKind, ...] = (ModelKind(),)
    clients: tuple[ClientKind, ...] = (ClientKind(),)

    @property
    def seats(self) -> int:
        """How many workers there are."""
        return self.devices * self.workers

    @property
    def each_model(self) -> list[ModelKind]:
        """The kind of each model, by number."""
        return [kind for kind in self.models for _ in range(kind.count)]

    @property
    def each_client(self) -> list[ClientKind]:
        """The kind of each client, by number."""
        return [kind for kind in self.clients for _ in range(kind.count)]

    @property
    def end_s(self) -> float:
        """When the last request is sent."""
        return self.warmup_s + self.duration_s

    @property
    def capacity(self) -> float:
        """How many calls per second all workers can do, when all batches are full."""
        demand = sum(kind.count * kind.demand for kind in self.models)
        return self.seats * demand / sum(kind.count * kind.demand * kind.call_s for kind in self.models)


#: The least and the most that a number may be.
_BOUNDS: Final = {
    "devices": (1, 1024), "workers": (1, 1024), "load": (0, 100), "warmup_s": (0, 1e6), "duration_s": (1e-3, 1e6),
    "hours": (1e-3, 10_000),
    "seed": (0, 1 << 63), "count": (1, 100_000), "base_ms": (0, 1e6), "item_ms": (0, 1e6), "sigma": (0, 5),
    "demand": (1e-6, 1e6), "max_batch": (1, 4096), "max_wait_ms": (0, 60_000), "share": (1e-6, 1e6),
    "outstanding": (0, 100_000), "backlog": (0, 100_000), "priority": (-100, 100),
}  # fmt: skip
#: What is said of each kind for itself.
_OWN: Final = {"name", "count", "demand"}
_Made = TypeVar("_Made", bound=Scenario | ModelKind | ClientKind)


def read(path: str) -> dict[str, Any]:
    """Return what a TOML file says.

    Raises:
        ValueError: it is none, or cannot be read.
    """
    try:
        return tomllib.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error


def scenario_of(said: Mapping[str, Any]) -> Scenario:
    """Return the scenario that a mapping describes.

    Its keys are the attributes of `Scenario`. ``models`` is how many there are, or a list of mappings with the
    attributes of `ModelKind`; ``clients`` the same. What most of them have in common may stand beside ``devices``.

    Raises:
        ValueError: something is unknown or cannot be; the message says what and where.
    """
    values = dict(said)
    kinds: dict[str, tuple[Any, ...]] = {}
    for key, kind in (("models", ModelKind), ("clients", ClientKind)):
        common = {name: values.pop(name) for name in _names(kind) - _OWN if name in values}
        listed = values.pop(key, 1)
        if type(listed) is int:
            listed = [{"count": listed}]
        if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
            raise ValueError(f"{key} must be how many there are, or a list of tables, not {listed!r}")
        named = [{"name": f"{key[:-1]} {number}"} | one for number, one in enumerate(listed, 1)]
        kinds[key] = tuple(_made(kind, common | one, f"{key}: ") for one in named)
    return _made(Scenario, values | kinds, "")


def _names(kind: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _made(kind: type[_Made], values: dict[str, Any], where: str) -> _Made:
    if unknown := values.keys() - _names(kind):
        raise ValueError(f"{where}unknown {sorted(unknown)}; there are {sorted(_names(kind))}")
    made = kind(**values)
    for field in dataclasses.fields(kind):
        value = getattr(made, field.name)
        right = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}.get(str(field.type))
        if right and type(value) not in right:
            raise ValueError(f"{where}{field.name} must be of type {field.type}, not {value!r}")
        least, most = _BOUNDS.get(field.name, (None, None))
        if least is not None and not least <= value <= most:
            raise ValueError(f"{where}{field.name} must be from {least:,} to {most:,}, not {value!r}")
    if isinstance(made, ModelKind):
        _check_service(made, where)
    return made


def _check_service(kind: ModelKind, where: str) -> None:
    if kind.service not in SERVICES:
        raise ValueError(f"{where}service must be one of {', '.join(SERVICES)}, not {kind.service!r}")
    if kind.base_ms + kind.item_ms <= 0:
        raise ValueError(f"{where}base_ms or item_ms must be more than 0: a run takes time")
