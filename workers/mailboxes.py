"""Large arrays of local clients, in memory that a worker shares with them.

What a client sends is copied out before the model sees it: a model may write into its inputs or keep them, and a
retry must see what was sent. Where the model is on a GPU, it is copied on the way there. What the model returns is
copied into the block that the client set aside, as far as it fits there. Nobody else writes into a block that came
with a run until the run is answered, or this process is known to be dead.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from ..protocol.errors import PoolError
from ..protocol.mapping import buffer_in, map_shared
from ..protocol.messages import MapMailbox, UnmapMailbox
from ..protocol.tensors import Buffer, Place, aligned, read_place, read_places

_Bytes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"


class Mailboxes:
    """The mailboxes that are mapped here, by number.

    Args:
        copies: whether what is taken is copied; without that, whoever takes it copies it before anybody else
            sees it, and lets go of it before the run is answered.
    """

    def __init__(self, *, copies: bool = True) -> None:
        self._copies = copies
        self._mapped: dict[int, _Bytes | Exception] = {}

    def map(self, order: MapMailbox, fds: list[int]) -> None:
        """Map a mailbox, taking its descriptor out of the list; a failure is told by each run that needs it."""
        fd = fds.pop()
        try:
            mapping = map_shared(fd, order.size_bytes, is_inherited=False)
        except (OSError, ValueError) as error:
            self._mapped[order.mailbox] = error
        else:
            self._mapped[order.mailbox] = np.frombuffer(buffer_in(mapping, 0, order.size_bytes), np.uint8)
        finally:
            os.close(fd)

    def unmap(self, order: UnmapMailbox) -> None:
        """Let go of a mailbox; nothing that was made from it is left, because everything was copied."""
        del self._mapped[order.mailbox]

    def take(self, places: Sequence[Any], following: Sequence[Buffer]) -> Sequence[Buffer]:
        """Return the buffers of a request: those that followed it, and those that lie in mailboxes.

        Raises:
            InvalidRequest: the places contradict what followed.
            PoolError: a mailbox cannot be mapped.
        """
        if not places:
            return following
        rest = iter(following)
        return [
            next(rest) if place is None else self._taken(place) for place in read_places(places, len(following))
        ]

    def put(self, reply: Sequence[int], buffers: Sequence[Buffer]) -> tuple[list[Any], Sequence[Buffer]]:
        """Copy the buffers of a result into the place that is for them, as far as they fit.

        Returns:
            The places for `Ran`, and the buffers that did not fit and follow it.

        Raises:
            PoolError: the mailbox cannot be mapped.
        """
        if not reply or not buffers:
            return [], buffers
        block = self._bytes_at(read_place(list(reply)))
        places: list[list[int]] = []
        following: list[Buffer] = []
        end = 0
        for buffer in buffers:
            source = np.frombuffer(buffer, np.uint8)
            if end + source.nbytes > block.nbytes:
                places.append([])
                following.append(buffer)
                continue
            np.copyto(block[end : end + source.nbytes], source)
            places.append([end, source.nbytes])
            end += aligned(source.nbytes)
        return (places if any(places) else []), following

    def _taken(self, place: Place) -> Buffer:
        if not self._copies:
            return self._bytes_at(place).data
        # By one thread: torch would share this out among its own, and to wake them costs more than a copy of
        # megabytes does, or a whole time slice where the cores are busy.
        copy = torch.empty(place.size_bytes, dtype=torch.uint8, device="cpu").numpy()
        np.copyto(copy, self._bytes_at(place))
        return copy.data

    def _bytes_at(self, place: Place) -> _Bytes:
        mapped = self._mapped[place.mailbox]
        if isinstance(mapped, Exception):
            raise PoolError(f"mailbox {place.mailbox} cannot be used here: {mapped}")
        return mapped[place.offset_bytes : place.offset_bytes + place.size_bytes]
