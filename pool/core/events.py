"""What can happen to the core. Everything it knows of the world comes in as one of these."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from ...protocol.messages import LoadModel, Record, Submit
from ...protocol.messages import ModelBuilt as Built
from .regions import FileIdentity, FillerKey

#: Whatever the outside uses to address a client; the core only compares it.
ClientKey: TypeAlias = Any
#: Whatever the outside uses to address someone who waits for an answer over the unix socket.
CallerKey: TypeAlias = Any


class ClientJoined(NamedTuple):
    """A client was admitted."""

    client: ClientKey


class ClientLeft(NamedTuple):
    """A client said goodbye, died, or was disconnected."""

    client: ClientKey


class Submitted(NamedTuple):
    """A client asks for a run."""

    client: ClientKey
    submit: Submit
    buffers: list[Any]


class Cancelled(NamedTuple):
    """A client does not want an answer any more."""

    client: ClientKey
    request: int


class ModelDeclared(NamedTuple):
    """Someone made a model available."""

    caller: CallerKey
    load: LoadModel


class ModelRemoved(NamedTuple):
    """Someone asks for a model to be unloaded."""

    caller: CallerKey
    name: str


class ModelWanted(NamedTuple):
    """Someone asks to attach to a model; the lease ends with `CallerLeft`."""

    caller: CallerKey
    name: str


class CallerLeft(NamedTuple):
    """Someone at the unix socket is gone, and with it what only it held."""

    caller: CallerKey


class ZygoteReady(NamedTuple):
    """A zygote is up; children can be forked."""


class ZygoteDied(NamedTuple):
    """The zygote is gone; its children live on."""

    cause: str


class ModulesAdopted(NamedTuple):
    """The zygote has imported what it was told to, but for ``refused``; it has ``threads`` threads now."""

    generation: int
    refused: dict[str, str]
    threads: int


class ChildForked(NamedTuple):
    """A child exists."""

    child: int
    pid: int


class ChildExited(NamedTuple):
    """A child is gone, and everything it had sent was handled before this event.

    ``begun`` is the attempt that it had begun and not finished, or 0. ``was_forked`` is false if it never
    came into being, because the zygote died first.
    """

    child: int
    cause: str
    begun: int
    was_forked: bool


class RegionsNeeded(NamedTuple):
    """A loader, or an app at the unix socket, asks for regions of these sizes and digests."""

    filler: FillerKey
    wants: list[tuple[int, bytes]]


class FileOffered(NamedTuple):
    """One of them has a file that shall be a region."""

    filler: FillerKey
    identity: FileIdentity
    size_bytes: int


class RegionsFilled(NamedTuple):
    """Regions are complete, and sealed."""

    filler: FillerKey
    regions: list[int]


class FillingFailed(NamedTuple):
    """A region could not be made, or could not be sealed."""

    filler: FillerKey
    error: Record


class FileChanged(NamedTuple):
    """The file that is a region is not what it was."""

    region: int
    error: Record


class ModelBuilt(NamedTuple):
    """A loader has filled its regions."""

    child: int
    built: Built


class BuildFailed(NamedTuple):
    """A loader could not build its model."""

    child: int
    error: Record


class SetThawed(NamedTuple):
    """A worker has a weight set ready, for so much private memory and these parts, or (``error``) cannot."""

    child: int
    weight_set: int
    private_bytes: int
    opaque: dict[str, str]
    error: Record | None


class SetForgotten(NamedTuple):
    """A worker has unmapped a weight set, or (``unmapped`` false) something in it still holds on."""

    child: int
    weight_set: int
    unmapped: bool


class AttemptEnded(NamedTuple):
    """A worker has answered an attempt: with ``body`` and ``buffers``, or with ``error``."""

    child: int
    attempt: int
    seconds: float
    body: bytes
    buffers: list[Any]
    error: Record | None


class StopAsked(NamedTuple):
    """The supervisor shall end; with ``drain`` after everything accepted is answered."""

    drain: bool


class TimePassed(NamedTuple):
    """The time that `Core.wake_at` named has come."""


Event: TypeAlias = (
    ClientJoined | ClientLeft | Submitted | Cancelled | ModelDeclared | ModelRemoved | ModelWanted | CallerLeft
    | ZygoteReady | ZygoteDied | ModulesAdopted | ChildForked | ChildExited
    | RegionsNeeded | FileOffered | RegionsFilled | FillingFailed | FileChanged
    | ModelBuilt | BuildFailed | SetThawed | SetForgotten | AttemptEnded
    | StopAsked | TimePassed
)  # fmt: skip
