"""The files of a batch job: the input's lines, the output, and what lets a job be taken up again.

Beside the output OUT lies OUT.state: size and digest of the whole input, model and method. It is written, synced
and renamed into place before the first line of output, and never touched again. How far the job came is told by
the output itself: it holds one line for each line of input, in order, so its complete lines are what is done.
A job that was killed, or whose machine lost power, leaves at worst a torn end, which resuming cuts off: every
line from the first that is not complete. So nothing is lost or done twice, whatever was written last.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import stat
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, Self

import xxhash

from ..protocol.errors import InvalidRequest, PoolError
from .checks import ConfigError

_READ_BYTES: Final = 1 << 20
#: A longer line is an error of its own; it is not kept in memory.
MAX_LINE_BYTES: Final = 256 << 20
#: How much work a loss of power may undo.
_SYNC_S: Final = 5.0
_FORMAT: Final = 1


class InputLine(NamedTuple):
    """A line that is not blank; ``number`` counts all lines from 0; ``text`` is None for one that is too long."""

    number: int
    text: bytes | None


class InputLines:
    """Reads lines from a descriptor, a bounded piece at a time.

    Attributes:
        size_bytes, digest: of what was read so far.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poller = select.poll()
        self._poller.register(fd, select.POLLIN)
        self._lines: deque[InputLine] = deque()
        self._begun: list[bytes] = []  # pieces of the line whose end has not come
        self._begun_bytes = 0
        self._number = 0
        self._is_at_end = False
        self.size_bytes = 0
        self.digest = xxhash.xxh3_128()

    def __iter__(self) -> Iterator[InputLine]:
        return self

    def __next__(self) -> InputLine:
        while not self._lines:
            if self._is_at_end:
                raise StopIteration
            self._read()
        return self._lines.popleft()

    def is_ready(self) -> bool:
        """Whether the next line, or the end, can be had without waiting for whoever writes the input."""
        while not self._lines and not self._is_at_end:
            if not self._is_readable():
                return False
            self._read()
        return True

    def _is_readable(self) -> bool:
        try:
            return bool(self._poller.poll(0))
        except OSError:
            return True

    def _read(self) -> None:
        data = os.read(self._fd, _READ_BYTES)
        self.digest.update(data)
        self.size_bytes += len(data)
        if not data:
            self._is_at_end = True
            if self._begun_bytes:
                self._end_line(b"")
            return
        *ends, rest = data.split(b"\n")
        for end in ends:
            self._end_line(end)
        self._go_on(rest)

    def _go_on(self, piece: bytes) -> None:
        self._begun_bytes += len(piece)
        if self._begun_bytes > MAX_LINE_BYTES:
            self._begun.clear()
        elif piece:
            self._begun.append(piece)

    def _end_line(self, piece: bytes) -> None:
        self._go_on(piece)
        text = None if self._begun_bytes > MAX_LINE_BYTES else b"".join(self._begun)
        if text is None or text.strip():
            self._lines.append(InputLine(self._number, text))
        self._number += 1
        self._begun.clear()
        self._begun_bytes = 0


class JobState(NamedTuple):
    """What OUT.state holds: what must not change between a job and its resumption."""

    input_bytes: int
    input_xxh3_128: str
    model: str
    method: str

    def check_same(self, now: JobState, output: str) -> None:
        """Raise if a job cannot go on because it would be another."""
        if self[:2] != now[:2]:
            raise InvalidRequest(
                f"the input has changed since {output} was begun ({self.input_bytes:,} bytes then, "
                f"{now.input_bytes:,} now): its results would not belong together; use --overwrite to begin anew"
            )
        if self != now:
            was = f"{self.model}.{self.method}" if self.method else self.model
            raise InvalidRequest(f"{output} was begun with {was}; resume with that, or use --overwrite")


