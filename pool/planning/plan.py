"""`plan`: what models would take together, told before any of them is loaded."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from ...protocol.cuda import GpuInfo
from ...protocol.errors import SupervisorLost
from ...protocol.gpu import NO_GPU
from .. import environment
from ..checks import ConfigError, check_choice, read_size
from ..client import Pool
from ..devices import ALL_GPUS, BY_NODE, NAMES, DeviceSettings, gpu_of, peers_of, read_devices
from ..memory.gpus import visible
from ..model import Model, named_models
from ..settings import MAILBOX_BYTES, Settings, read_workers
from ..sources import app_paths
from ..supervisor.history import History
from ..toml import read_toml
from .accounts import Limits, Terms, made_plan
from .rehearsal import rehearse
from .views import Plan


def plan(
    models: Any,
    *,
    workers: int | tuple[int, int] | Literal["auto"] | None = None,
    slots: int | None = None,
    threads: int | None = None,
    slot: int | str = 0,
    mailbox: int | str = MAILBOX_BYTES,
    devices: Mapping[str, Any] | Literal["numa", "cuda"] | None = None,
    only: Mapping[str, Sequence[str]] | None = None,
) -> Plan:
    """Tell what models would take, and whether that fits, without loading them.

    Their sizes and contents are found out by building them one after the other in a process that then ends, and
    what a run takes by running their examples there on tensors that have shapes only; or, where a model asks for
    values, with its weights. It takes seconds, and none of it is left afterwards but the files that it read.

    Args:
        models: as for `Pool`.
        workers: how many worker processes, at most; this and what follows is meant as for `Pool`.
        slots: how many of them may run at once.
        threads: threads that torch uses in one run.
        slot: how much memory each slot may take.
        mailbox: how much shared memory each client may use for large arrays.
        devices: as for `Pool`. Besides, any number of devices of other names may be given to see where models
            would go on another machine, each with a ``budget``: ``{"a": {"budget": "2GiB"}, "b": …}``. Of GPUs
            that are not on this one, none is expected to reach another's memory, so no model is divided there.
        only: by model, the devices that it may be on, where its ``device`` does not say so.

    Raises:
        ConfigError: a setting or model cannot be.
        SupervisorLost: the processes that find it out did not start.
    """
    settings = Settings(
        workers=read_workers(workers)[1],
        slots=slots or 0,
        threads=threads or 0,
        slot_bytes=read_size("slot", slot),
        mailbox_bytes=read_size("mailbox", mailbox),
    )
    return plan_for(settings, named_models(models), app_paths(), devices, only or {})


def plan_for(
    settings: Settings,
    models: Mapping[str, Model],
    paths: Sequence[str],
    devices: Mapping[str, Any] | str | None = None,
    only: Mapping[str, Sequence[str]] | None = None,
) -> Plan:
    """Return the plan for a pool of these settings; see `plan`.

    Args:
        settings: of the pool.
        models: by name.
        paths: where modules may lie.
        devices: as for `plan`; default: those of the settings.
        only: by model, the devices that it may be on.
    """
    devices = settings.devices if devices is None else devices
    here = _gpus_for(devices)
    limits = _limits(devices, here)
    # Where a pool has GPUs, a model that names no device goes to one.
    gpus = [one.name for one in limits if gpu_of(one.name) != NO_GPU]
    allowed = {name: one.devices or gpus for name, one in models.items() if one.devices or gpus}
    only = allowed | dict(only or {})
    _check_only(only, models, limits)
    found, base = rehearse(models, paths, workers=settings.workers, slots=settings.slots, threads=settings.threads)
    history = History(environment.history_path(), lambda *_: None, lambda _: None)
    terms = Terms(settings.workers, settings.slots, settings.slot_bytes, settings.mailbox_total_bytes)
    needs, loads = history.known
    peers = peers_of([one.name for one in limits], {gpu.ordinal: gpu.peers for gpu in here})
    made = made_plan(found, base, limits, terms, history=needs, seen=loads, only=only, peers=peers)
    notes = list(made.notes)
    if history.complaint:
        notes.append(history.complaint)
    if any(gpu_of(one.name) != NO_GPU for one in limits):
        notes.append("of processes this plans the processor's memory; on a GPU each has a CUDA context instead")
    replicated = [name for name, one in models.items() if one.replicas > 1]
    if replicated:
        notes.append(f"of each model this plans one replica, although {', '.join(replicated)} shall have several")
    return dataclasses.replace(made, notes=notes)


def plan_file(path: str) -> Plan:
    """Return the plan for a pool.toml; if that pool is served already, with what its models take.

    Raises:
        ConfigError: something in the file cannot be.
    """
    settings, models = read_toml(path)
    made = plan_for(settings, models, [os.path.dirname(os.path.abspath(path))])
    try:
        pool = Pool.connect(f"ipc://{environment.default_directory(settings.name)}")
    except SupervisorLost:
        return made
    try:
        return _beside(made, pool)
    finally:
        pool.shutdown()


def plan_like(pool: Pool, models: Any) -> Plan:
    """Return the plan for models in a pool like one that runs, with what those that it has already take."""
    status = pool.status()
    count = len(status.zygotes)
    settings = Settings(workers=len(status.workers) // count, slots=status.slots // count, threads=status.threads)
    told = pool.memory().devices
    devices = {one.name: DeviceSettings(one.budget_bytes, one.reserve_bytes) for one in told}
    return _beside(plan_for(settings, named_models(models), app_paths(), devices), pool)


def _beside(made: Plan, pool: Pool) -> Plan:
    """Return a plan with what its models take in a pool that runs, as far as that has them."""
    weights_bytes = {one.name: one.weights_bytes for one in pool.models() if one.weights_bytes}
    load_s = {one.name: one.actual.load_s for one in pool.models()}
    needs_bytes = {name: need for ring in pool.status().rings for name, need in ring.needs_bytes.items() if need}
    models = tuple(
        dataclasses.replace(
            one,
            actual_weights_bytes=weights_bytes.get(one.name),
            actual_need_bytes=needs_bytes.get(one.name),
            actual_load_s=load_s.get(one.name),
        )
        for one in made.models
    )
    return dataclasses.replace(made, models=models)


def _gpus_for(devices: Mapping[str, Any] | str) -> Sequence[GpuInfo]:
    """Return the GPUs of this machine, where a plan has some: to find that out takes tenths of a second."""
    if devices != ALL_GPUS and not any(str(name).startswith("cuda:") for name in devices):
        return []
    try:
        return visible()
    except ConfigError:
        return []


def _limits(devices: Mapping[str, Any] | str, here: Sequence[GpuInfo]) -> list[Limits]:
    """Return what may be taken of each device.

    Args:
        devices: as for `plan`.
        here: the GPUs of this machine.

    Raises:
        ConfigError: one cannot be.
    """
    if devices in (BY_NODE, ALL_GPUS) or all(NAMES.fullmatch(str(name)) for name in devices):
        return [
            Limits(name, _total_bytes(name, one, here), one.budget_bytes, one.reserve_bytes)
            for name, one in read_devices(devices).items()
        ]
    return [_limits_of(name, table) for name, table in cast("Mapping[str, Any]", devices).items()]


def _total_bytes(name: str, device: DeviceSettings, here: Sequence[GpuInfo]) -> int:
    """Return how much memory a device has; of a GPU that is on another machine, what its budget needs."""
    ordinal = gpu_of(name)
    if ordinal == NO_GPU:
        return environment.memory_bytes()
    totals_bytes = {gpu.ordinal: gpu.total_bytes for gpu in here}
    if ordinal not in totals_bytes and not device.budget_bytes:
        raise ConfigError(f"devices.{name} is not on this machine; give it a budget to plan for another")
    return totals_bytes.get(ordinal, device.budget_bytes + device.reserve_bytes)


def _limits_of(name: str, table: Any) -> Limits:
    if not isinstance(table, Mapping) or "budget" not in table:
        raise ConfigError(f"devices.{name} must be a mapping with a budget, such as {{'budget': '2GiB'}}")
    sizes_bytes = {"reserve": 0}
    for key, value in cast("Mapping[Any, Any]", table).items():
        check_choice(f"a key of devices.{name}", key, ("budget", "reserve"))
        sizes_bytes[key] = read_size(f"devices.{name}.{key}", value)
    return Limits(name, sizes_bytes["budget"], sizes_bytes["budget"], sizes_bytes["reserve"])


def _check_only(only: Mapping[str, Sequence[str]], models: Mapping[str, Model], limits: Sequence[Limits]) -> None:
    for name, devices in only.items():
        check_choice("the name of a model in only", name, list(models))
        for device in devices:
            check_choice(f"a device in only[{name!r}]", device, [one.name for one in limits])
