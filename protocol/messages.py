"""The messages, frozen, one union; what each field means stands here and in `child_messages`, and nowhere else.

Four conversations use them:

* client <-> supervisor over ZeroMQ: `Hello` to `Pong`. Values only, never code.
* app or command line <-> supervisor over the supervisor's unix socket: `Configure` to `Refused`. The only
  place where code (pickles, import paths) may enter, because the peer's credentials are checked there.
* whoever fills regions with weights <-> supervisor: `NeedRegions` to `RegionsFilled`, over that same socket from
  an app, over its own from a loader.
* supervisor <-> zygote and supervisor <-> loader or worker over inherited unix sockets: `child_messages`.

A message is a named tuple: cheap to make, and packed as it stands. `parse` checks every field's type, so that
whoever receives a message can rely on its annotations.
"""

from __future__ import annotations

import typing
from typing import Any, Final, NamedTuple, NoReturn, TypeAlias

from .child_messages import (
    Adopt,
    Adopted,
    BuildFailed,
    BuildModel,
    Exited,
    Forget,
    Forgot,
    ForkChild,
    Forked,
    Leave,
    MapMailbox,
    MapSlot,
    ModelBuilt,
    Ran,
    Record,
    Run,
    RunFailed,
    Thaw,
    Thawed,
    ThawFailed,
    UnmapMailbox,
    UnmapSlot,
    Used,
    ZygoteReady,
)
from .errors import InvalidRequest

# --- client <-> supervisor, over ZeroMQ ----------------------------------------------------------------------


class Hello(NamedTuple):
    """A client's first message; over ipc with the token it got from the unix socket, over tcp without."""

    token: bytes
    pid: int


class Welcome(NamedTuple):
    """The supervisor knows this client now."""

    pool: str
    workers: int


class Rejected(NamedTuple):
    """The supervisor will not talk to this client, or did not understand it; the connection is over."""

    error: Record


class Submit(NamedTuple):
    """Run a model. ``body`` encodes ``[args, kwargs]``; its large arrays follow, or lie in a mailbox.

    ``timeout_s`` 0 means no deadline; ``retries`` is how many deaths of a worker the request may survive.
    ``places`` is empty, or tells of each buffer where it lies: ``[mailbox, offset, size]``, or ``[]`` if it
    follows. ``reply`` is empty, or a place for the buffers of the result.
    """

    request: int
    model: str
    method: str
    timeout_s: float
    retries: int
    body: bytes
    places: list[Any]
    reply: list[int]


class Cancel(NamedTuple):
    """Give a request up; if it is not answered yet, `Failed` answers it at once."""

    request: int


class Query(NamedTuple):
    """Ask for ``models``, ``memory`` or ``status``; answered by a `Reply`."""

    request: int
    topic: str


class Reply(NamedTuple):
    """The answer to a request. ``body`` encodes the result; its large arrays follow, or lie in a mailbox.

    ``places`` is empty, or tells of each buffer where it lies: ``[offset, size]`` within the place that was for
    them, or ``[]`` if it follows. All other places of the request are the client's again.
    """

    request: int
    body: bytes
    places: list[Any]


class Failed(NamedTuple):
    """The other possible end of a request."""

    request: int
    error: Record


class Released(NamedTuple):
    """After `Failed`, for a request with places: no worker uses them any more."""

    request: int


class Goodbye(NamedTuple):
    """A client leaves; what it had asked for is dropped."""


class Ping(NamedTuple):
    """Are you there?"""


class Pong(NamedTuple):
    """Yes."""


# --- app or command line <-> supervisor, over the unix socket ------------------------------------------------


class Configure(NamedTuple):
    """An owner's first message: the settings of the pool that it starts, see `pool.config.Settings`."""

    settings: dict[str, Any]


class Serving(NamedTuple):
    """The supervisor serves: ``directory`` holds its sockets."""

    directory: str
    pid: int


class Admit(NamedTuple):
    """A local client asks for the token that its `Hello` must present."""


class Admitted(NamedTuple):
    """Use the token at the ipc endpoint, within a few seconds."""

    token: bytes
    endpoint: str
    pool: str


