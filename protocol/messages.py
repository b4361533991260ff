"""The messages, frozen, one union; what each field means stands with it, and nowhere else.

Four conversations use them:

* client <-> supervisor over a unix stream or ZeroMQ: `Hello` to `Pong`. Values only, never code.
* app or command line <-> supervisor over the supervisor's unix socket: `control_messages`. The only place where
  code (pickles, import paths) may enter, because the peer's credentials are checked there.
* whoever fills regions with weights <-> supervisor: `NeedRegions` to `RegionsFilled`, over that same socket from
  an app, over its own from a loader.
* supervisor <-> zygote, loader, worker or carrier over inherited unix sockets: `child_messages`.

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
    Carried,
    Carry,
    ContinueRun,
    Exited,
    Forget,
    Forgot,
    ForkChild,
    Forked,
    Interrupt,
    Leave,
    MapMailbox,
    MapSlot,
    ModelBuilt,
    Ran,
    Record,
    Run,
    Thaw,
    Thawed,
    ThawFailed,
    UnmapMailbox,
    UnmapSlot,
    Used,
    Yielded,
    ZygoteReady,
)
from .control_messages import (
    Admit,
    Admitted,
    Attached,
    AttachModel,
    Configure,
    Done,
    EvictModel,
    ExpectModel,
    FollowLogs,
    LoadModel,
    LogLines,
    MailboxGranted,
    MoreDescriptors,
    MoveModel,
    NeedMailbox,
    NeedRegions,
    OfferFile,
    PinModel,
    Refused,
    RegionsFilled,
    RegionsGranted,
    ReturnMailbox,
    Serving,
    StopPool,
    UnloadModel,
    WriteRecord,
)
from .errors import InvalidRequest

# --- client <-> supervisor, over a unix stream or ZeroMQ -----------------------------------------------------


class Hello(NamedTuple):
    """A client's first message; with the token that it got from the control socket, but over tcp without."""

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

    ``timeout_s`` 0 means no deadline; ``retries`` is how many deaths of a worker the request may survive; requests
    of higher ``priority`` go first. Those of one ``session``, unless it is empty, go to one worker as long as it
    lives.
    ``calls`` 0 is one call; from 1 on it is so many calls with one argument each, and ``body`` encodes the list of
    those. ``credit`` 0 asks for a result; from 1 on, for a stream of which so many items may come for now.
    ``places`` is empty, or tells of each buffer where it lies: ``[mailbox, offset, size]``, or ``[]`` if it
    follows. ``reply`` is empty, or a place for the buffers of the result.
    """

    request: int
    model: str
    method: str
    timeout_s: float
    retries: int
    priority: int
    session: str
    calls: int
    credit: int
    body: bytes
    places: list[Any]
    reply: list[int]


class Cancel(NamedTuple):
    """Give a request up; if it is not answered yet, `Failed` answers it at once.

    A run that is under way ends at its next safe point; with ``kill`` its worker is ended.
    """

    request: int
    kill: bool


class Continue(NamedTuple):
    """So many more items of a stream may come."""

    request: int
    items: int


class Query(NamedTuple):
    """Ask for ``models``, ``memory`` or ``status``; answered by a `Reply`."""

    request: int
    topic: str


class Item(NamedTuple):
    """The next item of a stream. ``body`` encodes it; its large arrays follow."""

    request: int
    body: bytes


class Reply(NamedTuple):
    """The answer to a request. ``body`` encodes the result; its large arrays follow, or lie in a mailbox.

    For many calls the result is a list, with None for those that failed, and ``errors`` has ``[index, record]``
    for each of these; else it is empty. For a stream the result is None, and comes after the last item.
    ``seconds`` is how long it ran.
    ``places`` is empty, or tells of each buffer where it lies: ``[offset, size]`` within the place that was for
    them, or ``[]`` if it follows. All other places of the request are the client's again.
    """

    request: int
    seconds: float
    body: bytes
    places: list[Any]
    errors: list[Any]


class Failed(NamedTuple):
    """The other possible end of a request."""

    request: int
    error: Record


class Released(NamedTuple):
    """After `Failed`, for a request with places: no worker uses them any more."""

    request: int


class Late(NamedTuple):
    """To a client that has asked for many calls at once: the call of this index takes far longer than it should.

    Those before it are done, those behind it wait for it. The request goes on, and is answered as ever; who cannot
    wait for that may ask for the other calls once more.
    """

    request: int
    call: int


class Goodbye(NamedTuple):
    """A client leaves; what it had asked for is dropped."""


class Ping(NamedTuple):
    """Are you there?"""


class Pong(NamedTuple):
    """Yes."""


Message: TypeAlias = (
    Hello | Welcome | Rejected | Submit | Cancel | Continue | Query | Item | Reply | Failed | Released
    | Late | Goodbye | Ping | Pong
    | Configure | Serving | Admit | Admitted | LoadModel | UnloadModel | StopPool | FollowLogs | LogLines
    | Done | Refused | NeedRegions | OfferFile | RegionsGranted | RegionsFilled | AttachModel | Attached
    | MoreDescriptors | PinModel | EvictModel | MoveModel | ExpectModel | NeedMailbox | MailboxGranted
    | ReturnMailbox | WriteRecord
    | ForkChild | Adopt | ZygoteReady | Forked | Exited | Adopted
    | BuildModel | ModelBuilt | BuildFailed
    | Thaw | Thawed | ThawFailed | Forget | Forgot | MapSlot | UnmapSlot | MapMailbox | UnmapMailbox
    | Used | Run | ContinueRun | Interrupt | Yielded | Ran | Leave | Carry | Carried
)  # fmt: skip

#: Numbers on the wire. Never reuse one for another meaning.
NUMBERS: Final[dict[type[Message], int]] = {
    Hello: 1, Welcome: 2, Rejected: 3, Submit: 4, Cancel: 5, Query: 6, Reply: 7, Failed: 8, Goodbye: 9,
    Ping: 10, Pong: 11, Released: 12, Continue: 13, Item: 14, Late: 15,
    Configure: 20, Serving: 21, Admit: 22, Admitted: 23, LoadModel: 24, UnloadModel: 25, StopPool: 26,
    FollowLogs: 27, LogLines: 28, Done: 29, Refused: 30, NeedRegions: 31, OfferFile: 32, RegionsGranted: 33,
    RegionsFilled: 34, AttachModel: 35, Attached: 36, MoreDescriptors: 37,
    PinModel: 38, EvictModel: 39,
    NeedMailbox: 50, MailboxGranted: 51, ReturnMailbox: 52, ExpectModel: 53,
    WriteRecord: 54, MoveModel: 55,
    ForkChild: 40, Adopt: 41, ZygoteReady: 42, Forked: 43, Exited: 44, Adopted: 45,
    BuildModel: 60, ModelBuilt: 63, BuildFailed: 64,
    Thaw: 70, Thawed: 71, ThawFailed: 72, Forget: 73, Forgot: 74, Run: 80, Ran: 81, Leave: 83,
    MapSlot: 84, UnmapSlot: 85, MapMailbox: 86, UnmapMailbox: 87, Used: 88,
    ContinueRun: 89, Interrupt: 90, Yielded: 91, Carry: 92, Carried: 93,
}  # fmt: skip

_ACCEPTED: Final[dict[Any, tuple[type, ...]]] = {
    int: (int,), float: (float, int), str: (str,), bytes: (bytes,), bool: (bool,),
    list[Any]: (list,), list[int]: (list,), list[str]: (list,), dict[str, Any]: (dict,), dict[str, str]: (dict,),
}  # fmt: skip


class _Checks(NamedTuple):
    """What `parse` looks at: the types of each field, those of most messages, and which fields hold others."""

    kind: type[Message]
    accepted: list[tuple[type, ...]]
    usual: tuple[type, ...]
    holders: list[tuple[int, Any]]  # index and annotation


def _checks(kind: type[Message]) -> _Checks:
    hints = [typing.get_type_hints(kind)[field] for field in kind._fields]
    accepted = [_ACCEPTED[hint] for hint in hints]
    holders = [(index, hint) for index, hint in enumerate(hints) if typing.get_args(hint) not in ((), (Any,))]
    return _Checks(kind, accepted, tuple(types[0] for types in accepted), holders)


#: What `_make` of a named tuple does, without a function around it.
_make: Final[Any] = tuple.__new__
_KINDS: Final = {number: _checks(kind) for kind, number in NUMBERS.items()}


def parse(number: int, fields: list[Any]) -> Message:
    """Return the message with this number and these fields.

    Raises:
        InvalidRequest: no message has the number, or a field is missing, too many, or of a wrong type.
    """
    if number not in _KINDS:
        raise InvalidRequest(f"unknown message number {number!r}")
    kind, accepted, usual, holders = _KINDS[number]
    if tuple(map(type, fields)) != usual:
        _check_types(kind, accepted, fields)
    for index, hint in holders:
        if not fields[index]:
            continue
        *keys, items = typing.get_args(hint)
        for key in fields[index] if keys else ():
            if type(key) is not str:
                _refuse(kind, index, ": its keys", key, (str,))
        for item in fields[index].values() if keys else fields[index]:
            if items is not Any and type(item) is not items:
                _refuse(kind, index, ": its items", item, (items,))
    return _make(kind, fields)


def _check_types(kind: type[Message], accepted: list[tuple[type, ...]], fields: list[Any]) -> None:
    if len(fields) != len(accepted):
        raise InvalidRequest(f"{kind.__name__} has {len(accepted)} fields, got {len(fields)}")
    for index, value in enumerate(fields):
        if type(value) not in accepted[index]:
            _refuse(kind, index, "", value, accepted[index])


def _refuse(kind: type[Message], index: int, part: str, value: Any, accepted: tuple[Any, ...]) -> NoReturn:
    right = " or ".join(one.__name__ for one in accepted)
    raise InvalidRequest(
        f"{kind.__name__}.{kind._fields[index]}{part} must be {right}, not {type(value).__name__}"
    )
