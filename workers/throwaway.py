"""Functions run in a fork of this process: what they leave in memory, import or break is gone with them."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, cast

from ..protocol.errors import LoadFailed, PoolError, from_record
from .failure import record_of


class Outcome(NamedTuple):
    """What came of a function.

    Attributes:
        value: what it returned.
        grown_bytes: how much more memory the fork had at its peak than when it was forked.
    """

    value: Any
    grown_bytes: int


class Fork:
    """A fork in which a function runs; it has begun when this exists.

    Args:
        function: what it returns must be picklable.
        name: of the model that it is about, for errors.
    """

    def __init__(self, function: Callable[[], Any], name: str) -> None:
        self._name = name
        self._forked_bytes = _resident_bytes()
        self._read, write = os.pipe2(os.O_CLOEXEC)
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            _be_child(function, name, write)
        os.close(write)

    def outcome(self) -> Outcome:
        """Wait for its end.

        Raises:
            PoolError: what the function raised, or that it died.
        """
        with open(self._read, "rb") as pipe:
            told = pipe.read()
        _, status, usage = os.wait4(self._pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code or not told:
            cause = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise LoadFailed(f"{self._name}: the process that tried it died: {cause}")
        value, error = pickle.loads(told)  # noqa: S301 - from our own fork
        if error is not None:
            raise from_record(error)
        # The system counts a fork's peak from what it was forked with.
        return Outcome(value, max(0, usage.ru_maxrss * 1024 - self._forked_bytes))


def _be_child(function: Callable[[], Any], name: str, write: int) -> NoReturn:
    """Run the function and end; never return into the code of the process that was forked."""
    code = 1
    try:
        value, error = None, None
        try:
            value = function()
        except BaseException as raised:  # noqa: BLE001 - whatever user code raises is told to the user
            error = record_of(raised, cast("type[PoolError]", LoadFailed), name)
        with open(write, "wb") as pipe:
            pickle.dump((value, error), pipe)
        sys.stdout.flush()
        sys.stderr.flush()
        code = 0
    finally:
        os._exit(code)


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
