"""Adding up: what was found out about each model, and of a pool without any, becomes a plan. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from ...protocol.gpu import NO_GPU
from ..core.identity import identity_of
from ..core.ledger import Allowance
from ..core.placement import Item, Placement, Room, place
from ..core.predictions import key_of
from ..core.reach import within_reach
from ..core.rings import PRIVATE, slot_bytes
from ..core.seen import NOTHING, Seen
from ..core.workspace import GRAIN_BYTES
from ..devices import gpu_of, peers_of
from .division import divided, may_be_divided
from .found import Base, Found, Part
from .order import Load, best_order, peak_bytes
from .views import Plan, PlannedDevice, PlannedModel

#: From so many floating-point operations for each byte on, runs wait for the cores and not for memory: where the
#: two lines of the roofline model meet (Williams, Waterman and Patterson, 2009). Measured with torch 2.13 on one
#: core of an AMD EPYC: products of matrices reach 87 GFLOP/s, of a matrix and a vector 16.5 GB/s.
RIDGE_FLOPS_PER_BYTE: Final = 5.0
#: Of what a thawed model takes a worker, this part is its own if the zygote thawed it before: measured for
#: all-MiniLM-L6-v2 with its tokenizer, 3 of 21 MB.
_WARM_PART: Final = 1 / 7
#: What so many models, once they have run, take a worker besides what thawing them took is `_RUN_BYTES` times
#: their number to the power of `_RUN_GROWTH`: they share code and kernels, each further one touches less new ones.
#: Fitted to the 204 small architectures of the tests: 2.7 MB for 3 of them, 10.5 for 10, 17 for 30, 40 for 100.
_RUN_BYTES: Final = 1_100_000
_RUN_GROWTH: Final = 0.8
#: What the supervisor keeps of a model besides its skeleton: measured with the same.
_RECORD_BYTES: Final = 90_000
_PAGE_BYTES: Final = 4096

#: By identity of the weight set and signature of the inputs, what runs took, in bytes.
Needs = Mapping[str, Mapping[str, int]]


class Limits(NamedTuple):
    """What a pool may take of a device; see `PlannedDevice`."""

    name: str
    total_bytes: int
    budget_bytes: int
    reserve_bytes: int

    @property
    def limit_bytes(self) -> int:
        """The most that it may take."""
        return Allowance(self.total_bytes, self.budget_bytes, self.reserve_bytes).limit_bytes


class Terms(NamedTuple):
    """What a pool is started with.

    Attributes:
        workers, slots: how many, on each device.
        slot_bytes: the most that a slot may take; 0: as much as need be.
        mailbox_bytes: the most that mailboxes may.
    """

    workers: int
    slots: int
    slot_bytes: int
    mailbox_bytes: int


def made_plan(
    found: Sequence[Found],
    base: Base,
    limits: Sequence[Limits],
    terms: Terms,
    *,
    history: Needs,
    only: Mapping[str, Sequence[str]],
    peers: Mapping[str, Sequence[str]] | None = None,
    seen: Mapping[str, Seen] | None = None,
) -> Plan:
    """Return the plan.

    Args:
        found: what is known of the models.
        base: what the processes take without them.
        limits: of the devices; the supervisor counts on the first.
        terms: how the pool is started.
        history: needs that earlier runs had.
        only: by model, the devices that it may be on.
        peers: by device, the others whose memory its workers can use; default: as it is without GPUs.
        seen: what earlier loads took, by their key.
    """
    known = [one for one in found if not one.error]
    needs = {one.name: _need(one, history) for one in known}
    peers = peers or peers_of([one.name for one in limits], {})
    placement, on = _placed(known, base, limits, terms, needs, only, peers)
    devices = tuple(_device(one, on[one.name], base, terms, needs, is_first=one is limits[0]) for one in limits)
    loads, declared = _orders(on, known)
    rest_bytes = sum(one.needed_bytes - one.weights_bytes for one in devices)
    notes = [] if placement.is_best else ["there may be a better placement: the search for it was ended"]
    return Plan(
        models=tuple(_model(one, found, placement.device_of, needs, seen or {}) for one in found),
        devices=devices,
        workers=terms.workers,
        slots=terms.slots,
        order=[load.model for load in loads],
        peak_bytes=rest_bytes + peak_bytes(loads),
        declared_peak_bytes=rest_bytes + peak_bytes(declared),
        files_bytes=base.files_bytes,
        crowded=placement.crowded,
        notes=notes,
    )


class _Need(NamedTuple):
    """What a run takes of a slot, and where that is known from."""

    size_bytes: int | None
    source: str


#: Of what no run is known of, or takes none: a part of a model, on another device than the one where it runs.
_NO_NEED: Final = _Need(None, "")


def _need(one: Found, history: Needs) -> _Need:
    """Return the larger of what earlier runs took and what was found out now."""
    keys = [part.key if part.key[0] != "private" else None for part in one.parts]
    earlier_bytes = max(history.get(identity_of(one.name, one.manifest, keys), {}).values(), default=0)
    # What is remembered is rounded up: where both say the same, what was found out is more exact.
    if earlier_bytes > _rounded_up(one.need_bytes or 0, GRAIN_BYTES):
        return _Need(earlier_bytes, "earlier runs")
    if one.need_bytes is None:
        return _Need(None, "a failed run" if one.reason else "no example")
    return _Need(one.need_bytes, {"shapes": "shapes", "run": "a run"}[one.how])


def _rounded_up(size_bytes: int, unit_bytes: int) -> int:
    return -(-size_bytes // unit_bytes) * unit_bytes


def _unique(parts: Sequence[Part]) -> dict[tuple[Any, ...], int]:
    """Return the sizes of regions that take memory, equal ones once."""
    return {part.key: part.size_bytes for part in parts if not part.is_file}


def _private_bytes(one: Found, workers: int) -> int:
    """Return what all workers together, and the zygote, have of a model besides its weights."""
    each_bytes = one.private_bytes or 0
    return round(each_bytes * (1 + workers * _WARM_PART)) if one.options.get("warm") else each_bytes * workers


def run_bytes(models: int) -> int:
    """Return what so many models that have run take a worker besides."""
    return round(_RUN_BYTES * models**_RUN_GROWTH)


def _kept_bytes(one: Found) -> int:
    """Return what the supervisor keeps of a model."""
    return one.skeleton_bytes + _RECORD_BYTES


def is_compute_bound(one: Found) -> bool:
    """Whether a run of the example computes longer than it waits for memory."""
    return bool(one.touched_bytes) and one.flops / one.touched_bytes >= RIDGE_FLOPS_PER_BYTE


# --- devices -------------------------------------------------------------------------------------------------


def _placed(
    known: Sequence[Found],
    base: Base,
    limits: Sequence[Limits],
    terms: Terms,
    needs: Mapping[str, _Need],
    only: Mapping[str, Sequence[str]],
    peers: Mapping[str, Sequence[str]],
) -> tuple[Placement, dict[str, list[Found]]]:
    """Return where models go, and what of which is on each device; those that fit nowhere alone are divided."""
    rooms = [
        Room(
            one.name,
            one.limit_bytes - _processes_bytes(base, terms, len(known), is_first=one is limits[0]),
            terms.slots,
        )
        for one in limits
    ]
    items = {
        one.name: Item(
            one.name, _unique(one.parts), needs[one.name].size_bytes or 0,
            _private_bytes(one, terms.workers) + _kept_bytes(one), is_compute_bound(one),
            tuple(only.get(one.name, ())),
        )
        for one in known
    }  # fmt: skip
    allowed = {
        one.name: [room for room in rooms if not items[one.name].devices or room.name in items[one.name].devices]
        for one in known
    }
    too_large = [one for one in known if _is_divided(one, items[one.name], allowed[one.name], peers)]
    placement = place([items[one.name] for one in known if one not in too_large], rooms)
    on = {room.name: [one for one in known if placement.device_of.get(one.name) == room.name] for room in rooms}
    free_bytes = {room.name: room.free_bytes - placement.used_bytes[room.name] for room in rooms}
    for one in too_large:
        room_bytes = {room.name: free_bytes[room.name] for room in allowed[one.name]}
        pieces = divided(one, within_reach(room_bytes, peers))
        for device, piece in pieces.items():
            on[device].append(piece)
            free_bytes[device] -= sum(_unique(piece.parts).values())
        placement.device_of[one.name] = ", ".join(pieces)
    return placement, on


def _is_divided(one: Found, item: Item, rooms: Sequence[Room], peers: Mapping[str, Sequence[str]]) -> bool:
    """Return whether a pool would divide a model: it may and can, and there is no device that has room for it."""
    names = {room.name for room in rooms}
    if not may_be_divided(one) or all(names.isdisjoint(peers[name]) for name in names):
        return False
    weights_bytes = sum(item.parts_bytes.values())
    return all(
        weights_bytes + item.private_bytes + room.slots * item.need_bytes > room.free_bytes for room in rooms
    )


def _processes_bytes(base: Base, terms: Terms, models: int, *, is_first: bool) -> int:
    return _others_bytes(base, is_first=is_first) + terms.workers * (base.worker_bytes + run_bytes(models))


def _device(
    limits: Limits,
    models: Sequence[Found],
    base: Base,
    terms: Terms,
    needs: Mapping[str, _Need],
    *,
    is_first: bool,
) -> PlannedDevice:
    weights = {key: size_bytes for one in models for key, size_bytes in _unique(one.parts).items()}
    inputs_bytes = max((one.inputs_bytes for one in models), default=0)
    return PlannedDevice(
        *limits,
        limit_bytes=limits.limit_bytes,
        weights_bytes=sum(weights.values()),
        slots_bytes=_slots_bytes(models, terms, needs, is_gpu=gpu_of(limits.name) != NO_GPU),
        mailboxes_bytes=min(2 * terms.slots * inputs_bytes, terms.mailbox_bytes),
        workers_bytes=terms.workers * (base.worker_bytes + run_bytes(len(models)))
        + sum(_private_bytes(one, terms.workers) for one in models),
        others_bytes=_others_bytes(base, is_first=is_first) + sum(map(_kept_bytes, models)),
    )


def _others_bytes(base: Base, *, is_first: bool) -> int:
    """Return what a device's zygote takes, and on the first one the supervisor."""
    return base.zygote_bytes + (base.supervisor_bytes if is_first else 0)


