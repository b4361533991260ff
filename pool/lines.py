"""JSON <-> the arguments and results of requests; `onecopy run` and `onecopy batch` both speak it.

Into a request, a document is either a bare value, which is the one argument, or an object with nothing but
``id``, ``args`` (a list) and ``kwargs`` (an object). Wherever a value stands, an object with one of these as its
only key stands for what JSON lacks:

* ``{"npy": "path"}``: the NumPy array in this file, relative to the input file's folder; never a pickle.
* ``{"tensor": VALUE}``: a torch tensor of (nested) numbers, or of an ``npy``; floats become float32.
* ``{"base64": "text"}``: bytes.

A list stays a list, so that texts and other rows travel as they are. Out of a result, arrays and tensors become
nested lists of numbers in full precision, tuples become lists, keys become text as in ``json.dumps``, and what
JSON lacks becomes: bytes ``{"base64": "text"}``, complex ``{"real": 0.0, "imag": 1.0}``, and numbers that are
none ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, as in the JSON form of protocol buffers.
"""

from __future__ import annotations

import base64
import json
import math
import os
import sys
from typing import Any, Final, NamedTuple, cast

from ..protocol.errors import InvalidRequest
from ..protocol.limits import MAX_DEPTH

_KEYS: Final = ("id", "args", "kwargs")
#: Inside of texts, where alone they can be: `str.splitlines` and others would cut a line at them.
_LINE_ENDS: Final = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
_FORMS: Final = ("npy", "tensor", "base64")


class Arguments(NamedTuple):
    """What a request calls its model with; ``loaded_bytes`` is what came out of files."""

    args: list[Any]
    kwargs: dict[str, Any]
    loaded_bytes: int


def read_json(text: bytes | str) -> Any:
    """Return what a JSON text says.

    Raises:
        InvalidRequest: it is not JSON.
    """
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"not JSON: {error}") from None


def id_of(document: Any, number: int) -> Any:
    """Return the id that a document gives itself, else its number."""
    if isinstance(document, dict) and not _is_form(cast("dict[str, Any]", document)):
        return cast("dict[str, Any]", document).get("id", number)
    return number


def arguments(document: Any, folder: str) -> Arguments:
    """Return the arguments that a document stands for.

    Args:
        document: what was read from JSON.
        folder: where relative paths begin.

    Raises:
        InvalidRequest: it is not of the form that the top of this file describes.
    """
    reader = _Reader(folder)
    if not isinstance(document, dict) or _is_form(cast("dict[str, Any]", document)):
        return Arguments([reader.value(document)], {}, reader.loaded_bytes)
    fields = cast("dict[str, Any]", document)
    for key in fields:
        if key not in _KEYS:
            raise InvalidRequest(
                f"unknown key {key!r}: an object has id, args and kwargs; an object that is itself the "
                'argument is written {"args": [{...}]}'
            )
    if "args" not in fields and "kwargs" not in fields:
        raise InvalidRequest("neither args nor kwargs is given")
    args, kwargs = fields.get("args", []), fields.get("kwargs", {})
    if not isinstance(args, list):
        raise InvalidRequest(f"args must be a list, not {_kind(args)}")
    if not isinstance(kwargs, dict):
        raise InvalidRequest(f"kwargs must be an object, not {_kind(kwargs)}")
    read_args, read_kwargs = reader.value(args), {key: reader.value(value) for key, value in kwargs.items()}
    return Arguments(read_args, read_kwargs, reader.loaded_bytes)


def value_of(document: Any, folder: str) -> Any:
    """Return the one value that a document stands for, whatever its keys are called; see `arguments`."""
    return _Reader(folder).value(document)


def to_json(value: Any, name: str = "the result") -> str:
    """Return the JSON text of a result.

    Raises:
        InvalidRequest: a part of it has no JSON form; the message names its path.
    """
    try:
        return json.dumps(value, default=_plain, allow_nan=False, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):  # not a number, a key that is no text: look at each part
        pass
    try:
        return json.dumps(_spelled(value, name), allow_nan=False, ensure_ascii=False)
    except RecursionError:
        raise InvalidRequest(f"{name} is nested too deeply") from None


def to_bytes(text: str) -> bytes:
    """Return a line of JSON as UTF-8, in which nobody's idea of the end of a line occurs before its end."""
    if text.isascii():
        return text.encode() + b"\n"
    try:
        return text.translate(_LINE_ENDS).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold and UTF-8 cannot
        return json.dumps(json.loads(text)).encode() + b"\n"


def do_without_torch() -> None:
    """Have results come as NumPy arrays: importing torch only to print numbers would take a second.

    For a process whose only purpose is this; a ``tensor`` among the arguments imports torch all the same.
    """
    sys.modules.setdefault("torch", cast("Any", None))


class _Reader:
    """Turns what JSON holds into what it stands for."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.loaded_bytes = 0

    def value(self, value: Any, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"nested deeper than {MAX_DEPTH} lists and objects")
        if isinstance(value, list):
            return [self.value(one, depth + 1) for one in cast("list[Any]", value)]
        if not isinstance(value, dict):
            return value
        fields = cast("dict[str, Any]", value)
        if not _is_form(fields):
            return {key: self.value(one, depth + 1) for key, one in fields.items()}
        ((form, content),) = fields.items()
        if form == "npy":
            return self._npy(content)
        return _tensor(self.value(content, depth + 1)) if form == "tensor" else _bytes(content)

    def _npy(self, path: Any) -> Any:
        if not isinstance(path, str):
            raise InvalidRequest(f"npy must be the path of a file, not {_kind(path)}")
        import numpy

        try:
            array = numpy.load(os.path.join(self._folder, path), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise InvalidRequest(f"npy {path!r}: {reason}") from None
        if not isinstance(array, numpy.ndarray):
            array.close()
            raise InvalidRequest(f"npy {path!r} is an archive of arrays; store the one array with numpy.save")
        self.loaded_bytes += array.nbytes
        return cast("Any", array)


def _is_form(fields: dict[str, Any]) -> bool:
    return len(fields) == 1 and next(iter(fields)) in _FORMS


def _tensor(content: Any) -> Any:
    if not sys.modules.get("torch"):  # see `do_without_torch`
        sys.modules.pop("torch", None)
    try:
        import torch

        return torch.as_tensor(content)
    except Exception as error:  # noqa: BLE001 - whatever torch says of what cannot be a tensor
        raise InvalidRequest(f"tensor: {error}") from None


def _bytes(content: Any) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"base64: {error}") from None


def _plain(value: Any) -> Any:
    """Return the JSON form of a value that `json` does not know."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, complex):
        return {"real": value.real, "imag": value.imag}
    if hasattr(value, "tolist"):  # NumPy or torch, whichever is here
        return value.tolist()
    raise InvalidRequest(f"a {type(value).__name__} has no JSON form")


def _spelled(value: Any, path: str) -> Any:
    """Return a value of which every part has a JSON form."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, (list, tuple)):
        parts = cast("list[Any]", value)
        return [_spelled(part, f"{path}[{index}]") for index, part in enumerate(parts)]
    if isinstance(value, dict):
        return {
            _key(key, path): _spelled(part, f"{path}[{key!r}]")
            for key, part in cast("dict[Any, Any]", value).items()
        }
    return _spelled(_plain(value), path)


def _key(key: Any, path: str) -> str:
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, (bool, int, float)):
        return json.dumps(key)
    raise InvalidRequest(f"{path} has the key {key!r}, which has no JSON form; return a list of pairs")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(cast("type[Any]", type(value)), "a number")