class JobOutput:
    """Where a job's lines go; synced every few seconds if it is a file.

    Attributes:
        done, failed: lines that are there from before, and those of them that are errors.
    """

    def __init__(self, fd: int, *, is_file: bool) -> None:
        self._fd = fd
        self._is_file = is_file
        self._unwritten: list[bytes] = []
        self._synced_at = time.monotonic()
        self.done = 0
        self.failed = 0

    @classmethod
    def begin(cls, path: str, state: JobState | None, *, resume: bool, overwrite: bool) -> Self:
        """Open an output file, locked, and make it ready for the lines that are to come.

        Args:
            path: the file.
            state: what the job is; None if it cannot be resumed, because its input is a stream.
            resume: go on with what is there, if anything is.
            overwrite: begin anew even if something is there.

        Raises:
            ConfigError: it is there and neither resume nor overwrite was asked for, or cannot be opened.
            InvalidRequest: it cannot be resumed, or another job writes it.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (0 if resume or overwrite else os.O_EXCL)
        try:
            fd = os.open(path, flags, 0o666)
        except FileExistsError:
            raise ConfigError(f"{path} is there already; use --resume to go on with it, or --overwrite") from None
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        try:
            _lock(fd, path)
            output = cls(fd, is_file=True)
            if resume and state is not None and os.fstat(fd).st_size:
                _read_state(path).check_same(state, path)
                output._keep_complete_lines()
            else:
                os.ftruncate(fd, 0)
                _write_state(path, state)
        except BaseException:
            os.close(fd)
            raise
        return output

    def write(self, line: bytes) -> None:
        """Take a line; it is written with `flush`."""
        self._unwritten.append(line)

    def flush(self) -> None:
        """Write what was taken, and see from time to time that it is on the disk."""
        data = memoryview(b"".join(self._unwritten))
        self._unwritten.clear()
        while data:
            data = data[os.write(self._fd, data) :]
        if self._is_file and time.monotonic() - self._synced_at > _SYNC_S:
            self._sync()

    def close(self) -> None:
        """Write and sync everything; the descriptor is closed in any case."""
        try:
            self.flush()
            if self._is_file:
                self._sync()
        finally:
            if self._is_file:
                os.close(self._fd)

    def _sync(self) -> None:
        os.fdatasync(self._fd)
        self._synced_at = time.monotonic()

    def _keep_complete_lines(self) -> None:
        end = 0
        with open(self._fd, "rb", closefd=False) as file:
            for line in file:
                if not _is_complete(line):
                    break
                try:
                    self.failed += b'"error": ' in line and "error" in json.loads(line)
                except (ValueError, RecursionError):  # what a loss of power left only looks like a line
                    break
                end += len(line)
                self.done += 1
        os.ftruncate(self._fd, end)
        os.lseek(self._fd, end, os.SEEK_SET)


def is_regular(path: str) -> bool:
    """Whether a path is, or would become, a regular file: one that can be read twice, cut and locked."""
    try:
        return path != "-" and stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return True


def _is_complete(line: bytes) -> bool:
    # A loss of power can leave zeros where data was to be; JSON never has any.
    return line.startswith(b'{"id": ') and line.endswith(b"}\n") and b"\0" not in line


def _lock(fd: int, path: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InvalidRequest(f"another job is writing {path}") from None


def _read_state(output: str) -> JobState:
    path = f"{output}.state"
    try:
        with open(path, encoding="utf-8") as file:
            fields: dict[str, Any] = json.load(file)
        if fields.pop("format") != _FORMAT:
            raise PoolError(f"{path} was written by another version of onecopy")
        state = JobState(**fields)
        if [type(field) for field in state] != [int, str, str, str]:
            raise TypeError("input_bytes must be a whole number, all else a text")
    except FileNotFoundError:
        raise InvalidRequest(f"{output} cannot be resumed: there is no {path} that tells its input") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidRequest(f"{output} cannot be resumed: {path} is broken ({error})") from None
    return state


def _write_state(output: str, state: JobState | None) -> None:
    path = f"{output}.state"
    if state is None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # of an earlier job
        return
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump({"format": _FORMAT, **state._asdict()}, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)
    folder = os.open(os.path.dirname(os.path.abspath(output)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
