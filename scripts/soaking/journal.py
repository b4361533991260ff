"""How what was asked and what came of it reaches the books: at once, or line by line through a pipe."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from . import pattern
from .acts import Acts
from .books import Asked, Books, Key


class Journal(Protocol):
    """Takes notes for one client; from any thread."""

    def asked(self, asked: Asked) -> int:
        """Note a request before it is sent; return its number."""
        ...

    def answered(self, number: int, answer: Any) -> None:
        """Note its answer."""
        ...

    def failed(self, number: int, error: BaseException) -> None:
        """Note its error."""
        ...

    def given_up(self, number: int) -> None:
        """Note that nobody waits for it any more."""
        ...

    def killed(self) -> None:
        """Note that a worker is about to be killed."""
        ...

    def complain(self, text: str) -> None:
        """Note what must not have happened."""
        ...


class Lines:
    """A journal of lines: each is JSON, what happened and then what `Entries` takes.

    Args:
        fd: where they go, one write each, so that a client that is killed leaves whole ones.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)

    def asked(self, asked: Asked) -> int:
        """See `Journal`."""
        with self._lock:
            number = next(self._numbers)
            fields = [getattr(asked, name) for name in asked.__slots__]
            self._write("asked", number, fields)
        return number

    def answered(self, number: int, answer: Any) -> None:
        """See `Journal`."""
        self._write("answered", number, plain(answer), time.monotonic())

    def failed(self, number: int, error: BaseException) -> None:
        """See `Journal`."""
        self._write("failed", number, code_of(error), time.monotonic(), str(error)[:500])

    def given_up(self, number: int) -> None:
        """See `Journal`."""
        self._write("given_up", number)

    def killed(self) -> None:
        """See `Journal`."""
        self._write("killed", time.monotonic())

    def complain(self, text: str) -> None:
        """See `Journal`."""
        self._write("complain", text)

    def _write(self, *words: Any) -> None:
        data = json.dumps(words).encode() + b"\n"
        while data:
            data = data[os.write(self._fd, data) :]


class Entries:
    """Enters what clients note into the books; from any thread.

    Args:
        books, acts: where it goes.

    Attributes:
        lock: held while the books are written, and to be held while they are read.
    """

    def __init__(self, books: Books, acts: Acts) -> None:
        self._books = books
        self._acts = acts
        self._ends: dict[str, Callable[..., None]] = {
            "answered": books.answered, "failed": books.failed, "given_up": books.given_up,
        }  # fmt: skip
        self.lock = threading.RLock()

    def enter(self, client: str, line: bytes) -> None:
        """Enter a line of `Lines`."""
        what, *words = json.loads(line)
        with self.lock:
            if what == "asked":
                number, (at, model, of, *rest) = words
                self._books.asked(Key(client, number), Asked(at, model, tuple(of), *rest))
            elif what == "killed":
                self._acts.died(words[0])
            elif what == "complain":
                self._books.complain(f"{client}: {words[0]}")
            else:
                key = Key(client, words[0])
                self._ends[what](key, *words[1:])

    def complain(self, text: str) -> None:
        """Enter what must not have happened."""
        with self.lock:
            self._books.complain(text)

    def died(self, count: int = 1) -> None:
        """Enter that workers are about to be killed."""
        with self.lock:
            self._acts.died(time.monotonic(), count)


class OwnJournal:
    """The journal of a client in the process that keeps the books.

    Args:
        client: what it is called.
        entries: where its notes go.
        books: the same.
    """

    def __init__(self, client: str, entries: Entries, books: Books) -> None:
        self._client = client
        self._entries = entries
        self._books = books
        self._numbers = itertools.count(1)

    def asked(self, asked: Asked) -> int:
        """See `Journal`."""
        with self._entries.lock:
            number = next(self._numbers)
            self._books.asked(Key(self._client, number), asked)
        return number

    def answered(self, number: int, answer: Any) -> None:
        """See `Journal`."""
        answer = plain(answer)
        with self._entries.lock:
            self._books.answered(Key(self._client, number), answer, time.monotonic())

    def failed(self, number: int, error: BaseException) -> None:
        """See `Journal`."""
        with self._entries.lock:
            self._books.failed(Key(self._client, number), code_of(error), time.monotonic(), str(error))

    def given_up(self, number: int) -> None:
        """See `Journal`."""
        with self._entries.lock:
            self._books.given_up(Key(self._client, number))

    def killed(self) -> None:
        """See `Journal`."""
        self._entries.died()

    def complain(self, text: str) -> None:
        """See `Journal`."""
        self._entries.complain(f"{self._client}: {text}")


def code_of(error: BaseException) -> str:
    """Return an error's name on the wire, or that of its class if it has none."""
    return getattr(error, "code", type(error).__name__)


def plain(value: Any) -> Any:
    """Return what can be written as JSON: a large array's digest stands for it."""
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        return array.tolist() if array.ndim > 1 else pattern.digest(array)
    return value
