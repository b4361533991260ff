"""What the core wants done. Executing an instruction changes no state here; what comes of it is an event."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

from ...protocol.messages import Adopt, Message, Thaw
from .events import CallerKey, ClientKey
from .regions import FillerKey, RegionGrant, Tier
from .seen import Seen


class ToClient(NamedTuple):
    """Send a client a message."""

    client: ClientKey
    message: Message
    buffers: list[Any]


class ToChild(NamedTuple):
    """Send a child a message; the fds of ``regions`` go along."""

    child: int
    message: Message
    buffers: list[Any]
    regions: tuple[int, ...]


class ToCaller(NamedTuple):
    """Answer someone who waits at the unix socket; the fds of ``regions`` go along."""

    caller: CallerKey
    message: Message
    regions: tuple[int, ...] = ()


class ForkChild(NamedTuple):
    """Let the zygote of its device fork a child."""

    child: int
    role: str


class SignalChild(NamedTuple):
    """Send a signal to a child and all that it started."""

    child: int
    signal: int


class Interrupt(NamedTuple):
    """Have a worker end an attempt at its next safe point; with ``kill`` end the worker, if it has begun that one.

    It may have ended already, or wait behind others: nobody else's run may be harmed.
    """

    child: int
    attempt: int
    kill: bool


class TellLate(NamedTuple):
    """Tell a client at which call a worker is, if it has begun this attempt of many and not ended it."""

    child: int
    attempt: int
    client: ClientKey
    request: int


class GrantRegions(NamedTuple):
    """Make the new ones of these regions and hand all over; refusal comes back as `FillingFailed`."""

    filler: FillerKey
    grants: list[RegionGrant]


class MakeRegion(NamedTuple):
    """Make a region that is written all the time; it fails as `RegionFailed`.

    A ``slot`` can grow; nobody can change the size of a ``mailbox``.
    """

    region: int
    size_bytes: int
    use: Literal["slot", "mailbox"]


class GrowRegion(NamedTuple):
    """Make a slot larger; it fails as `RegionFailed`, and has the old size then."""

    region: int
    size_bytes: int


class EmptyRegion(NamedTuple):
    """Give the pages of a slot back that lie behind so many bytes."""

    region: int
    kept_bytes: int


class FreeRegions(NamedTuple):
    """Close the regions; their memory goes back when the last mapping is gone."""

    regions: tuple[int, ...]


class MoveRegions(NamedTuple):
    """Move the content of sealed regions out of memory, or back; it comes back as `RegionsMoved`.

    Nobody of the pool maps them.
    """

    regions: tuple[int, ...]
    tier: Tier


class Remember(NamedTuple):
    """Keep, for pools to come, what a weight set needs for inputs of this kind."""

    identity: str
    signature: str
    need_bytes: int


class RememberLoad(NamedTuple):
    """Keep, for pools to come, what a load was seen to take."""

    load_key: str
    seen: Seen


class ToZygote(NamedTuple):
    """Let a device's zygote import modules, or thaw a weight set; the fds of ``regions`` go along."""

    message: Adopt | Thaw
    regions: tuple[int, ...] = ()
    device: int = 0


class ReplaceZygote(NamedTuple):
    """End a device's zygote, if it lives, and start another."""

    device: int = 0


class Report(NamedTuple):
    """Tell the log; nothing may be done silently that the user did not ask for."""

    text: str


class Finish(NamedTuple):
    """Nothing is left to do: the supervisor may exit."""


Instruction: TypeAlias = (
    ToClient | ToChild | ToCaller | ForkChild | SignalChild | Interrupt | TellLate
    | GrantRegions | MakeRegion | GrowRegion | EmptyRegion | FreeRegions | MoveRegions
    | Remember | RememberLoad | ToZygote | ReplaceZygote | Report | Finish
)  # fmt: skip
