"""The messages, frozen, one union; what each field means stands here and nowhere else.

Four conversations use them:

* client <-> supervisor over ZeroMQ: `Hello` to `Pong`. Values only, never code.
* app or command line <-> supervisor over the supervisor's unix socket: `Admit` to `LogLines`. The only
  place where code (pickles, import paths) may enter, because the peer's credentials are checked there.
* supervisor <-> zygote and supervisor <-> loader or worker over inherited unix sockets.

A message is a named tuple: cheap to make, and packed as it stands. `parse` checks every field's type, so that
whoever receives a message can rely on its annotations.
"""

from __future__ import annotations

import typing
from typing import Any, Final, NamedTuple, NoReturn, TypeAlias

from .errors import InvalidRequest

Record: TypeAlias = "dict[str, Any]"  # an error's record, see `errors.PoolError.to_record`

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
    """Run a model. ``body`` encodes ``[args, kwargs]``; its large arrays follow as buffers.

    ``timeout_s`` 0 means no deadline; ``retries`` is how many deaths of a worker the request may survive.
    """

    request: int
    model: str
    method: str
    timeout_s: float
    retries: int
    body: bytes


class Cancel(NamedTuple):
    """Give a request up; if it is not answered yet, `Failed` answers it at once."""

    request: int


class Query(NamedTuple):
    """Ask for ``models``, ``memory`` or ``status``; answered by a `Reply`."""

    request: int
    topic: str


class Reply(NamedTuple):
    """The answer to a request. ``body`` encodes the result; its large arrays follow as buffers."""

    request: int
    body: bytes


class Failed(NamedTuple):
    """The other possible end of a request."""

    request: int
    error: Record


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
    ``manifest`` says what lies in the regions whose fds come along), ``factory`` (``pickled`` is
    ``(callable, args, kwargs)``) or ``import`` (``pickled`` is empty, ``manifest`` is
    ``["package.module:name", body]``, whose body encodes ``[args, kwargs]``). ``modules`` are what unpickling
    will import, ``paths`` the sender's ``sys.path``. With ``eager`` it is loaded now and answered when
    that is done; else when needed.
    """

    name: str
    source: str
    options: dict[str, Any]
    manifest: list[Any]
    pickled: bytes
    modules: list[str]
    paths: list[str]
    eager: bool


class UnloadModel(NamedTuple):
    """Let what was submitted finish, then forget the model and free its memory."""

    name: str


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


# --- supervisor <-> zygote -----------------------------------------------------------------------------------


class ForkChild(NamedTuple):
    """Fork a ``loader`` or ``worker``; its channel and its output pipe come along as fds."""

    child: int
    role: str
    settings: dict[str, Any]


class Adopt(NamedTuple):
    """Import these modules, so that children forked from now on have them."""

    generation: int
    modules: list[str]
    paths: list[str]


class ZygoteReady(NamedTuple):
    """The zygote has imported what every child needs."""


class Forked(NamedTuple):
    """A child exists; its pidfd comes along."""

    child: int
    pid: int


class Exited(NamedTuple):
    """A child has ended; ``status`` as `os.waitpid` gives it."""

    child: int
    status: int


class Adopted(NamedTuple):
    """The modules are imported, but for those in ``refused``, each with the reason."""

    generation: int
    refused: dict[str, str]
    threads: int


# --- supervisor <-> loader and worker ------------------------------------------------------------------------


class BuildModel(NamedTuple):
    """To a loader: build this and freeze it; fields as in `LoadModel`."""

    name: str
    source: str
    options: dict[str, Any]
    manifest: list[Any]
    pickled: bytes
    paths: list[str]


class NeedRegions(NamedTuple):
    """From a loader: it has built the model and needs memory for it."""

    sizes_bytes: list[int]


class RegionsGranted(NamedTuple):
    """To a loader: the fds to write into come along, in the order asked for."""


class ModelBuilt(NamedTuple):
    """From a loader: the regions are filled."""

    manifest: list[Any]
    skeleton: bytes
    modules: list[str]


class BuildFailed(NamedTuple):
    """From a loader: the model could not be built."""

    error: Record


class Thaw(NamedTuple):
    """To a worker: here is a weight set, thaw it now (``eager``) or when it is first run; fds come along."""

    weight_set: int
    model: str
    options: dict[str, Any]
    manifest: list[Any]
    skeleton: bytes
    paths: list[str]
    eager: bool


class Thawed(NamedTuple):
    """From a worker: the weight set is ready to run."""

    weight_set: int
    seconds: float


class ThawFailed(NamedTuple):
    """From a worker: it cannot thaw this weight set."""

    weight_set: int
    error: Record


class Forget(NamedTuple):
    """To a worker: drop the weight set."""

    weight_set: int


class Forgot(NamedTuple):
    """From a worker: nothing of the weight set is mapped here any more; false: something still holds it."""

    weight_set: int
    unmapped: bool


class Run(NamedTuple):
    """To a worker: run one attempt; ``body`` and buffers as in `Submit`."""

    attempt: int
    weight_set: int
    method: str
    body: bytes


class Ran(NamedTuple):
    """From a worker: the attempt's result; ``body`` and buffers as in `Reply`."""

    attempt: int
    seconds: float
    body: bytes


class RunFailed(NamedTuple):
    """From a worker: the attempt raised."""

    attempt: int
    seconds: float
    error: Record


class Leave(NamedTuple):
    """To a worker or the zygote: finish what you hold, then exit."""


Message: TypeAlias = (
    Hello | Welcome | Rejected | Submit | Cancel | Query | Reply | Failed | Goodbye | Ping | Pong
    | Configure | Serving | Admit | Admitted | LoadModel | UnloadModel | StopPool | FollowLogs | LogLines
    | Done | Refused
    | ForkChild | Adopt | ZygoteReady | Forked | Exited | Adopted
    | BuildModel | NeedRegions | RegionsGranted | ModelBuilt | BuildFailed
    | Thaw | Thawed | ThawFailed | Forget | Forgot | Run | Ran | RunFailed | Leave
)  # fmt: skip

#: Numbers on the wire. Never reuse one for another meaning.
NUMBERS: Final[dict[type[Message], int]] = {
    Hello: 1, Welcome: 2, Rejected: 3, Submit: 4, Cancel: 5, Query: 6, Reply: 7, Failed: 8, Goodbye: 9,
    Ping: 10, Pong: 11,
    Configure: 20, Serving: 21, Admit: 22, Admitted: 23, LoadModel: 24, UnloadModel: 25, StopPool: 26,
    FollowLogs: 27, LogLines: 28, Done: 29, Refused: 30,
    ForkChild: 40, Adopt: 41, ZygoteReady: 42, Forked: 43, Exited: 44, Adopted: 45,
    BuildModel: 60, NeedRegions: 61, RegionsGranted: 62, ModelBuilt: 63, BuildFailed: 64,
    Thaw: 70, Thawed: 71, ThawFailed: 72, Forget: 73, Forgot: 74, Run: 80, Ran: 81, RunFailed: 82, Leave: 83,
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
