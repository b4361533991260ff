"""A plan as it is told: frozen, readable, and plain with ``to_dict``. All sizes are in bytes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..model import Model, named_models
from ..views import View, size
from .picture import bar


@dataclass(frozen=True, repr=False)
class PlannedModel(View):
    """What one model will take.

    Attributes:
        device: where it goes; several, as ``cpu:0, cpu:1``, if it fits on none alone and is divided.
        weights_bytes: its one copy; exact.
        own_bytes: what of it no other model of the plan lies in.
        shared_with: by model, the bytes that both lie in.
        file_bytes: what of it stays in a weights file that workers map, and takes no memory.
        need_bytes: what a run takes of a slot; None: not known before it runs.
        need_from: where that is from: ``earlier runs``; ``shapes``, of a run of the example without numbers;
            ``a run`` of it with the weights; or why it is not known, ``no example`` or ``a failed run``.
        private_bytes: what each worker has of it besides; None: not known.
        loading_bytes: what its loader takes besides the weights, at its peak.
        flops: floating-point operations of a run of its example.
        touched_bytes: the weights and activations that this run reads and writes.
        is_compute_bound: whether it computes longer than it waits for memory.
        notes: what else is to be known.
        error: why nothing can be told of it; empty if it can.
        load_s: how long its last load took, in an earlier pool; None: not known.
        actual_weights_bytes, actual_need_bytes, actual_load_s: the same where a pool that runs has this model;
            None: none has.
    """

    name: str
    device: str
    weights_bytes: int
    own_bytes: int
    shared_with: dict[str, int]
    file_bytes: int
    need_bytes: int | None
    need_from: str
    private_bytes: int | None
    loading_bytes: int
    flops: int
    touched_bytes: int
    is_compute_bound: bool
    notes: list[str]
    error: str = ""
    actual_weights_bytes: int | None = None
    actual_need_bytes: int | None = None
    load_s: float | None = None
    actual_load_s: float | None = None

    @property
    def intensity(self) -> float:
        """Floating-point operations for each byte that is read or written; 0 if that is not known."""
        return self.flops / self.touched_bytes if self.touched_bytes else 0.0

    def __str__(self) -> str:
        if self.error:
            return f"{self.name}: {self.error}"
        need = "not known" if self.need_bytes is None else size(self.need_bytes)
        text = f"{self.name} on {self.device}: weights {size(self.weights_bytes)}, a run {need} ({self.need_from})"
        return text if self.load_s is None else f"{text}, loaded in {self.load_s:.1f} s"


@dataclass(frozen=True)
class PlannedDevice(View):
    """What a device will have.

    Attributes:
        total_bytes: what there is.
        budget_bytes: the most that the pool may take; 0: all but the reserve.
        reserve_bytes: what stays free for others.
        limit_bytes: the most that the pool may take, by both.
        weights_bytes: unique weights; exact.
        slots_bytes: the workspace: slots x the largest need of each ring.
        mailboxes_bytes: arrays of the examples' arguments, one that runs and one that waits for each slot.
        workers_bytes: private memory of all workers.
        others_bytes: that of supervisor and zygote.
        needed_bytes: all of these.
    """

    name: str
    total_bytes: int
    budget_bytes: int
    reserve_bytes: int
    limit_bytes: int
    weights_bytes: int
    slots_bytes: int
    mailboxes_bytes: int
    workers_bytes: int
    others_bytes: int

    @property
    def needed_bytes(self) -> int:
        """What the pool will take once everything is loaded and runs."""
        return sum(self.accounts().values())

    @property
    def missing_bytes(self) -> int:
        """By how much that is too much; 0: it fits."""
        return max(0, self.needed_bytes - self.limit_bytes)

    def accounts(self) -> dict[str, int]:
        """Return what is taken, by what for."""
        return {
            "weights": self.weights_bytes, "slots": self.slots_bytes, "mailboxes": self.mailboxes_bytes,
            "workers": self.workers_bytes, "others": self.others_bytes,
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return super().to_dict() | {"needed_bytes": self.needed_bytes, "missing_bytes": self.missing_bytes}


@dataclass(frozen=True, repr=False)
class Plan(View):
    """What models will take together, before any of them is loaded.

    Attributes:
        models, devices: each of them.
        workers, slots: how many there will be, on each device.
        order: the order of loads that takes the least memory at once.
        peak_bytes: the most that is taken while they are loaded in this order, one after the other.
        declared_peak_bytes: the same in the order in which they were given.
        files_bytes: pages of libraries, which the system takes back when it needs them, and no budget counts.
        crowded: how many pairs of models that are bound by computing share a device.
        notes: what else is to be known.
    """

    models: tuple[PlannedModel, ...]
    devices: tuple[PlannedDevice, ...]
    workers: int
    slots: int
    order: list[str]
    peak_bytes: int
    declared_peak_bytes: int
    files_bytes: int
    crowded: int
    notes: list[str]

    @property
    def total_bytes(self) -> int:
        """What everything will take, as `Pool.memory` counts it."""
        return sum(one.needed_bytes for one in self.devices) + self.files_bytes

    @property
    def missing_bytes(self) -> int:
        """By how much the devices are too small, or the host is while models are loaded; 0: everything fits."""
        missing_bytes = sum(one.missing_bytes for one in self.devices)
        return max(missing_bytes, self.peak_bytes - sum(one.limit_bytes for one in self.devices))

    @property
    def fits(self) -> bool:
        """Whether everything fits, and could be found out."""
        return not self.missing_bytes and not any(one.error for one in self.models)

    def placed(self, models: Any) -> dict[str, Model]:
        """Return models for a `Pool` that shall do as planned: each on its device, in the order of the loads.

        A model that is not of this plan, could not be planned, has replicas, or would be divided, stays as it is,
        and comes last.

        Args:
            models: as for `Pool`, and as they were given to `plan`.

        Raises:
            ConfigError: a device of the plan is of another machine, and has a name that no pool's can have.
        """
        named = named_models(models)
        devices = {one.name: one.device for one in self.models if not one.error and "," not in one.device}
        order = [name for name in self.order if name in devices and name in named and named[name].replicas == 1]
        placed = {name: dataclasses.replace(named[name], device=devices[name]) for name in order}
        return placed | {name: model for name, model in named.items() if name not in placed}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return super().to_dict() | {
            "devices": [one.to_dict() for one in self.devices],
            "models": [one.to_dict() | {"intensity": one.intensity} for one in self.models],
            "total_bytes": self.total_bytes, "missing_bytes": self.missing_bytes, "fits": self.fits,
        }  # fmt: skip

    def __str__(self) -> str:
        return "\n".join([*map(str, self.models), *self.picture(), *self.sentences()])

    def picture(self) -> list[str]:
        """Return a bar for each device, in lines of at most 80 characters."""
        lines: list[str] = []
        for one in self.devices:
            lines += bar(one.name, one.accounts(), one.limit_bytes, one.reserve_bytes)
        return lines

    def sentences(self) -> list[str]:
        """Return what is to be known besides."""
        lines = [_fit(one) for one in self.devices]
        lines.append(
            f"while loading, at most {size(self.peak_bytes)} in this order: {', '.join(self.order)}"
            + (f" ({size(self.declared_peak_bytes)} as given)" if self._saves_memory else "")
        )
        lines.append(f"libraries: {size(self.files_bytes)} of files, which no budget counts")
        lines += [f"{one.name}: {note}" for one in self.models for note in (*one.notes, one.error) if note]
        return lines + list(self.notes)

    @property
    def _saves_memory(self) -> bool:
        return self.peak_bytes < self.declared_peak_bytes


def _fit(one: PlannedDevice) -> str:
    budget = f"budget {size(one.budget_bytes)}, " if one.budget_bytes else ""
    may = f"{size(one.limit_bytes)} that the pool may take ({budget}{size(one.reserve_bytes)} stay free)"
    if one.missing_bytes:
        fit = f"do NOT fit at once into {may}: {one.missing_bytes:,} bytes too many"
    else:
        fit = f"fit into {may}, {size(one.limit_bytes - one.needed_bytes)} are left"
    return f"{one.name}: {size(one.needed_bytes)} {fit}"
