"""The loader: builds one model, freezes it into regions that the supervisor made, reports, exits.

It runs user code, in a process of its own: a crash here is a failed load and nothing more.
"""

from __future__ import annotations

from ..protocol.channel import Channel
from ..protocol.errors import LoadFailed
from ..protocol.messages import BuildFailed, BuildModel, ModelBuilt, NeedRegions, RegionsGranted
from .failure import record_of
from .sources import build


def main(channel: Channel) -> None:
    """Build the model that the first message asks for."""
    delivery = channel.receive()
    if delivery is None or not isinstance(delivery.message, BuildModel):
        return
    try:
        report = _build(channel, delivery.message)
    except BaseException as error:  # noqa: BLE001 - whatever user code raises is told to the user
        report = BuildFailed(record_of(error, LoadFailed, delivery.message.name))
    if report is not None:
        channel.send(report)


def _build(channel: Channel, order: BuildModel) -> ModelBuilt | None:
    from ..protocol.frozen import freeze

    frozen = freeze(build(order))
    sizes_bytes = list(frozen.manifest.region_sizes_bytes)
    if sizes_bytes:
        channel.send(NeedRegions(sizes_bytes))
        granted = channel.receive()
        if granted is None or not isinstance(granted.message, RegionsGranted):
            return None
        frozen.write(granted.fds)
    return ModelBuilt(frozen.manifest.to_wire(), frozen.skeleton, list(frozen.modules))
