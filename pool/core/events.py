"""What can happen to the core. Everything it knows of the world comes in as one of these."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from ...protocol.messages import LoadModel, Record, Submit

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
    """Someone made a model available; ``regions`` are those of a frozen one, sealed."""

    caller: CallerKey
    load: LoadModel
    regions: tuple[Any, ...]


class ModelRemoved(NamedTuple):
    """Someone asks for a model to be unloaded."""

    caller: CallerKey
    name: str


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
    """A loader asks for memory."""

    child: int
    sizes_bytes: list[int]


class ModelBuilt(NamedTuple):
    """A loader has filled its regions, and they are sealed."""

    child: int
    manifest: list[Any]
    skeleton: bytes
    modules: list[str]
    regions: tuple[Any, ...]


class BuildFailed(NamedTuple):
    """A loader could not build its model, or its memory was refused."""

    child: int
    error: Record


class SetThawed(NamedTuple):
    """A worker has a weight set ready, or (``error``) cannot have it."""

    child: int
    weight_set: int
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
    ClientJoined | ClientLeft | Submitted | Cancelled | ModelDeclared | ModelRemoved
    | ZygoteReady | ZygoteDied | ModulesAdopted | ChildForked | ChildExited
    | RegionsNeeded | ModelBuilt | BuildFailed | SetThawed | SetForgotten | AttemptEnded
    | StopAsked | TimePassed
)  # fmt: skip