def _slots_bytes(models: Sequence[Found], terms: Terms, needs: Mapping[str, _Need], *, is_gpu: bool) -> int:
    """Return what all slots will take: in each ring as much as its largest need, for each run at once.

    On a GPU a slot takes all of its size, whatever of it is used.
    """
    rings: dict[str, int] = {}
    for one in models:
        ring = one.options.get("workspace", "")
        need_bytes = _rounded_up(needs.get(one.name, _NO_NEED).size_bytes or 0, _PAGE_BYTES)
        # Outside of slots too, runs take memory: each worker's own.
        most_bytes = terms.slot_bytes if ring != PRIVATE else 0
        rings[ring] = max(rings.get(ring, 0), min(need_bytes, most_bytes or need_bytes))
    if is_gpu:
        rings |= {
            name: slot_bytes(need_bytes, terms.slot_bytes, keeps_size=True)
            for name, need_bytes in rings.items()
            if name != PRIVATE
        }
    return terms.slots * sum(rings.values())


# --- models --------------------------------------------------------------------------------------------------


def _model(
    one: Found,
    found: Sequence[Found],
    device_of: Mapping[str, str],
    needs: Mapping[str, _Need],
    seen: Mapping[str, Seen],
) -> PlannedModel:
    parts = {part.key: part for part in one.parts}
    device = device_of.get(one.name, "")
    devices = set(device.split(", "))
    beside = [
        other
        for other in found
        if other is not one and devices & set(device_of.get(other.name, "nowhere").split(", "))
    ]
    shared = {
        other.name: sum(parts[key].size_bytes for key in {part.key for part in other.parts} & parts.keys())
        for other in beside
    }
    of_others = {part.key for other in beside for part in other.parts}
    need = needs.get(one.name, _NO_NEED)
    notes = list(one.notes)
    if one.reason:
        done = "was run with its weights" if one.how == "run" else "could not be run"
        notes.append(f"its example {done}: {one.reason}")
    if "," in device:
        notes.append("it fits on no device alone: a pool divides it by layers")
    if one.opaque:
        notes.append(f"private to each worker: {', '.join(one.opaque)}")
    return PlannedModel(
        name=one.name,
        device=device,
        weights_bytes=sum(part.size_bytes for part in parts.values()),
        own_bytes=sum(part.size_bytes for key, part in parts.items() if key not in of_others),
        shared_with={name: size_bytes for name, size_bytes in shared.items() if size_bytes},
        file_bytes=sum(part.size_bytes for part in parts.values() if part.is_file),
        need_bytes=need.size_bytes,
        need_from=need.source,
        private_bytes=one.private_bytes,
        loading_bytes=one.loading_bytes,
        flops=one.flops,
        touched_bytes=one.touched_bytes,
        is_compute_bound=is_compute_bound(one),
        notes=notes,
        error=one.error,
        load_s=seen.get(key_of(one.options), NOTHING).load_s,
    )


def _orders(on: Mapping[str, Sequence[Found]], known: Sequence[Found]) -> tuple[list[Load], list[Load]]:
    """Return the better order of loads, and that in which the models were given."""
    device_of = {one.name: device for device, models in on.items() for one in models}
    declared = _loads(known, device_of)
    by_name = {one.name: one for one in known}
    best = _loads([by_name[load.model] for load in best_order(declared)], device_of)
    return (best if peak_bytes(best) < peak_bytes(declared) else declared), declared


def _loads(models: Sequence[Found], device_of: Mapping[str, str]) -> list[Load]:
    """Return the loads of models in this order: what is there already is not stored again."""
    there: set[tuple[Any, ...]] = set()
    loads: list[Load] = []
    for one in models:
        parts = {(device_of[one.name], *key): size_bytes for key, size_bytes in _unique(one.parts).items()}
        new = {key: size_bytes for key, size_bytes in parts.items() if key not in there}
        there |= parts.keys()
        kept_bytes = sum(new.values())
        # What a loader has built it gives back region by region, as they are filled.
        step_bytes = max(kept_bytes, one.loading_bytes + max(new.values(), default=0))
        loads.append(Load(one.name, kept_bytes, step_bytes))
    return loads
