"""What weight sets were seen to need, and loads to take, kept across pools in a file in the user's cache folder.

::

    {"version": 2,
     "needs": {identity of the weight set: {signature of the inputs: bytes}},
     "loads": {load key: {"weights_bytes": 90900000, "load_s": 1.3, …}}}

It only saves the first runs from not fitting and the first loads from being guessed at, so nothing depends on
it: a file that is broken, of another version or not writable is said in the notes and done without. A file of
version 1 has no loads. Several pools may use it at once. Each merges what it has learned into what is there, and
replaces the file as a whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

from ..core.instructions import Remember, RememberLoad
from ..core.predictions import MAX_KEY, MAX_LOADS
from ..core.seen import NOTHING, Seen, merged

_VERSION: Final = 2
_READABLE: Final = (1, _VERSION)
#: What is learned within this time is written at once.
_DELAY_S: Final = 1.0
#: Weight sets that are kept, as loads are, those learned of last; and signatures for each, those of the largest
#: needs.
MAX_SETS: Final = 1000
MAX_SIGNATURES: Final = 64
#: A file larger than this is none of ours.
MAX_FILE_BYTES: Final = 32 << 20
#: No size or time is that large.
_MAX_BYTES: Final = 1 << 48
_MAX_S: Final = 1e6

Needs = dict[str, dict[str, int]]
Loads = dict[str, Seen]


class Known(NamedTuple):
    """What is in the file.

    Attributes:
        needs: in bytes, by identity of the weight set and signature of the inputs.
        loads: what they took, by load key.
    """

    needs: Needs
    loads: Loads


class History:
    """Remembers needs and loads.

    Args:
        path: the file; the folder is made when it is first written.
        call_at: the reactor's timer.
        note: takes sentences for the log.

    Attributes:
        known: what earlier pools have seen.
        complaint: why that could not be read, if so.
    """

    def __init__(
        self, path: str, call_at: Callable[[float, Callable[[], None]], None], note: Callable[[str], None]
    ) -> None:
        self._path = path
        self._call_at = call_at
        self._note = note
        self._new = Known({}, {})
        self.known = Known({}, {})
        self.complaint = ""
        try:
            self.known = _read(path)
        except FileNotFoundError:
            return
        except (OSError, ValueError, AttributeError) as error:
            self.complaint = f"{path}: what earlier runs needed is not known: {error}"

    def remember(self, one: Remember) -> None:
        """Keep a need, if it is larger than what is known; it is written within a second."""
        self._write_soon()
        known = self._new.needs.setdefault(one.identity, {})
        known[one.signature] = max(one.need_bytes, known.get(one.signature, 0))

    def remember_load(self, one: RememberLoad) -> None:
        """Keep what a load took; it is written within a second."""
        self._write_soon()
        self._new.loads[one.load_key] = merged(self._new.loads.get(one.load_key, NOTHING), one.seen)

    def write(self) -> None:
        """Write what was learned since it was last written."""
        new, self._new = self._new, Known({}, {})
        if not any(new):
            return
        old = Known({}, {})
        with contextlib.suppress(OSError, ValueError, AttributeError):  # said when it was read; this replaces it
            old = _read(self._path)
        try:
            _write(self._path, _both(old, new))
        except OSError as error:
            self._note(f"{self._path}: what runs need is not remembered: {error.strerror or error}")

    def _write_soon(self) -> None:
        if not any(self._new):
            self._call_at(time.monotonic() + _DELAY_S, self.write)


def _both(old: Known, new: Known) -> Known:
    """Return both; those that were learned of last stand last, and the first are dropped if they are too many."""
    needs = {identity: known for identity, known in old.needs.items() if identity not in new.needs}
    for identity, learned in new.needs.items():
        known = old.needs.get(identity, {})
        both = known | {signature: max(need, known.get(signature, 0)) for signature, need in learned.items()}
        largest = sorted(both.items(), key=lambda item: item[1], reverse=True)[:MAX_SIGNATURES]
        needs[identity] = dict(largest)
    loads = {key: seen for key, seen in old.loads.items() if key not in new.loads}
    loads |= {key: merged(old.loads.get(key, NOTHING), seen) for key, seen in new.loads.items()}
    return Known(dict(list(needs.items())[-MAX_SETS:]), dict(list(loads.items())[-MAX_LOADS:]))


def _read(path: str) -> Known:
    """Return what a file holds.

    Raises:
        OSError: it cannot be read.
        ValueError, AttributeError: it is not what `_write` writes.
    """
    with open(path, "rb") as file:
        text = file.read(MAX_FILE_BYTES + 1)
    if len(text) > MAX_FILE_BYTES:
        raise ValueError(f"it is larger than {MAX_FILE_BYTES:,} bytes")
    document = json.loads(text)
    if not isinstance(document, dict) or cast("dict[str, Any]", document).get("version") not in _READABLE:
        raise ValueError(f"it is not of version {_VERSION}")
    needs: Needs = {}
    for identity, known in cast("dict[str, Any]", document).get("needs", {}).items():
        for signature, need_bytes in known.items():
            if type(need_bytes) is not int or not 0 <= need_bytes < _MAX_BYTES:
                raise ValueError(f"a need of {need_bytes!r} bytes")
            needs.setdefault(identity, {})[signature] = need_bytes
    loads = cast("dict[str, Any]", document).get("loads", {}).items()
    return Known(needs, {key: _read_seen(figures) for key, figures in loads if len(key) <= MAX_KEY})


def _read_seen(figures: Any) -> Seen:
    """Return what one load took; figures of other names are left out."""
    known = {name: value for name, value in figures.items() if name in Seen._fields}
    for name, value in known.items():
        is_right = type(value) is int and 0 <= value < _MAX_BYTES
        if name.endswith("_s"):
            is_right = type(value) in (int, float) and 0 <= value < _MAX_S
        if not is_right:
            raise ValueError(f"a load whose {name} is {value!r}")
    return Seen(**known)


def _write(path: str, known: Known) -> None:
    loads = {
        key: {name: value for name, value in seen._asdict().items() if value is not None}
        for key, seen in known.loads.items()
    }
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".needs-", delete=False) as file:
        try:
            file.write(json.dumps({"version": _VERSION, "needs": known.needs, "loads": loads}))
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
