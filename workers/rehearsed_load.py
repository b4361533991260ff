"""A load without memory for it: a loader as it is, and this process in the place of the supervisor.

::

    loader, in a fork ── NeedRegions(size, digest) ──► here: noted
                      ◄── /dev/null, to be filled ───
                      ── ModelBuilt ─────────────────► manifest, skeleton, modules, and the key of each region

The loader builds, hashes and "fills" as ever, so what is noted is what it would have been. Only what the user's
code itself holds while it builds is memory. Where the contents are needed after all, they are kept in memfds.
"""

from __future__ import annotations

import os
import socket
from typing import Any, NamedTuple

from ..protocol.channel import Channel, Delivery
from ..protocol.errors import LoadFailed, from_record
from ..protocol.gpu import NO_GPU
from ..protocol.messages import (
    BuildFailed,
    BuildModel,
    ModelBuilt,
    NeedRegions,
    OfferFile,
    RegionsFilled,
    RegionsGranted,
)
from . import loader
from .throwaway import Fork


class Region(NamedTuple):
    """What a region would have been.

    Attributes:
        size_bytes: its size, in whole pages.
        key: equal for regions of equal content, and of no other; the path for a file; empty for one that is not
            to be shared.
        is_file: whether it is a file, which takes no memory.
        fd: of what it holds; -1 if that was not kept.
    """

    size_bytes: int
    key: bytes
    is_file: bool
    fd: int


class RehearsedLoad(NamedTuple):
    """What came of a load.

    Attributes:
        built: as the loader told it; the numbers of its regions are indices into `regions`.
        regions: the regions that it asked for.
        grown_bytes: what the loader took besides them, at its peak.
    """

    built: ModelBuilt
    regions: list[Region]
    grown_bytes: int

    def fds(self) -> list[int]:
        """Return the descriptors of the kept regions, in the manifest's order."""
        return [self.regions[number].fd for number in self.built.regions]


def rehearse_load(order: BuildModel, *, keep: bool = False) -> RehearsedLoad:
    """Have a loader build a model in a fork of this process.

    Args:
        order: what it is told.
        keep: keep what it fills regions with, which takes memory; the descriptors are the caller's to close.

    Raises:
        PoolError: it cannot be built, or the loader died.
    """
    ours, theirs = socket.socketpair()
    fork = Fork(lambda: loader.main(Channel(theirs), NO_GPU), order.name)
    theirs.close()
    supervisor = _Supervisor(Channel(ours), keep=keep)
    try:
        answer = supervisor.serve(order)
    except BaseException:
        supervisor.close_regions()
        raise
    finally:
        ours.close()
        grown_bytes = fork.outcome().grown_bytes
    return RehearsedLoad(answer, supervisor.regions, grown_bytes)


class _Supervisor:
    """Does for one loader what a supervisor does."""

    def __init__(self, channel: Channel, *, keep: bool) -> None:
        self._channel = channel
        self._keep = keep
        self.regions: list[Region] = []

    def serve(self, order: BuildModel) -> ModelBuilt:
        self._channel.send(order)
        while (delivery := self._channel.receive()) is not None:
            message = delivery.message
            if isinstance(message, NeedRegions):
                self._grant(message.wants)
            elif isinstance(message, OfferFile):
                self._take_file(delivery)
            elif isinstance(message, ModelBuilt):
                return message
            elif isinstance(message, BuildFailed):
                raise from_record(message.error)
            else:
                assert isinstance(message, RegionsFilled), message
        raise LoadFailed(f"{order.name}: the loader died")

    def close_regions(self) -> None:
        for region in self.regions:
            if region.fd >= 0:
                os.close(region.fd)

    def _grant(self, wants: list[Any]) -> None:
        granted: list[list[Any]] = []
        fds: list[int] = []
        for size_bytes, digest, _ in wants:
            fds.append(self._empty(size_bytes))
            granted.append([len(self.regions), "fill"])
            self.regions.append(Region(size_bytes, digest, is_file=False, fd=fds[-1] if self._keep else -1))
        self._channel.send(RegionsGranted(granted), fds=fds)
        if not self._keep:
            for fd in fds:
                os.close(fd)

    def _empty(self, size_bytes: int) -> int:
        if not self._keep:
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        fd = os.memfd_create("onecopy-rehearsed", os.MFD_CLOEXEC)
        os.ftruncate(fd, size_bytes)
        return fd

    def _take_file(self, delivery: Delivery) -> None:
        [fd] = delivery.fds
        status = os.fstat(fd)
        key = repr((status.st_dev, status.st_ino, status.st_mtime_ns)).encode()
        if not self._keep:
            delivery.close_fds()
        self._channel.send(RegionsGranted([[len(self.regions), "file"]]))
        self.regions.append(Region(status.st_size, key, is_file=True, fd=fd if self._keep else -1))
