"""What a pool is made of: `Model`, `Settings`, pool.toml. Frozen and validated.

Standard library only: the supervisor imports this, and it must start in a tenth of a second.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import re
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from ..protocol.errors import InvalidRequest
from ..protocol.limits import MAX_BUFFER_BYTES, MAX_NAME_BYTES
from . import environment

SourceKind = Literal["object", "factory", "import", "path"]

#: What may stand for a model or method on the wire and in a file.
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-/]*")
_IMPORT: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
_SAID: Final = {
    "object": "an object that already exists", "factory": "a factory", "import": "a factory", "path": "a path",
}  # fmt: skip
_CODE: Final = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)
#: Sizes as people write them, and the keys of a pool.toml that may have one.
_UNITS: Final = {
    "": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 1 << 10, "ki": 1 << 10,
    "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
}  # fmt: skip
_SIZES: Final = ("slot", "mailbox", "mailbox_total")
#: What one client may have in mailboxes unless it is said otherwise.
MAILBOX_BYTES: Final = 256 << 20
#: Workers beyond this are surely a mistake; each is a process.
MAX_WORKERS: Final = 1024


class ConfigError(InvalidRequest):
    """A setting that cannot be; the message names it, where it stands, and what would be right."""


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
            a folder with either, or a state dict in a ``.pt`` file; or those of a compiled package (``.pt2``) that
            holds none. They are taken by reference: the factory's own parameters get no memory, and theirs are
            the dtypes of the file. A factory that needs values of its parameters is called once more, the
            ordinary way, and the model's notes say so.
        dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``: what floating parameters and buffers are cast to
            once they are loaded, before ``prepare``; integers and complex numbers stay.
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
            runs need is known before somebody waits for one.
        workspace: ``"device"``: its runs take their memory from the slots that all such models share. A name of
            your own: from slots that only the models of that name share. ``"private"``: from the worker's own
            memory.
        on_overflow: what becomes of a run that needs more than its slot has. ``"spill"``: the rest is the worker's
            own memory, and the slots grow; ``"error"``: it fails with `WorkspaceOverflow`.
        grad: run with autograd; otherwise every run is under ``torch.inference_mode``.
        warm: load the model when the pool starts, and thaw it once, before workers are forked: they share that
            memory too, and their first request waits for nothing. Unloading it takes a new set of workers.
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
    dtype: str | None = None
    task: str | None = None
    trusted: bool = False
    prepare: Callable[[Any], Any] | str | None = None
    method: str = "__call__"
    residency: Literal["memory", "file"] = "memory"
    sharing: Literal["shared", "private"] = "shared"
    example: Any = None
    workspace: str = "device"
    on_overflow: Literal["spill", "error"] = "spill"
    grad: bool = False
    warm: bool = False
    repoint: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.source, str | os.PathLike):
            object.__setattr__(self, "source", _source(self.source, os.getcwd()))
        if self.weights is not None:
            object.__setattr__(self, "weights", _path("weights", self.weights, os.getcwd()))
        if isinstance(self.prepare, str) and not _IMPORT.fullmatch(self.prepare):
            raise ConfigError(f"prepare {self.prepare!r} is not of the form 'package.module:name'")
        _check_choice("dtype", self.dtype, (None, "bfloat16", "float16", "float32"))
        _check_choice("residency", self.residency, ("memory", "file"))
        _check_choice("sharing", self.sharing, ("shared", "private"))
        _check_choice("on_overflow", self.on_overflow, ("spill", "error"))
        check_name("workspace", self.workspace)
        check_name("method", self.method)
        self._check_kind()

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
                f"weights are for what a factory builds and for compiled packages; this source is {_SAID[kind]}"
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
        }  # fmt: skip
        for key in ("weights", "dtype", "task", "trusted"):
            if value := getattr(self, key):
                options[key] = value
        if isinstance(self.prepare, str):
            options["prepare"] = self.prepare
        return options


def _source(text: str | os.PathLike[str], folder: str) -> str:
    """Return an import string or hub name as it is, and a path as an absolute one."""
    if not isinstance(text, str):
        return _path("source", text, folder)
    if _IMPORT.fullmatch(text):
        return text
    if not ("/" in text or text.startswith(".") or text.endswith((".pt2", ".pt", ".pth"))):
        raise ConfigError(
            f"source {text!r} is neither of the form 'package.module:name' nor a path; write a path in this "
            f"folder as {'./' + text!r}, and a name on the hub as 'owner/model'"
        )
    path = _path("source", text, folder)
    return text if _HUB_NAME.fullmatch(text) and not os.path.exists(path) else path


def _path(what: str, value: str | os.PathLike[str], folder: str) -> str:
    path = os.fspath(value) if isinstance(cast(Any, value), str | os.PathLike) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise ConfigError(f"{what} must be the path of a file or folder, not {value!r}")
    return os.path.normpath(os.path.join(folder, os.path.expanduser(path)))


def check_name(what: str, name: str) -> str:
    """Return a name that is fit to travel.

    Raises:
        ConfigError: it is empty, too long, or has characters that no name has.
    """
    if not isinstance(cast(Any, name), str) or not _NAME.fullmatch(name) or len(name) > MAX_NAME_BYTES:
        raise ConfigError(
            f"{what} {name!r}: a name has 1 to {MAX_NAME_BYTES} letters, digits, '_', '-', '.' or '/', "
            "and starts with a letter, digit or '_'"
        )
    return name


@dataclass(frozen=True)
class Settings:
    """What a supervisor is told when it starts.

    Args:
        workers: how many worker processes.
        slots: how many of them may run at once; default: the workers, at most the cores.
        threads: threads that torch uses in one run; default: cores divided by slots.
        slot_bytes: how much memory each slot may take; default: as much as its models turn out to need.
        pin: let the runs that are under way at once use cores of their own, where there are enough.
        name: what the pool is called in status and logs.
        mailbox_bytes: how much memory one local client may have for its large arrays, and for those of results;
            with 0 they all travel through sockets, which is slower.
        mailbox_total_bytes: how much all clients together may have; default: an eighth of the machine's memory.
        listen: tcp endpoints on loopback, besides the ipc endpoint that is always there.

    Raises:
        ConfigError: something of it cannot be.
    """

    workers: int = 1
    slots: int = 0
    threads: int = 0
    slot_bytes: int = 0
    pin: bool = True
    name: str = "default"
    mailbox_bytes: int = MAILBOX_BYTES
    mailbox_total_bytes: int = 0
    listen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_count("workers", self.workers, 1, MAX_WORKERS)
        slots = self.slots or min(self.workers, environment.cores())
        _check_count("slots", slots, 1, MAX_WORKERS)
        object.__setattr__(self, "slots", min(slots, self.workers))
        object.__setattr__(self, "threads", self.threads or max(1, environment.cores() // self.slots))
        _check_count("threads", self.threads, 1, MAX_WORKERS)
        if type(self.pin) is not bool:
            raise ConfigError(f"pin must be true or false, not {self.pin!r}")
        _check_count("slot_bytes", self.slot_bytes, 0, 1 << 48)
        check_name("name", self.name)
        _check_count("mailbox_bytes", self.mailbox_bytes, 0, MAX_BUFFER_BYTES)
        total_bytes = self.mailbox_total_bytes or environment.memory_bytes() // 8
        object.__setattr__(self, "mailbox_total_bytes", total_bytes)
        _check_count("mailbox_total_bytes", total_bytes, 1, 1 << 48)
        for endpoint in self.listen:
            check_listen(endpoint)

    @property
    def seat_cores(self) -> list[list[int]]:
        """By slot, the cores that runs there may use; empty: any, because there are too few to tell them apart."""
        mine = environment.my_cores()
        if not self.pin or self.slots * self.threads > len(mine):
            return []
        return [mine[seat * self.threads :][: self.threads] for seat in range(self.slots)]

    def to_wire(self) -> dict[str, Any]:
        """Return plain values for a message."""
        return dataclasses.asdict(self) | {"listen": list(self.listen)}

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> Settings:
        """Return the settings that a message carries."""
        _check_keys("the settings", values, cls)
        plain = dict(values)
        plain["listen"] = tuple(plain.get("listen", ()))
        return cls(**plain)


def read_size(what: str, value: int | str) -> int:
    """Return a number of bytes, which may be written as ``"256MiB"``.

    Raises:
        ConfigError: it is neither a whole number from 0 nor such a text.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKMGT]i?)?B?", value) if isinstance(value, str) else None
    if match is not None:
        return int(float(match[1]) * _UNITS[match[2] or ""])
    if type(value) is not int or value < 0:
        raise ConfigError(f"{what} must be a number of bytes from 0, or a text such as '256MiB'; not {value!r}")
    return value


