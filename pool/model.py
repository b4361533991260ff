"""`Model`: what a pool runs, and how. Frozen and validated.

Standard library only: an app imports this first, and the supervisor too.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from ..protocol.limits import (
    MAX_BATCH,
    MAX_DEVICES,
    MAX_REQUESTS_PER_CLIENT,
    MAX_SHARE,
    MAX_WAIT_MS,
    MAX_WORKERS,
)
from .checks import ConfigError, check_choice, check_count, check_flag, check_name, check_number
from .devices import NAMES

if TYPE_CHECKING:
    import torch

SourceKind = Literal["object", "factory", "import", "path"]

#: What the only model of ``Pool(model)`` is called.
ONLY: Final = "model"

_IMPORT: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
_SAID: Final = {
    "object": "an object that already exists", "factory": "a factory", "import": "a factory", "path": "a path",
}  # fmt: skip
_CODE: Final = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)


@dataclass(frozen=True)
class Model:
    """A model and how it is run.

    Relative paths are meant from the folder in which this process is; in a pool.toml, from that of the file.

    Args:
        source: an object that holds tensors (an ``nn.Module``, a pipeline): shared as it is. A class, function
            or ``functools.partial``: a factory, called once, in a loader process, with ``args`` and ``kwargs``.
            A string ``"package.module:name"``: a factory by name. A path (a string with a ``/``, beginning with
            ``.`` or ending in ``.pt2``, ``.pt`` or ``.pth``, or a path object): a folder of transformers or
            sentence-transformers, an exported program (``.pt2``), a saved module (``.pt``, ``.pth``). A name on
            the Hugging Face hub, ``"owner/model"``, is looked for in the local cache.
        args, kwargs: what the factory is called with; for a folder, ``kwargs`` go to the library that loads it.
        weights: the weights of the ``nn.Module`` that a factory builds: a safetensors file, an index of several,
            a folder with either, or a state dict in a ``.pt`` file; or those that take the place of the ones in an
            exported or compiled program (``.pt2``). They are taken by reference: the factory's own parameters get
            no memory, and theirs are the dtypes of the file. A factory that needs values of its parameters is
            called once more, the ordinary way, and the model's notes say so.
        dtype: ``"bfloat16"``, ``"float16"``, ``"float32"``, or such a ``torch.dtype``: what floating parameters
            and buffers are cast to once they are loaded, before ``prepare``; integers and complex numbers stay.
        task: what a folder's transformers pipeline is for, such as ``"text-classification"``.
        trusted: load a saved module, which is a pickle and runs whatever code it holds.
        prepare: called once with the model before it is shared (folding, casting); returns the model to
            share, or None for the one it was given. With an object it is called in this process.
        method: what a request calls when it names no method.
        residency: ``"memory"``: the one copy is in memory. ``"file"``: where weights lie in a file as they are
            used, workers map that file, for weights that are larger than memory or needed at once.
        sharing: ``"shared"``: equal weights of several models are stored once. ``"private"``: the workers share
            the weights of this model, and no other model does.
        example: what a request may carry: a tuple of arguments, a mapping of keyword arguments, or the one
            argument. The model is loaded when the pool starts and run with it once, so that the memory which its
            runs need is known before somebody waits for one. In a pool.toml it is a plain value, of no arrays.
        workspace: ``"device"``: its runs take their memory from the slots that all such models share. A name of
            your own: from slots that only the models of that name share. ``"private"``: from the worker's own
            memory.
        on_overflow: what becomes of a run that needs more than its slot has. ``"spill"``: the rest is the worker's
            own memory, and the slots grow; ``"error"``: it fails with `WorkspaceOverflow`.
        max_batch: how many calls of one method a worker may run as one. Arguments are concatenated along their
            dimension 0, and each caller gets its rows of the result: a model is called as before, with more rows.
            A text is one row, a list a row for each item. So dimension 0 must be rows wherever arguments and
            results have tensors. One: every call runs alone.
        max_wait_ms: how long a call may wait for others while every worker is busy; an idle worker never waits.
        collate: a public method of the model that is called with a list of ``(args, kwargs)`` and returns the
            ``(args, kwargs)`` of one call for all of them, where concatenating is not what it takes.
        split: one that is called with the result of such a call and the number of calls, and returns a list of
            that many results.
        share: the model's part of the workers' time when there is not enough for all, relative to the others'.
        max_queue: how many of its calls may wait; what comes then fails with `PoolBusy`. 0: as many as a
            client may have.
        min_workers: as long as fewer workers run it, and it has requests, its turn comes before others', whatever
            the shares are.
        max_workers: how many workers may run it at once; 0: all. Requests of a session go to their worker anyhow.
        adaptive: let size and wait of batches follow what runs are measured to take, within ``max_batch`` and
            ``max_wait_ms``: smaller ones where a call gains nothing from company.
        device: on which of the pool's devices it may be: one, or several; ``"auto"``: any. It goes where its
            weights fit, to where there is most room.
        replicas: on how many of those it shall be at once, each with a copy of the weights; a request goes to the
            one with the least to do. An object that already exists can be on one.
        divide: where its weights fit on no device alone, divide them among several, by layers; of GPUs, among one
            where it runs and those whose memory that can use.
        grad: run with autograd; otherwise every run is under ``torch.inference_mode``.
        cuda_graph: on a GPU, record what a call tells it, and replay that for calls which differ in nothing but
            the content of their tensors; not in shapes, nor in any other argument. What a method does besides
            computing with tensors of the GPU it does no more then.
        warm: load the model when the pool starts, and thaw it once, before workers are forked: they share that
            memory too, and their first request waits for nothing. Unloading it takes a new set of workers.
        pin: keep the weights in memory once they are there, even if they lie idle and others need the room. What
            was on the disk before is a mapped file then, of which the system may drop pages and read them again.
        repoint: let the tensors of an object that was passed in use the one copy too, so that this process
            does not keep a second one.

    Raises:
        ConfigError: something of it cannot be.
    """

    source: Any
    _: dataclasses.KW_ONLY
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    weights: str | os.PathLike[str] | None = None
    dtype: str | torch.dtype | None = None
    task: str | None = None
    trusted: bool = False
    prepare: Callable[[Any], Any] | str | None = None
    method: str = "__call__"
    residency: Literal["memory", "file"] = "memory"
    sharing: Literal["shared", "private"] = "shared"
    example: Any = None
    workspace: str = "device"
    on_overflow: Literal["spill", "error"] = "spill"
    max_batch: int = 1
    max_wait_ms: float = 0
    collate: str = ""
    split: str = ""
    share: float = 1.0
    max_queue: int = 0
    min_workers: int = 0
    max_workers: int = 0
    adaptive: bool = True
    device: str | Sequence[str] = "auto"
    replicas: int = 1
    divide: bool = True
    grad: bool = False
    cuda_graph: bool = False
    warm: bool = False
    pin: bool = False
    repoint: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.source, str | os.PathLike):
            object.__setattr__(self, "source", full_source(self.source, os.getcwd()))
        if self.weights is not None:
            object.__setattr__(self, "weights", full_path("weights", self.weights, os.getcwd()))
        if isinstance(self.prepare, str) and not _IMPORT.fullmatch(self.prepare):
            raise ConfigError(f"prepare {self.prepare!r} is not of the form 'package.module:name'")
        object.__setattr__(self, "dtype", _name_of(self.dtype))
        check_choice("dtype", self.dtype, (None, "bfloat16", "float16", "float32"))
        check_choice("residency", self.residency, ("memory", "file"))
        check_choice("sharing", self.sharing, ("shared", "private"))
        check_choice("on_overflow", self.on_overflow, ("spill", "error"))
        check_name("workspace", self.workspace)
        check_name("method", self.method)
        check_flag("pin", self.pin)
        check_flag("divide", self.divide)
        check_flag("cuda_graph", self.cuda_graph)
        if self.cuda_graph and self.grad:
            raise ConfigError("cuda_graph is for models without grad=True: calls are recorded without gradients")
        self._check_scheduling()
        self._check_devices()
        self._check_kind()

    def _check_scheduling(self) -> None:
        """Refuse what its requests cannot be scheduled by."""
        check_count("max_batch", self.max_batch, 1, MAX_BATCH)
        check_number("max_wait_ms", self.max_wait_ms, 0, MAX_WAIT_MS)
        check_number("share", self.share, 0, MAX_SHARE, excluded=True)
        check_count("max_queue", self.max_queue, 0, MAX_REQUESTS_PER_CLIENT)
        check_count("max_workers", self.max_workers, 0, MAX_WORKERS)
        check_count("min_workers", self.min_workers, 0, self.max_workers or MAX_WORKERS)
        check_flag("adaptive", self.adaptive)
        for key in ("collate", "split"):
            hook = getattr(self, key)
            if hook == "":
                continue
            if check_name(key, hook).startswith("_"):
                raise ConfigError(f"{key} must be the name of a public method of the model, not {hook!r}")
            if self.max_batch == 1:
                raise ConfigError(f"{key} is for batches; with max_batch=1 every call runs alone")

    def _check_devices(self) -> None:
        """Refuse devices that no pool can have; which there are, the pool will tell."""
        device = cast("Any", self.device)
        names = list(device) if isinstance(device, list | tuple) and device else [device]
        if device != "auto" and not all(isinstance(name, str) and NAMES.fullmatch(name) for name in names):
            raise ConfigError(
                f"device must be 'auto', the name of one, such as 'cpu:0', or a list of such; not {device!r}"
            )
        check_count("replicas", self.replicas, 1, len(self.devices) or MAX_DEVICES)
        if self.replicas > 1 and self.kind == "object":
            raise ConfigError("replicas are for models that a loader builds; this source is an object in memory")

    def _check_kind(self) -> None:
        """Refuse what makes no sense for this kind of source."""
        kind = self.kind
        if kind == "object" and (self.args or self.kwargs):
            raise ConfigError("args and kwargs are for factories; this source is an object that already exists")
        if kind == "path" and self.args:
            raise ConfigError(
                "args are for factories; this source is a path, and kwargs alone go to what loads it"
            )
        takes_weights = kind in ("factory", "import") or str(self.source).endswith(".pt2")
        if self.weights is not None and not takes_weights:
            raise ConfigError(
                f"weights are for what a factory builds and for .pt2 programs; this source is {_SAID[kind]}"
            )
        if kind == "object" and self.dtype is not None:
            raise ConfigError(
                "dtype is for models that a loader builds; cast an object that already exists yourself"
            )
        if kind == "object" and self.residency == "file":
            raise ConfigError("residency 'file' is for weights files; this source is an object in memory")
        for key in ("task", "trusted"):
            if getattr(self, key) and kind != "path":
                raise ConfigError(f"{key} is for paths; this source is {_SAID[kind]}")

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that it may be on; empty: any."""
        if self.device == "auto":
            return ()
        return (self.device,) if isinstance(self.device, str) else tuple(self.device)

    @property
    def kind(self) -> SourceKind:
        """How the model comes to be."""
        if isinstance(self.source, str):
            return "import" if _IMPORT.fullmatch(self.source) else "path"
        return "factory" if isinstance(self.source, _CODE) else "object"

    @property
    def options(self) -> dict[str, Any]:
        """What the supervisor, loaders and workers need to know, as plain values."""
        options: dict[str, Any] = {
            "method": self.method, "grad": self.grad, "warm": self.warm, "residency": self.residency,
            "sharing": self.sharing, "workspace": self.workspace, "on_overflow": self.on_overflow,
            "max_batch": self.max_batch, "max_wait_ms": float(self.max_wait_ms), "collate": self.collate,
            "split": self.split, "share": float(self.share), "max_queue": self.max_queue,
            "min_workers": self.min_workers, "max_workers": self.max_workers,
            "adaptive": self.adaptive,
        }  # fmt: skip
        for key in ("weights", "dtype", "task", "trusted", "pin", "cuda_graph"):
            if value := getattr(self, key):
                options[key] = value
        if self.devices:
            options["devices"] = list(self.devices)
        if not self.divide:
            options["divide"] = False
        if self.replicas > 1:
            options["replicas"] = self.replicas
        if isinstance(self.prepare, str):
            options["prepare"] = self.prepare
        return options


