"""What weight sets were seen to need, kept across pools in a file in the user's cache folder.

It only saves the first runs from not fitting, so nothing depends on it: a file that is broken, of another version
or not writable is said in the notes and done without. Several pools may use it at once. Each merges what it has
learned into what is there, and replaces the file as a whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any, Final, cast

from ..core.instructions import Remember

_VERSION: Final = 1
#: What is learned within this time is written at once.
_DELAY_S: Final = 1.0
#: Weight sets that are kept, those learned of last; and signatures for each, those of the largest needs.
MAX_SETS: Final = 1000
MAX_SIGNATURES: Final = 64
#: A file larger than this is none of ours.
MAX_FILE_BYTES: Final = 32 << 20

Needs = dict[str, dict[str, int]]


class History:
    """Remembers needs.

    Args:
        path: the file; the folder is made when it is first written.
        call_at: the reactor's timer.
        note: takes sentences for the log.

    Attributes:
        known: what earlier pools have seen, in bytes, by identity of the weight set and signature of the inputs.
        complaint: why that could not be read, if so.
    """

    def __init__(
        self, path: str, call_at: Callable[[float, Callable[[], None]], None], note: Callable[[str], None]
    ) -> None:
        self._path = path
        self._call_at = call_at
        self._note = note
        self._new: Needs = {}
        self.known: Needs = {}
        self.complaint = ""
        try:
            self.known = _read(path)
        except FileNotFoundError:
            return
        except (OSError, ValueError, AttributeError) as error:
            self.complaint = f"{path}: what earlier runs needed is not known: {error}"

    def remember(self, one: Remember) -> None:
        """Keep a need, if it is larger than what is known; it is written within a second."""
        if not self._new:
            self._call_at(time.monotonic() + _DELAY_S, self.write)
        known = self._new.setdefault(one.identity, {})
        known[one.signature] = max(one.need_bytes, known.get(one.signature, 0))

    def write(self) -> None:
        """Write what was learned since it was last written."""
        new, self._new = self._new, {}
        if not new:
            return
        needs: Needs = {}
        with contextlib.suppress(OSError, ValueError, AttributeError):  # said when it was read; this replaces it
            needs = _read(self._path)
        try:
            _write(self._path, _merged(needs, new))
        except OSError as error:
            self._note(f"{self._path}: what runs need is not remembered: {error.strerror or error}")


def _merged(old: Needs, new: Needs) -> Needs:
    """Return both; those that were learned of last stand last, and the first are dropped if they are too many."""
    merged = {identity: known for identity, known in old.items() if identity not in new}
    for identity, learned in new.items():
        known = old.get(identity, {})
        both = known | {signature: max(need, known.get(signature, 0)) for signature, need in learned.items()}
        largest = sorted(both.items(), key=lambda item: item[1], reverse=True)[:MAX_SIGNATURES]
        merged[identity] = dict(largest)
    return dict(list(merged.items())[-MAX_SETS:])


def _read(path: str) -> Needs:
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
    if not isinstance(document, dict) or cast("dict[str, Any]", document).get("version") != _VERSION:
        raise ValueError(f"it is not of version {_VERSION}")
    needs: Needs = {}
    for identity, known in cast("dict[str, Any]", document).get("needs", {}).items():
        for signature, need_bytes in known.items():
            if type(need_bytes) is not int or not 0 <= need_bytes < 1 << 48:
                raise ValueError(f"a need of {need_bytes!r} bytes")
            needs.setdefault(identity, {})[signature] = need_bytes
    return needs


def _write(path: str, needs: Needs) -> None:
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".needs-", delete=False) as file:
        try:
            json.dump({"version": _VERSION, "needs": needs}, file)
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