def check_listen(endpoint: str) -> None:
    """Refuse to listen anywhere but on loopback: whoever reaches the socket can use the pool.

    Raises:
        ConfigError: the endpoint is not ``tcp://127.0.0.1:PORT`` or ``tcp://[::1]:PORT``.
    """
    match = re.fullmatch(r"tcp://(127(?:\.\d{1,3}){3}|\[::1\]|localhost):(\d{1,5}|\*)", endpoint)
    if match is None or (match[2] != "*" and int(match[2]) > 65535):
        raise ConfigError(
            f"listen {endpoint!r}: only loopback is allowed, such as tcp://127.0.0.1:5555; "
            "anyone who reaches the socket can use the pool, and beyond loopback nothing would protect it"
        )


def read_toml(path: str) -> tuple[Settings, dict[str, Model]]:
    """Read a pool.toml.

    Raises:
        ConfigError: the file cannot be read, or something in it cannot be; the message names file and key.
    """
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    try:
        return _from_document(document, os.path.dirname(os.path.abspath(path)))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}") from error


def _from_document(document: dict[str, Any], folder: str) -> tuple[Settings, dict[str, Model]]:
    tables = document.pop("models", {})
    if not isinstance(tables, dict):
        raise ConfigError("models must be a table: [models.NAME]")
    for key in _SIZES:
        if key in document:
            document[f"{key}_bytes"] = read_size(key, document.pop(key))
    _check_keys("the top level", document, Settings, also=("models", *_SIZES))
    if not isinstance(document.get("listen", []), list):
        raise ConfigError("listen must be a list of endpoints")
    types_: dict[str, type] = {
        "workers": int, "slots": int, "threads": int, "pin": bool, "name": str, "listen": list,
        "slot_bytes": int, "mailbox_bytes": int, "mailbox_total_bytes": int,
    }  # fmt: skip
    _check_types("", document, types_)
    models: dict[str, Model] = {}
    for name, table in cast("dict[str, Any]", tables).items():
        models[check_name("model", name)] = _model_from_table(f"models.{name}", table, folder)
    return Settings.from_wire(document), models