def _name_of(dtype: Any) -> Any:
    """Return the name of a dtype of torch's, and anything else as it is; torch is not imported for that."""
    kind = type(dtype)
    return str(dtype).removeprefix("torch.") if (kind.__module__, kind.__name__) == ("torch", "dtype") else dtype


def full_source(text: str | os.PathLike[str], folder: str) -> str:
    """Return an import string or hub name as it is, and a path as an absolute one.

    Raises:
        ConfigError: it is none of these.
    """
    if not isinstance(text, str):
        return full_path("source", text, folder)
    if _IMPORT.fullmatch(text):
        return text
    if not ("/" in text or text.startswith(".") or text.endswith((".pt2", ".pt", ".pth"))):
        raise ConfigError(
            f"source {text!r} is neither of the form 'package.module:name' nor a path; write a path in this "
            f"folder as {'./' + text!r}, and a name on the hub as 'owner/model'"
        )
    path = full_path("source", text, folder)
    return text if _HUB_NAME.fullmatch(text) and not os.path.exists(path) else path


def full_path(what: str, value: str | os.PathLike[str], folder: str) -> str:
    """Return a path as an absolute one; a relative one begins in the folder.

    Raises:
        ConfigError: it is no path.
    """
    path = os.fspath(value) if isinstance(cast(Any, value), str | os.PathLike) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise ConfigError(f"{what} must be the path of a file or folder, not {value!r}")
    return os.path.normpath(os.path.join(folder, os.path.expanduser(path)))


def named_models(models: Any) -> dict[str, Model]:
    """Return models by name, as `Pool` takes them: a mapping, or the only one.

    Raises:
        ConfigError: there is none, or one cannot be.
    """
    if not isinstance(models, Mapping):
        return {ONLY: as_model(models)}
    if not models:
        raise ConfigError("no model was given; a pool needs at least one")
    return {check_name("model", name): as_model(model) for name, model in models.items()}


def as_model(model: Any) -> Model:
    """Return a model, or what may be the ``source`` of one, as a model.

    Raises:
        ConfigError: it cannot be one.
    """
    return model if isinstance(model, Model) else Model(model)
