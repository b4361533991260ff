"""Files of the flight recorder: JSON lines, from which the core can be run again.

The first line is a `Header`; each other one is an event, when it was handled, and what the core wanted then::

    {"number": 12, "at_s": 4711.25, "event": {"is": "events.Submitted", …}, "instructions": [{"is": …}, …]}

With ``raised`` instead of ``instructions`` the core failed at it. Numbers begin at 1. Where some are missing, no
more was kept; what follows has ``wanted`` instead, the kinds of the instructions or how many they were, and not
every field of the event.

What requests carry is never written: of bodies, arrays, results and items, of pickles and examples there is the
size alone, ``{"bytes": 1040}``, of errors that answer requests the code alone. What is written of people is what
logs have, too: names of models and methods, sessions, paths, processes, and why a model could not be loaded.

An object is ``{"is": module and class, field: …}``, a tuple ``{"tuple": […]}``, a mapping with other keys than
texts ``{"pairs": […]}``, a digest ``{"hex": …}``, and who is at the other end of a connection ``{"who": number}``.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

from ...protocol import child_messages, control_messages, messages
from ...protocol.errors import InvalidRequest
from ..core import events, instructions, regions, seen
from ..core.position import ALONE

FORMAT: Final = 1
#: Bytes that are no longer than this and tell a content from another, such as digests.
_MOST_DIGEST_BYTES: Final = 64


class Header(NamedTuple):
    """What a record begins with.

    Attributes:
        version: of onecopy.
        settings: as `Settings.to_wire` has them.
        totals_bytes: by device, how much memory there is.
        peers: by device, the others whose memory its workers can use.
        needs, loads: what earlier pools have seen, as `history.Known` has it.
        why: why it was written.
        spare_cores: how many cores were left for workers; records of old have none.
    """

    version: str
    settings: dict[str, Any]
    totals_bytes: Sequence[int]
    peers: dict[str, Sequence[str]]
    needs: dict[str, dict[str, int]]
    loads: dict[str, Any]
    why: str = ""
    spare_cores: int = ALONE.spare_cores


class Entry(NamedTuple):
    """One event, as it is in a file.

    Attributes:
        instructions: what the core wanted; None if it raised, or if that was not kept.
        wanted: if it was not kept, the kinds of these instructions, or only how many they were.
        raised: what it raised, if so.
    """

    number: int
    at_s: float
    event: Any
    instructions: list[Any] | None = None
    wanted: list[str] | int | None = None
    raised: str = ""


@dataclass(frozen=True)
class Someone:
    """Whoever was at the other end of a connection."""

    number: int


class Encoder:
    """Makes plain values of events and instructions, without what requests carry."""

    def __init__(self) -> None:
        self._numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._serial = itertools.count(1)
        self._lock = threading.Lock()  # a file is written by another thread than the one that events come in

    def encode(self, value: Any, *, has_digests: bool = False) -> Any:
        """Return a plain value.

        Args:
            value: an event, an instruction, or what is in them.
            has_digests: whether short bytes in it are digests, and stay what they are.
        """
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if type(value) in _NAMES:
            return self._object(value)
        if isinstance(value, Someone):
            return {"who": value.number}
        if isinstance(value, tuple | list):
            items = [self.encode(item, has_digests=has_digests) for item in cast("list[Any]", value)]
            return {"tuple": items} if isinstance(value, tuple) else items
        if isinstance(value, Mapping):
            return self._mapping(cast("Mapping[Any, Any]", value))
        if has_digests and type(value) is bytes and len(value) <= _MOST_DIGEST_BYTES:
            return {"hex": value.hex()}
        try:
            return {"bytes": memoryview(value).nbytes}
        except TypeError:
            return {"who": self._number(value)}

    def _object(self, value: Any) -> dict[str, Any]:
        kind = cast("type[Any]", type(value))
        fields: dict[str, Any] = {"is": _NAMES[kind]}
        for name, item in zip(kind._fields, value, strict=True):
            reduced = _REDUCED.get((kind, name))
            plain = reduced(item) if reduced else item
            try:
                fields[name] = self.encode(plain, has_digests=_has_digests(value, name))
            except RecursionError:  # as deep as it can be read: it was refused for that
                fields[name] = None
        return fields

    def _mapping(self, value: Mapping[Any, Any]) -> dict[str, Any]:
        if all(type(key) is str and key not in _MARKS for key in value):
            return {key: self.encode(item) for key, item in value.items()}
        return {"pairs": [[self.encode(key), self.encode(item)] for key, item in value.items()]}

    def _number(self, someone: object) -> int:
        with self._lock:
            number = self._numbers.get(someone)
            if number is None:
                number = self._numbers[someone] = next(self._serial)
            return number


def decode(value: Any) -> Any:
    """Return the event of which `Encoder.encode` has made a plain value; bodies are zeros of the same size."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    for mark, made in _MARKS.items():
        if mark in value:
            return made(value)
    return {key: decode(item) for key, item in value.items()}


