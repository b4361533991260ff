"""The messages between the supervisor and its own children: a zygote, loaders, workers.

They travel over sockets that the children inherit, and no client ever meets them: what changes here changes no
wire but our own. Numbers, the union and `parse` are in `messages`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

Record: TypeAlias = "dict[str, Any]"  # an error's record, see `errors.PoolError.to_record`

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


class ModelBuilt(NamedTuple):
    """From a loader: all is filled. ``regions`` in the manifest's order; ``notes`` for the user.

    With ``rebuild`` the skeleton is that of a mapping of names to tensors, and each worker builds the model as
    the loader did and lets its tensors be those: something in it cannot be pickled.
    """

    manifest: list[Any]
    skeleton: bytes
    modules: list[str]
    regions: list[int]
    rebuild: bool
    notes: list[str]


class BuildFailed(NamedTuple):
    """From a loader: the model could not be built."""

    error: Record


class Thaw(NamedTuple):
    """To a worker: here is a weight set, thaw it now (``eager``) or when it is first run; fds come along.

    ``recipe`` is empty, or the ``[source, manifest, pickled]`` of `BuildModel` for a model that is to be rebuilt.
    """

    weight_set: int
    model: str
    options: dict[str, Any]
    manifest: list[Any]
    skeleton: bytes
    paths: list[str]
    recipe: list[Any]
    eager: bool


class Thawed(NamedTuple):
    """From a worker: the weight set is ready to run; ``private_bytes`` is what that took besides the regions.

    ``opaque`` are the parts that lie outside of them, by path, and why.
    """

    weight_set: int
    seconds: float
    private_bytes: int
    opaque: dict[str, str]


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
