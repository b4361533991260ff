"""A plan on a terminal: a table of the models, a bar for each device, and what is to be known besides."""

from __future__ import annotations

from typing import Final

from .. import tables
from ..views import size
from .views import Plan, PlannedModel

_COLUMNS: Final = (
    "model", "device", "weights>", "its own>", "a run>", "known from", "each worker>", "its loader>", "a load>",
    "flop/byte>",
)  # fmt: skip


def show_plan(plan: Plan) -> None:
    """Print a plan."""
    tables.table(_COLUMNS, map(_row, plan.models))
    tables.say("")
    for line in (*plan.picture(), "", *plan.sentences()):
        tables.say(line)


def _row(one: PlannedModel) -> list[str]:
    if one.error:
        return [one.name, "-", *[""] * (len(_COLUMNS) - 2)]
    return [
        one.name, one.device, _beside(one.weights_bytes, one.actual_weights_bytes), size(one.own_bytes),
        _beside(one.need_bytes, one.actual_need_bytes), one.need_from, _size(one.private_bytes),
        size(one.loading_bytes), _load(one), _intensity(one),
    ]  # fmt: skip


def _size(size_bytes: int | None) -> str:
    return "?" if size_bytes is None else size(size_bytes)


def _beside(planned_bytes: int | None, actual_bytes: int | None) -> str:
    """Return what is planned, and beside it what is, where a pool runs."""
    return _size(planned_bytes) if actual_bytes is None else f"{_size(planned_bytes)} (is {size(actual_bytes)})"


def _load(one: PlannedModel) -> str:
    expected = "?" if one.load_s is None else f"{one.load_s:.1f} s"
    return expected if one.actual_load_s is None else f"{expected} (was {one.actual_load_s:.1f} s)"


def _intensity(one: PlannedModel) -> str:
    if not one.touched_bytes:
        return "?"
    return f"{one.intensity:.1f}{', computes' if one.is_compute_bound else ''}"