def _object(fields: dict[str, Any]) -> Any:
    kind = _KINDS.get(fields["is"])
    if kind is None:
        raise InvalidRequest(f"it has an object of the unknown kind {fields['is']!r}")
    return kind(**{name: decode(item) for name, item in fields.items() if name != "is"})


_MARKS: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "is": _object,
    "tuple": lambda value: tuple(map(decode, value["tuple"])),
    "pairs": lambda value: {decode(key): decode(item) for key, item in value["pairs"]},
    "bytes": lambda value: bytes(value["bytes"]),
    "hex": lambda value: bytes.fromhex(value["hex"]),
    "who": lambda value: Someone(value["who"]),
}


def _kinds() -> Iterator[tuple[str, type]]:
    for module in (events, instructions, regions, seen, messages, control_messages, child_messages):
        for kind in vars(module).values():
            if isinstance(kind, type) and hasattr(kind, "_fields") and kind.__module__ == module.__name__:
                yield f"{module.__name__.rpartition('.')[2]}.{kind.__name__}", kind


_KINDS: Final = dict(_kinds())
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}


# --- what is written of what ---------------------------------------------------------------------------------

#: Where digests are that the core compares, or makes names of.
_DIGESTS: Final = ((regions.Want, "digest"), (messages.ModelBuilt, "manifest"))


def _has_digests(value: Any, field: str) -> bool:
    if type(value) is messages.LoadModel and field == "manifest":
        return value.source == "frozen"  # else it has the arguments of a factory
    return (type(value), field) in _DIGESTS


def _code(error: Any) -> Any:
    """Return the record of an error without what it says, which may be what was asked, or a part of it."""
    return {"code": error.get("code")} if isinstance(error, Mapping) else error


def _codes(errors: Any) -> Any:
    return [[index, _code(error)] for index, error in errors]


def _answers(answers: Any) -> Any:
    return [
        _code(one) if isinstance(one, Mapping) else [one[0], one[1], _codes(one[2]), *one[3:]] for one in answers
    ]


#: What is written of a field instead of all that is in it.
_REDUCED: Final[dict[tuple[type, str], Callable[[Any], Any]]] = {
    (events.AttemptEnded, "answers"): _answers,
    (messages.Reply, "errors"): _codes,
    (messages.Failed, "error"): _code,
}


# --- files -------------------------------------------------------------------------------------------------------


def write_record(path: str, header: Header, entries: Iterable[Entry]) -> None:
    """Write a file that only this user can read.

    Raises:
        OSError: it cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(json.dumps({"format": FORMAT, **header._asdict()}) + "\n")
        for entry in entries:
            fields = {name: value for name, value in entry._asdict().items() if value not in (None, "")}
            file.write(json.dumps(fields) + "\n")


def read_record(path: str) -> tuple[Header, list[Entry]]:
    """Read a file; events in it are still plain, see `decode`.

    Raises:
        OSError: it cannot be read.
        InvalidRequest: it is no record, or of another format; the message names the line.
    """
    entries: list[Entry] = []
    with open(path, encoding="utf-8") as file:
        header = _header(path, file.readline())
        for number, line in enumerate(file, 2):
            try:
                entries.append(Entry(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise InvalidRequest(f"{path}, line {number}: it is no event: {error}") from None
    return header, entries


def _header(path: str, line: str) -> Header:
    try:
        fields = json.loads(line)
        found = fields.pop("format")
        if found == FORMAT:
            return Header(**fields)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InvalidRequest(f"{path}: it does not begin as a record does: {error!r}") from None
    raise InvalidRequest(f"{path} is a record of format {found!r}; this onecopy reads format {FORMAT}")
