"""The messages between the supervisor and its own children: a zygote, loaders, workers, carriers.

They travel over sockets that the children inherit, and no client ever meets them: what changes here changes no
wire but our own. Numbers, the union and `parse` are in `messages`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

Record: TypeAlias = "dict[str, Any]"  # an error's record, see `errors.PoolError.to_record`

# --- supervisor <-> zygote -----------------------------------------------------------------------------------


class ForkChild(NamedTuple):
    """Fork a ``loader``, ``worker`` or ``trial``, a throwaway fork; its channel and output pipe come along."""

    child: int
    role: str
    settings: dict[str, Any]


class Adopt(NamedTuple):
    """Import these modules, so that children forked from now on have them."""

    generation: int
    modules: list[str]
    paths: list[str]


class ZygoteReady(NamedTuple):
    """The zygote has imported what every child needs; ``without_slots`` tells why runs cannot use any, if so."""

    without_slots: str


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
    """Here is a weight set: thaw it now (``eager``) or, in a worker, when it is first run; fds come along.

    To a worker; to the zygote, so that the workers it forks from then on have it; to a throwaway fork of the
    zygote, in which that is tried.

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
    """In answer to `Thaw`: the weight set is ready to run.

    ``private_bytes`` is what that took besides the regions; ``opaque`` are the parts that lie outside of them, by
    path, and why.
    """

    weight_set: int
    seconds: float
    private_bytes: int
    opaque: dict[str, str]


class ThawFailed(NamedTuple):
    """In answer to `Thaw`: this weight set cannot be thawed here. A zygote must not fork any more after that."""

    weight_set: int
    error: Record


class Forget(NamedTuple):
    """To a worker: drop the weight set."""

    weight_set: int


class Forgot(NamedTuple):
    """From a worker: nothing of the weight set is mapped here any more; false: something still holds it."""

    weight_set: int
    unmapped: bool


class MapSlot(NamedTuple):
    """To a worker: here is a slot's memory, so large now; its fd comes along. On a GPU it stays as large."""

    slot: int
    size_bytes: int


class UnmapSlot(NamedTuple):
    """To a worker: let go of a slot's memory."""

    slot: int


class MapMailbox(NamedTuple):
    """To a worker: here is a client's mailbox; its fd comes along."""

    mailbox: int
    size_bytes: int


class UnmapMailbox(NamedTuple):
    """To a worker: let go of a mailbox, because its client is gone or has returned it."""

    mailbox: int


class Run(NamedTuple):
    """To a worker: run one attempt, which may be a batch.

    Each of ``parts`` is one request, ``[body, places, reply, calls, buffers]``: the first four as in `Submit`, and
    how many of the buffers are its own, in their order. ``credit`` is from 1 on for a stream, of which that many
    items may come for now. It runs on the cores of ``seat``, and in ``slot``, of which ``limit_bytes`` may be
    used; slot 0: in none. ``priority`` is the highest of its requests'.
    """

    attempt: int
    weight_set: int
    method: str
    parts: list[Any]
    credit: int
    seat: int
    slot: int
    limit_bytes: int
    priority: int


class ContinueRun(NamedTuple):
    """To a worker: so many more items of the stream that it runs may come."""

    attempt: int
    items: int


class Interrupt(NamedTuple):
    """To a worker: nobody waits for an attempt any more; it is to end at its next safe point."""

    attempt: int


class Yielded(NamedTuple):
    """From a worker: an item of a stream; ``body`` and buffers as in `Item`."""

    attempt: int
    body: bytes


class Ran(NamedTuple):
    """From a worker: what became of each part of an attempt, in their order.

    Each of ``answers`` is ``[body, places, errors, buffers]``, the first three as in `Reply`, and how many of the
    buffers are its own; or the record of an error. Nothing of the attempt is in its slot any more.
    """

    attempt: int
    seconds: float
    answers: list[Any]


class Used(NamedTuple):
    """From a worker, before it answers: what a run took of its slot that no run of these inputs took before.

    ``signature`` tells dtypes and shapes of the inputs. ``footprint_bytes`` is the part of the slot that was used;
    ``spilled_bytes`` the most that was outside at once, because it did not fit. ``escaped_bytes`` is what the
    model kept after the run: it lies outside of the slot now.
    """

    weight_set: int
    signature: str
    footprint_bytes: int
    spilled_bytes: int
    escaped_bytes: int


class Leave(NamedTuple):
    """To a worker or the zygote: finish what you hold, then exit."""


# --- supervisor <-> carrier ----------------------------------------------------------------------------------


class Carry(NamedTuple):
    """Copy a region of a GPU into a file, or back ``to_gpu``; the region comes along, and the file.

    ``size_bytes`` is the size of both, in whole grains of the driver.
    """

    size_bytes: int
    to_gpu: bool


class Carried(NamedTuple):
    """It is copied; or it is not, and ``complaint`` says why."""

    complaint: str
