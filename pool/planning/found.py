"""What is known of models and of a pool without any, before the models are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Part(NamedTuple):
    """A region of weights.

    Attributes:
        size_bytes: its size, in whole pages.
        key: equal for those of equal content that may be stored once.
        is_file: whether it is a weights file that is mapped, which takes no memory.
    """

    size_bytes: int
    key: tuple[Any, ...]
    is_file: bool


class Found(NamedTuple):
    """What was found out about one model, in bytes where nothing else is said.

    Attributes:
        name: what it is called.
        parts: its weights, in the order of the manifest.
        manifest: where in them its storages lie.
        options: as in `Model.options`.
        private_bytes: what thawing it takes a worker; None: it could not be tried.
        need_bytes: what a run of its example takes of a slot; None: not known.
        how: where that is from: ``shapes`` (a run without numbers), ``run`` (one with them), ``none``.
        reason: why it was not run on shapes, or at all.
        flops: floating-point operations of that run.
        touched_bytes: what that run reads and writes.
        inputs_bytes: what of the example travels in mailboxes.
        skeleton_bytes: what the supervisor keeps of it.
        loading_bytes: what its loader takes besides its weights, at its peak.
        modules: what it imports.
        opaque: its parts that each worker has for itself, by path, and why.
        notes: what its user should know of how it is loaded.
        error: why nothing of this is known; empty if it is.
    """

    name: str
    parts: tuple[Part, ...] = ()
    manifest: Sequence[Any] = ()
    options: Mapping[str, Any] = {}
    private_bytes: int | None = None
    need_bytes: int | None = None
    how: str = "none"
    reason: str = ""
    flops: int = 0
    touched_bytes: int = 0
    inputs_bytes: int = 0
    skeleton_bytes: int = 0
    loading_bytes: int = 0
    modules: Sequence[str] = ()
    opaque: Mapping[str, str] = {}
    notes: Sequence[str] = ()
    error: str = ""


class Base(NamedTuple):
    """What the processes of a pool take that has everything of its models but their weights, in bytes.

    Attributes:
        supervisor_bytes, zygote_bytes: private memory of these two, with what workers share of the zygote's.
        worker_bytes: what each worker has besides.
        files_bytes: pages of libraries, as far as they are this pool's share. No budget counts them: the system
            takes them back when it needs them.
    """

    supervisor_bytes: int
    zygote_bytes: int
    worker_bytes: int
    files_bytes: int
