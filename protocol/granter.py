"""How whoever fills regions asks the supervisor for them: over the channel that it has anyway."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import cast

from .channel import Channel
from .errors import InvalidRequest, SupervisorLost, from_record
from .filling import Grant, GrantState, Want
from .messages import ExpectModel, NeedRegions, OfferFile, Refused, RegionsFilled, RegionsGranted


class ChannelGranter:
    """A `filling.Granter` at the other end of a channel.

    Args:
        channel: blocking; nothing but answers may come on it meanwhile.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def need(self, wants: Sequence[Want]) -> list[Grant]:
        """Ask for regions; see `filling.Granter.need`."""
        self._channel.send(NeedRegions([list(want) for want in wants]))
        return self._granted()

    def expect(self, name: str, device: str) -> None:
        """Let what is asked for next, for a model, be on this device."""
        self._channel.send(ExpectModel(name, [device], 0))

    def offer(self, path: str) -> int:
        """Make a file a region; see `filling.Granter.offer`."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._channel.send(OfferFile(path), fds=(fd,))
        finally:
            os.close(fd)
        return self._granted()[0].number

    def filled(self, number: int) -> None:
        """Tell that a region has its content."""
        self._channel.send(RegionsFilled([number]))

    def _granted(self) -> list[Grant]:
        delivery = self._channel.receive()
        if delivery is None:
            raise SupervisorLost("the supervisor is gone")
        message = delivery.message
        if isinstance(message, Refused):
            raise from_record(message.error)
        if not isinstance(message, RegionsGranted):
            raise InvalidRequest(f"{type(message).__name__} came instead of regions")
        fds = iter(delivery.fds)
        return [
            Grant(number, cast("GrantState", state), next(fds) if state in ("fill", "compare") else -1)
            for number, state in message.regions
        ]