def _model_from_table(where: str, table: Any, folder: str) -> Model:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} must be a table with a source")
    values = cast("dict[str, Any]", table)
    _check_keys(f"[{where}]", values, Model)
    if "source" not in values:
        raise ConfigError(f"[{where}] has no source, such as source = 'package.module:name'")
    types_: dict[str, type] = {
        "source": str, "args": list, "kwargs": dict, "weights": str, "dtype": str, "task": str, "trusted": bool,
        "prepare": str, "method": str, "residency": str, "sharing": str, "workspace": str,
        "on_overflow": str, "grad": bool, "warm": bool, "repoint": bool,
    }  # fmt: skip
    _check_types(f"{where}.", {key: value for key, value in values.items() if key != "example"}, types_)
    try:
        values["source"] = _source(values["source"], folder)
        if "weights" in values:
            values["weights"] = _path("weights", values["weights"], folder)
        return Model(**values)
    except ConfigError as error:
        raise ConfigError(f"[{where}] {error.message}") from error


def _check_types(where: str, values: Mapping[str, Any], types_: Mapping[str, type]) -> None:
    for key, value in values.items():
        expected = types_[key]
        if type(value) is not expected:
            raise ConfigError(f"{where}{key} must be {expected.__name__}, not {type(value).__name__}: {value!r}")


def _check_keys(where: str, values: Mapping[str, Any], kind: type[Any], also: Sequence[str] = ()) -> None:
    known = [one.name for one in dataclasses.fields(kind) if one.name != "_"] + list(also)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{where} has an unknown key {key!r}; {hint}")


def _check_choice(what: str, value: Any, choices: Sequence[str | None]) -> None:
    if value not in choices:
        known = ", ".join(repr(choice) for choice in choices if choice is not None)
        raise ConfigError(f"{what} must be one of {known}, not {value!r}")


def _check_count(what: str, value: Any, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(f"{what} must be a whole number from {least} to {most}, not {value!r}")
