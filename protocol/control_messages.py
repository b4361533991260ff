"""The messages between an app or the command line and the supervisor, over the supervisor's unix socket.

The only place where code (pickles, import paths) may enter, because the peer's credentials are checked there.
Numbers, the union and `parse` are in `messages`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .child_messages import Record

# --- app or command line <-> supervisor, over the unix socket ------------------------------------------------


class Configure(NamedTuple):
    """An owner's first message: the settings of the pool that it starts, see `pool.settings.Settings`."""

    settings: dict[str, Any]


class Serving(NamedTuple):
    """The supervisor serves: ``directory`` holds its sockets."""

    directory: str
    pid: int


class Admit(NamedTuple):
    """A local client asks for the token that its `Hello` must present."""


class Admitted(NamedTuple):
    """Say `Hello` with the token on another connection to this socket or at the endpoint, within a few seconds."""

    token: bytes
    endpoint: str
    pool: str


class LoadModel(NamedTuple):
    """Make a model available under a name, or replace it.

    ``options`` are those of `pool.model.Model.options`; ``source`` is ``frozen`` (``pickled`` is a skeleton,
    ``manifest`` says what lies in the regions), ``factory`` (``pickled`` is
    ``(callable, args, kwargs, prepare)``), ``import`` or ``path`` (``pickled`` is empty or the pickled
    ``prepare``, ``manifest`` is ``["package.module:name", body]`` or ``[path, body]``, whose body encodes
    ``[args, kwargs]``). ``modules`` are what unpickling will import, ``paths`` the sender's ``sys.path``,
    ``regions`` those that were filled over this connection, in the manifest's order. With ``eager`` it is loaded
    now and answered when that is done; else when needed. ``example`` is empty, or the body and buffers, as in
    `Submit`, of a request that it is run with as soon as it is loaded.
    """

    name: str
    source: str
    options: dict[str, Any]
    manifest: list[Any]
    pickled: bytes
    modules: list[str]
    paths: list[str]
    regions: list[int]
    eager: bool
    example: list[Any]


class UnloadModel(NamedTuple):
    """Let what was submitted finish, then forget the model and free its memory."""

    name: str


class PinModel(NamedTuple):
    """Keep a model's weights in memory once they are there, or (``is_pinned`` false) let them be evicted again."""

    name: str
    is_pinned: bool


class EvictModel(NamedTuple):
    """Move a model's weights out of memory until they are needed again."""

    name: str


class MoveModel(NamedTuple):
    """Load a model on another device, and forget it on the one that has it."""

    name: str
    device: str


class ExpectModel(NamedTuple):
    """Announce that a model will be handed over: regions that are needed or offered next are on its device.

    A loader that divides a model says so where each part of it goes.

    It may be on any of ``devices``, or on any at all if there are none. Nothing answers it.
    """

    name: str
    devices: list[str]
    size_bytes: int


class NeedMailbox(NamedTuple):
    """Ask for memory for the large arrays of this connection's requests and their results.

    Answered by `MailboxGranted` or `Refused`.
    """

    size_bytes: int


class MailboxGranted(NamedTuple):
    """A mailbox; its fd comes along. It is the client's until it returns it, or its connection ends."""

    mailbox: int
    size_bytes: int


class ReturnMailbox(NamedTuple):
    """Give a mailbox back: the client has nothing in it any more."""

    mailbox: int


class StopPool(NamedTuple):
    """End the supervisor; with ``drain`` after everything accepted is answered."""

    drain: bool


class FollowLogs(NamedTuple):
    """Send what workers printed lately; with ``follow`` also what they print from now on."""

    follow: bool


class LogLines(NamedTuple):
    """Lines of output: ``[pid, role, model, request, text, times, level, at_s]`` each; request 0 when none ran.

    ``level`` is ``info`` or ``warning``, ``at_s`` a time in seconds since 1970.
    """

    lines: list[Any]


class WriteRecord(NamedTuple):
    """Write what the flight recorder has to a file; answered by `Done` with its path."""


class Done(NamedTuple):
    """What was asked over the unix socket is done."""

    note: str


class Refused(NamedTuple):
    """What was asked over the unix socket is not done, and why."""

    error: Record


# --- memory for weights: whoever fills it, and whoever attaches to it -----------------------------------------


class NeedRegions(NamedTuple):
    """From whoever fills regions, an app or a loader: make or find some; see `filling`.

    Each of ``wants`` is ``[size in bytes, digest]``; an empty digest asks for one that is not shared.
    """

    wants: list[Any]


class OfferFile(NamedTuple):
    """From the same: let this file be a region; its fd comes along, to be read. Answered like `NeedRegions`."""

    path: str


class RegionsGranted(NamedTuple):
    """To whoever asked: ``[number, state]`` for each; the fds come along, but for those in state ``wait``.

    States are ``fill`` (it is empty), ``compare`` (it has content of this digest), ``wait`` (another loader is
    filling one: ask for this alone) and, for a file, ``file``: without an fd, there is nothing to be done.
    """

    regions: list[Any]


class RegionsFilled(NamedTuple):
    """From whoever filled regions: they are complete, and nothing of them is mapped here to be written.

    Answered only if it is refused.
    """

    regions: list[int]


class AttachModel(NamedTuple):
    """Ask for a model's weights, to use it in the asking process; it is loaded if it is not.

    Answered by `Attached` or `Refused`. The connection is the lease.
    """

    name: str


class Attached(NamedTuple):
    """A model for whoever asked: what a worker gets in `Thaw`; the fds of its regions come along.

    It is on the GPU of this number, or on none (-1).
    """

    options: dict[str, Any]
    manifest: list[Any]
    skeleton: bytes
    paths: list[str]
    gpu: int


class MoreDescriptors(NamedTuple):
    """The fds that came along belong to the next message, in front of its own: one message carries too few."""
