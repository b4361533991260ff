"""The loader: builds one model, freezes it into regions that the supervisor made, reports, exits.

It runs user code, in a process of its own: a crash here is a failed load and nothing more. It gives way to the
workers, which answer requests meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final

from ..protocol.casting import Casts
from ..protocol.channel import Channel, Delivery
from ..protocol.errors import LoadFailed
from ..protocol.filling import Filling, fill
from ..protocol.gpu import Gpu, begin
from ..protocol.granter import ChannelGranter
from ..protocol.manifest import Manifest
from ..protocol.messages import BuildFailed, BuildModel, ModelBuilt
from ..protocol.regions import closing, map_regions
from ..protocol.shareable import check_shareable
from . import heap
from .dividing import Division, divide, layers_of
from .failure import record_of
from .moving import move_what_is_not_plain
from .paths import extend_path
from .sources import Built, build

if TYPE_CHECKING:
    from ..protocol.frozen import Frozen

#: How far it steps back: a worker that wakes up gets the processor at once.
_NICENESS: Final = 10


def main(channel: Channel, ordinal: int) -> None:
    """Build the model that the first message asks for, for a GPU or for the processor (`NO_GPU`)."""
    delivery = channel.receive()
    if delivery is None or not isinstance(delivery.message, BuildModel):
        return
    heap.return_large_blocks()
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    report: ModelBuilt | BuildFailed
    try:
        report = _build(channel, delivery, begin(ordinal))
    except BaseException as error:  # noqa: BLE001 - whatever user code raises is told to the user
        report = BuildFailed(record_of(error, LoadFailed, delivery.message.name))
    channel.send(report)


def _build(channel: Channel, delivery: Delivery, gpu: Gpu | None) -> ModelBuilt:
    from ..protocol.contents import OpenFiles
    from ..protocol.frozen import FreezeError, freeze
    from .rebuilding import tensors_of

    order = delivery.message
    assert isinstance(order, BuildModel)
    casts = Casts() if gpu is not None else None
    model, notes = _handed_over(order, delivery.fds) if order.source == "frozen" else build(order, casts)
    stay_in_files = order.options.get("residency") == "file"
    if gpu is not None:
        move_what_is_not_plain(model, gpu)
    if gpu is not None and stay_in_files:
        stay_in_files, notes = False, [*notes, "residency is 'file', but on a GPU weights are copied"]
    rebuild = False
    frozen: Frozen
    try:
        frozen = freeze(model, stay_in_files=stay_in_files, gpu=gpu)
    except FreezeError as error:
        tensors = tensors_of(model)
        if tensors is None or gpu is not None:
            raise
        notes = [*notes, f"each worker builds it anew around the one copy, because {error.reason}"]
        frozen, rebuild = freeze(tensors, stay_in_files=stay_in_files), True
    if stay_in_files and frozen.in_files_bytes < frozen.manifest.storage_bytes:
        notes = [*notes, _why_not_in_file(frozen.in_files_bytes, frozen.manifest.storage_bytes)]
    check_shareable(order.name, len(frozen.manifest.storages), len(frozen.skeleton))
    division = _division(order, model, frozen)
    del model
    if division is not None:
        notes = [*notes, division.note]
    with OpenFiles() as files:
        regions = _fill(order, frozen.fillings(files, gpu, casts), ChannelGranter(channel), division)
        files.check_unchanged()
    return ModelBuilt(
        frozen.manifest.to_wire(), frozen.skeleton, list(frozen.modules), regions, rebuild, list(notes)
    )


def _handed_over(order: BuildModel, fds: list[int]) -> Built:
    """Return an object that somebody has put into the processor's memory, to be put onto a GPU."""
    from ..protocol.frozen import thaw

    extend_path(order.paths)
    manifest = Manifest.from_wire(order.manifest)
    with closing(fds):
        mappings = map_regions(fds, manifest, None)
    return Built(thaw(order.pickled, manifest, mappings), [])


def _division(order: BuildModel, model: Any, frozen: Frozen) -> Division | None:
    """Return which regions go to which device; None where all go to that which this loader belongs to."""
    room = order.options.get("room")
    if not room:
        return None
    return divide(order.name, layers_of(model, frozen), frozen.manifest.region_sizes_bytes, room)


def _fill(
    order: BuildModel, fillings: list[Filling | str], granter: ChannelGranter, division: Division | None
) -> list[int]:
    is_shared = order.options.get("sharing") != "private"
    if division is None:
        return fill(fillings, granter, share=is_shared, consume=True)
    numbers = [0] * len(fillings)
    for device in dict.fromkeys(division.devices):
        granter.expect(order.name, device)
        places = [place for place, one in enumerate(division.devices) if one == device]
        filled = fill([fillings[place] for place in places], granter, share=is_shared, consume=True)
        for place, number in zip(places, filled, strict=True):
            numbers[place] = number
    return numbers


def _why_not_in_file(in_file_bytes: int, all_bytes: int) -> str:
    return (
        f"{all_bytes - in_file_bytes:,} of {all_bytes:,} bytes were copied although residency is 'file': they are "
        "not in a file, or not as they are there"
    )
