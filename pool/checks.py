"""What settings have in common: the error that a wrong one is, names, numbers and sizes.

Standard library only: the supervisor imports this, and it must start in a tenth of a second.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from ..protocol.errors import InvalidRequest
from ..protocol.limits import MAX_NAME_BYTES

#: What may stand for a model or method on the wire and in a file.
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-/]*")
#: Sizes as people write them.
#: More than any size has.
_MOST_DIGITS: Final = 30
_UNITS: Final = {
    "": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 1 << 10, "ki": 1 << 10,
    "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
}  # fmt: skip
#: A larger number of seconds is surely a mistake.
_MOST: Final = 1e9


class ConfigError(InvalidRequest):
    """A setting that cannot be; the message names it, where it stands, and what would be right."""


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


def read_size(what: str, value: int | str) -> int:
    """Return a number of bytes, which may be written as ``"256MiB"``.

    Raises:
        ConfigError: it is neither a whole number from 0 nor such a text.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKMGT]i?)?B?", value) if isinstance(value, str) else None
    if match is not None and len(match[1]) <= _MOST_DIGITS:
        return int(float(match[1]) * _UNITS[match[2] or ""])
    if type(value) is not int or value < 0:
        raise ConfigError(f"{what} must be a number of bytes from 0, or a text such as '256MiB'; not {value!r}")
    return value


def check_keys(where: str, values: Mapping[str, Any], kind: type[Any], also: Sequence[str] = ()) -> None:
    """Refuse keys that are no fields of a dataclass; the message has what was probably meant.

    Raises:
        ConfigError: there is one.
    """
    known = [one.name for one in dataclasses.fields(kind) if one.name != "_"] + list(also)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{where} has an unknown key {key!r}; {hint}")


def check_choice(what: str, value: Any, choices: Sequence[str | None]) -> None:
    """Refuse what is none of a few texts.

    Raises:
        ConfigError: it is none of them.
    """
    if value not in choices:
        known = ", ".join(repr(choice) for choice in choices if choice is not None)
        raise ConfigError(f"{what} must be one of {known}, not {value!r}")


def check_count(what: str, value: Any, least: int, most: int) -> None:
    """Refuse what is no whole number between two.

    Raises:
        ConfigError: it is none.
    """
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(f"{what} must be a whole number from {least} to {most}, not {value!r}")


def check_number(what: str, value: Any, least: float, most: float = _MOST, *, excluded: bool = False) -> None:
    """Refuse what is no number from ``least``, which itself may be ``excluded``, to ``most``.

    Raises:
        ConfigError: it is none.
    """
    is_number = type(value) in (int, float) and least <= value <= most
    if not is_number or (excluded and value == least):
        bound = f"above {least:g}" if excluded else f"from {least:g}"
        raise ConfigError(f"{what} must be a number {bound}, at most {most:g}; not {value!r}")


def check_flag(what: str, value: Any) -> None:
    """Refuse what is neither true nor false.

    Raises:
        ConfigError: it is neither.
    """
    if type(value) is not bool:
        raise ConfigError(f"{what} must be true or false, not {value!r}")