class LoadModel(NamedTuple):
    """Make a model available under a name, or replace it.

    ``options`` are those of `pool.config.Model.options`; ``source`` is ``frozen`` (``pickled`` is a skeleton,
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
    """Lines of output: ``[pid, role, model, request, text, count]`` each; request 0 when none ran."""

    lines: list[Any]


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
    """A model for whoever asked: what a worker gets in `Thaw`; the fds of its regions come along."""

    options: dict[str, Any]
    manifest: list[Any]
    skeleton: bytes
    paths: list[str]


class MoreDescriptors(NamedTuple):
    """The fds that came along belong to the next message, in front of its own: one message carries too few."""


Message: TypeAlias = (
    Hello | Welcome | Rejected | Submit | Cancel | Query | Reply | Failed | Released | Goodbye | Ping | Pong
    | Configure | Serving | Admit | Admitted | LoadModel | UnloadModel | StopPool | FollowLogs | LogLines
    | Done | Refused | NeedRegions | OfferFile | RegionsGranted | RegionsFilled | AttachModel | Attached
    | MoreDescriptors | NeedMailbox | MailboxGranted | ReturnMailbox
    | ForkChild | Adopt | ZygoteReady | Forked | Exited | Adopted
    | BuildModel | ModelBuilt | BuildFailed
    | Thaw | Thawed | ThawFailed | Forget | Forgot | MapSlot | UnmapSlot | MapMailbox | UnmapMailbox
    | Used | Run | Ran | RunFailed | Leave
)  # fmt: skip

#: Numbers on the wire. Never reuse one for another meaning.
NUMBERS: Final[dict[type[Message], int]] = {
    Hello: 1, Welcome: 2, Rejected: 3, Submit: 4, Cancel: 5, Query: 6, Reply: 7, Failed: 8, Goodbye: 9,
    Ping: 10, Pong: 11, Released: 12,
    Configure: 20, Serving: 21, Admit: 22, Admitted: 23, LoadModel: 24, UnloadModel: 25, StopPool: 26,
    FollowLogs: 27, LogLines: 28, Done: 29, Refused: 30, NeedRegions: 31, OfferFile: 32, RegionsGranted: 33,
    RegionsFilled: 34, AttachModel: 35, Attached: 36, MoreDescriptors: 37,
    NeedMailbox: 50, MailboxGranted: 51, ReturnMailbox: 52,
    ForkChild: 40, Adopt: 41, ZygoteReady: 42, Forked: 43, Exited: 44, Adopted: 45,
    BuildModel: 60, ModelBuilt: 63, BuildFailed: 64,
    Thaw: 70, Thawed: 71, ThawFailed: 72, Forget: 73, Forgot: 74, Run: 80, Ran: 81, RunFailed: 82, Leave: 83,
    MapSlot: 84, UnmapSlot: 85, MapMailbox: 86, UnmapMailbox: 87, Used: 88,
}  # fmt: skip

_ACCEPTED: Final[dict[Any, tuple[type, ...]]] = {
    int: (int,), float: (float, int), str: (str,), bytes: (bytes,), bool: (bool,),
    list[Any]: (list,), list[int]: (list,), list[str]: (list,), dict[str, Any]: (dict,), dict[str, str]: (dict,),
}  # fmt: skip


def _checks(kind: type[Message]) -> tuple[type[Message], list[tuple[type, ...]], list[tuple[int, Any]]]:
    """Return the kind, the types of each field, and the index and annotation of those that hold others."""
    hints = [typing.get_type_hints(kind)[field] for field in kind._fields]
    holders = [(index, hint) for index, hint in enumerate(hints) if typing.get_args(hint) not in ((), (Any,))]
    return kind, [_ACCEPTED[hint] for hint in hints], holders


_KINDS: Final = {number: _checks(kind) for kind, number in NUMBERS.items()}


def parse(number: int, fields: list[Any]) -> Message:
    """Return the message with this number and these fields.

    Raises:
        InvalidRequest: no message has the number, or a field is missing, too many, or of a wrong type.
    """
    if number not in _KINDS:
        raise InvalidRequest(f"unknown message number {number!r}")
    kind, accepted, holders = _KINDS[number]
    if len(fields) != len(accepted):
        raise InvalidRequest(f"{kind.__name__} has {len(accepted)} fields, got {len(fields)}")
    for index, value in enumerate(fields):
        if type(value) not in accepted[index]:
            _refuse(kind, index, "", value, accepted[index])
    for index, hint in holders:
        *keys, items = typing.get_args(hint)
        for key in fields[index] if keys else ():
            if type(key) is not str:
                _refuse(kind, index, ": its keys", key, (str,))
        for item in fields[index].values() if keys else fields[index]:
            if items is not Any and type(item) is not items:
                _refuse(kind, index, ": its items", item, (items,))
    return kind._make(fields)


def _refuse(kind: type[Message], index: int, part: str, value: Any, accepted: tuple[Any, ...]) -> NoReturn:
    right = " or ".join(one.__name__ for one in accepted)
    raise InvalidRequest(
        f"{kind.__name__}.{kind._fields[index]}{part} must be {right}, not {type(value).__name__}"
    )
