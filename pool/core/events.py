"""What can happen to the core. Everything it knows of the world comes in as one of these."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, TypeAlias

from ...protocol.messages import LoadModel, Record, Submit, Used
from ...protocol.messages import ModelBuilt as Built
from .regions import FileIdentity, FillerKey, Tier, Want

#: Whatever the outside uses to address a client; the core only compares it.
ClientKey: TypeAlias = Hashable
#: Whatever the outside uses to address someone who waits for an answer over the unix socket.
CallerKey: TypeAlias = Hashable


class ClientJoined(NamedTuple):
    """A client was admitted; a local one by way of the unix socket, where it is known as ``caller``."""

    client: ClientKey
    caller: CallerKey = None


class ClientLeft(NamedTuple):
    """A client said goodbye, died, or was disconnected."""

    client: ClientKey


class Submitted(NamedTuple):
    """A client asks for a run."""

    client: ClientKey
    submit: Submit
    buffers: list[Any]


class Cancelled(NamedTuple):
    """A client does not want an answer any more; with ``kill``, not even at the price of a worker."""

    client: ClientKey
    request: int
    kill: bool = False


class Continued(NamedTuple):
    """A client is ready for so many more items of a stream."""

    client: ClientKey
    request: int
    items: int


class MailboxWanted(NamedTuple):
    """Someone at the unix socket asks for a mailbox, at least as large as this."""

    caller: CallerKey
    size_bytes: int


class MailboxReturned(NamedTuple):
    """Someone at the unix socket has no more use for a mailbox."""

    caller: CallerKey
    mailbox: int


class ModelDeclared(NamedTuple):
    """Someone made a model available."""

    caller: CallerKey
    load: LoadModel


class ModelExpected(NamedTuple):
    """Somebody at the unix socket will hand over a model: what it asks for next is memory for that.

    Or a loader, known by its number, that divides one: what it asks for next is to be on this device.

    Attributes:
        devices: those that it may be on; empty: any.
        size_bytes: how large its weights are.
    """

    caller: CallerKey
    name: str
    devices: list[str]
    size_bytes: int


class ModelArrived(NamedTuple):
    """A model comes from a device that has no room for it, with all that waits for it there.

    ``requests`` are those of that device, accepted and not answered; ``refusals`` and ``room`` as in
    `weights.WeightSet`, ``is_pinned`` as in `weights.Model`.
    """

    load: LoadModel
    waiting_for_load: list[CallerKey]
    waiting_to_attach: list[CallerKey]
    requests: list[Any]
    refusals: dict[str, str]
    room: dict[str, int]
    is_pinned: bool


class PartReleased(NamedTuple):
    """A model that is divided among devices is no more: what lies here of it is free."""

    name: str


class ModelRemoved(NamedTuple):
    """Someone asks for a model to be unloaded."""

    caller: CallerKey
    name: str


class ModelWanted(NamedTuple):
    """Someone asks to attach to a model; the lease ends with `CallerLeft`."""

    caller: CallerKey
    name: str


class ModelPinned(NamedTuple):
    """Somebody wants a model to stay in memory, or (``is_pinned`` false) not any more."""

    caller: CallerKey
    name: str
    is_pinned: bool


class ModelEvicted(NamedTuple):
    """Somebody wants a model out of memory, until it is needed again."""

    caller: CallerKey
    name: str


class ModelMoved(NamedTuple):
    """Somebody wants a model on another device, called ``target``."""

    caller: CallerKey
    name: str
    target: str


class CallerLeft(NamedTuple):
    """Someone at the unix socket is gone, and with it what only it held."""

    caller: CallerKey


class ZygoteReady(NamedTuple):
    """A device's zygote is up; children can be forked.

    ``without_slots`` tells why they cannot run in slots, if so.
    """

    without_slots: str = ""
    device: int = 0


class ZygoteDied(NamedTuple):
    """A device's zygote is gone; its children live on."""

    cause: str
    device: int = 0


class ModulesAdopted(NamedTuple):
    """The zygote has imported what it was told to, but for ``refused``; it has ``threads`` threads now."""

    generation: int
    refused: dict[str, str]
    threads: int
    device: int = 0


class SetAdopted(NamedTuple):
    """The zygote has thawed a weight set, as in `SetThawed`, or (``error``) could not, and must fork no more."""

    weight_set: int
    private_bytes: int
    opaque: dict[str, str]
    error: Record | None
    device: int = 0


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
    wants: Sequence[Want]


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


class RegionMade(NamedTuple):
    """A slot or mailbox is there, or is larger now."""

    region: int
    size_bytes: int


class RegionFailed(NamedTuple):
    """A slot or mailbox could not be made, or not be made larger."""

    region: int
    error: Record


class RegionsMoved(NamedTuple):
    """The content of regions is where `MoveRegions` wanted it, after so long; or (``error``) where it was."""

    regions: tuple[int, ...]
    tier: Tier
    seconds: float
    error: Record | None


class MemoryAvailable(NamedTuple):
    """What the system could give now without swapping or killing; told before each event that asks for memory.

    It is told of one device, or of all (-1).
    """

    available_bytes: int
    device: int = -1


class MemoryMeasured(NamedTuple):
    """What the machine and the pool's processes on a device take now, in bytes.

    Attributes:
        total_bytes: what the machine has, or the container may take.
        available_bytes: how much of it could be taken without anything being swapped out or killed.
        slots_bytes, mailboxes_bytes: the pages of all slots, and of all mailboxes.
        workers, loaders: private memory of each worker, and of each loader.
        others_bytes: private memory of all other processes there.
        device: which device.
    """

    total_bytes: int
    available_bytes: int
    slots_bytes: int
    mailboxes_bytes: int
    workers: dict[int, int]
    loaders: dict[int, int]
    others_bytes: int
    device: int = 0


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
    """A worker, or a throwaway fork, has a weight set ready, or (``error``) cannot.

    It took so much private memory, and has these parts outside of the regions.
    """

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


class SlotUsed(NamedTuple):
    """A worker tells what a run took of its slot; the answer comes after this."""

    child: int
    used: Used


class ItemYielded(NamedTuple):
    """A worker has the next item of a stream."""

    child: int
    attempt: int
    body: bytes
    buffers: list[Any]


class AttemptEnded(NamedTuple):
    """A worker has done with an attempt; ``answers`` and ``buffers`` as in `protocol.child_messages.Ran`."""

    child: int
    attempt: int
    seconds: float
    answers: list[Any]
    buffers: list[Any]


class StopAsked(NamedTuple):
    """The supervisor shall end; with ``drain`` after everything accepted is answered."""

    drain: bool


class TimePassed(NamedTuple):
    """The time that `Core.wake_at` named has come."""


Event: TypeAlias = (
    ClientJoined | ClientLeft | Submitted | Cancelled | Continued | MailboxWanted | MailboxReturned
    | ModelExpected | ModelDeclared | ModelArrived | PartReleased | ModelRemoved | ModelWanted | ModelPinned
    | ModelEvicted | ModelMoved
    | CallerLeft
    | ZygoteReady | ZygoteDied | ModulesAdopted | SetAdopted | ChildForked | ChildExited
    | RegionsNeeded | FileOffered | RegionsFilled | FillingFailed | RegionMade | RegionFailed | FileChanged
    | RegionsMoved | MemoryAvailable | MemoryMeasured
    | ModelBuilt | BuildFailed | SetThawed | SetForgotten | SlotUsed | ItemYielded | AttemptEnded
    | StopAsked | TimePassed
)  # fmt: skip
