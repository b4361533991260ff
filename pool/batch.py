"""The job behind ``onecopy batch``: lines of requests in, lines of results out, in order.

Each line of input that is not blank becomes one line of output: ``{"id": ..., "result": ...}``, or
``{"id": ..., "error": {"code", "message", "details"}}`` for one that is broken or failed; see `lines` for the
forms of values. The id is the line's own, else its number from 0. What would fail every line alike (the
supervisor is gone, the model cannot be loaded) ends the job instead, with nothing written for the lines that it
hit: ``--resume`` goes on with them, see `jobfiles`.

A bounded number of requests, and of bytes, is under way at once; no file is ever read as a whole.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ..protocol.errors import (
    InvalidRequest,
    LoadFailed,
    ModelNotFound,
    OutOfBudget,
    PoolBusy,
    PoolError,
    RequestCancelled,
    SupervisorLost,
)
from .checks import ConfigError
from .client import Pool
from .flow import Flow
from .jobfiles import MAX_LINE_BYTES, InputLine, InputLines, JobOutput, JobState, is_regular
from .lines import arguments, id_of, read_json, to_bytes, to_json
from .options import RequestOptions

#: Bytes of requests and expected answers under way at once.
_AHEAD_BYTES: Final = 256 << 20
#: What says nothing about the line that it hit.
_ENDS_THE_JOB: Final = (SupervisorLost, RequestCancelled, ModelNotFound, LoadFailed, OutOfBudget, PoolBusy)


@dataclass(frozen=True)
class BatchOptions:
    """What a job is to do.

    Args:
        model, method: what runs; an empty method is the model's own.
        input, output: paths; ``-`` for standard input and output.
        resume, overwrite: what to do if there is output already; it is refused otherwise.
        timeout_s, retries, priority: of each request; see `RequestOptions`.
        progress: show a bar, if standard error is a terminal.
    """

    model: str
    method: str
    input: str
    output: str
    resume: bool = False
    overwrite: bool = False
    timeout_s: float | None = None
    retries: int = 1
    priority: int = 0
    progress: bool = True


class Tally(NamedTuple):
    """How a job ended: lines of output, and those of them that are errors."""

    lines: int
    failed: int


class JobInterrupted(PoolError):
    """A job ended before its input did."""

    code = "job_interrupted"


class _UnderWay(NamedTuple):
    id: Any
    size_bytes: int


def run_batch(endpoint: str | None, options: BatchOptions) -> Tally:
    """Run a job to its end.

    Raises:
        ConfigError: the options cannot be.
        JobInterrupted: the job ended early; the message says why, and how to go on.
        PoolError: it could not begin.
    """
    _check(options)
    with contextlib.ExitStack() as stack:
        input_fd = stack.enter_context(_opened(options.input, os.O_RDONLY))
        pool = stack.enter_context(Pool.connect(endpoint))
        _check_model(pool, options.model)
        state, total = _look_through(input_fd, options) if is_regular(options.input) else (None, None)
        output = _begin_output(options, state, stack)
        job = _Job(pool, options, InputLines(input_fd), output)
        try:
            with contextlib.closing(output), _bar(options, total, output.done) as bar:
                job.run(bar.update)
        except (PoolError, OSError, KeyboardInterrupt) as error:
            raise JobInterrupted(_farewell(error, job.tally, options, state)) from error
        if state is not None and job.input_digest != state.input_xxh3_128:
            raise InvalidRequest(f"{options.input} was changed while the job ran; {options.output} may mix both")
        return job.tally


class _Job:
    """Keeps requests under way, and writes their results in order."""

    def __init__(self, pool: Pool, options: BatchOptions, source: InputLines, output: JobOutput) -> None:
        self._pool = pool
        self._source = source
        self._output = output
        request = RequestOptions(
            options.model, options.method, options.priority, options.timeout_s, options.retries
        )
        self._flow = Flow(pool._connection, request, may_look_ahead=is_regular(options.input))
        self._results: deque[Any] = deque()  # of the oldest pack; those that failed are errors
        self._folder = os.getcwd() if options.input == "-" else os.path.dirname(os.path.abspath(options.input))
        self._under_way: deque[_UnderWay] = deque()
        self._under_way_bytes = 0
        self._answer_bytes = 0  # of the largest answer so far, which the next ones are expected to have
        self.tally = Tally(output.done, output.failed)

    @property
    def input_digest(self) -> str:
        """The digest of the input as far as it was read."""
        return self._source.digest.hexdigest()

    def run(self, finished_one: Callable[[], object]) -> None:
        """Run what is not done yet; calls back after each line of output."""
        try:
            for _ in range(self._output.done):
                next(self._source, None)
            while True:
                # An input that is a pipe gets its answers while it waits for more lines.
                while self._under_way and (self._is_full or not self._source.is_ready()):
                    self._finish_one()
                    finished_one()
                if not self._source.is_ready():
                    self._output.flush()
                line = next(self._source, None)
                if line is None:
                    break
                self._begin(line)
            while self._under_way:
                self._finish_one()
                finished_one()
        finally:
            self._flow.close()

    @property
    def _is_full(self) -> bool:
        expected_bytes = self._under_way_bytes + self._answer_bytes * len(self._under_way)
        return not self._flow.has_room or expected_bytes > _AHEAD_BYTES

    def _begin(self, line: InputLine) -> None:
        """Submit a line; one that cannot be is an error in its turn."""
        name, size_bytes = line.number, 0
        try:
            if line.text is None:
                raise InvalidRequest(f"a line has at most {MAX_LINE_BYTES:,} bytes; pass large arrays as npy")
            document = read_json(line.text)
            name = id_of(document, line.number)
            args, kwargs, loaded_bytes = arguments(document, self._folder)
            size_bytes = len(line.text) + loaded_bytes
            self._flow.add_call(args, kwargs)
        except PoolError as error:
            self._flow.add_failed(error)
        self._under_way.append(_UnderWay(name, size_bytes))
        self._under_way_bytes += size_bytes

    def _finish_one(self) -> None:
        """Write the oldest line's result, once it is there."""
        name, size_bytes = self._under_way[0]
        label = f'{{"id": {to_json(name)}, '
        try:
            line, failed = to_bytes(f'{label}"result": {to_json(self._next_result())}}}'), False
        except PoolError as error:
            if self._ends_the_job(error):
                raise
            line, failed = to_bytes(f'{label}"error": {to_json(error.to_record())}}}'), True
        self._output.write(line)
        self._under_way.popleft()
        self._under_way_bytes -= size_bytes
        self._answer_bytes = max(self._answer_bytes, len(line))
        self.tally = Tally(self.tally.lines + 1, self.tally.failed + failed)

    def _next_result(self) -> Any:
        """Wait for the oldest line's result, and return it or raise why there is none."""
        if not self._results:
            if not self._flow.done():
                self._output.flush()
            pack = self._flow.next_pack()
            assert pack is not None, "a line is under way"
            self._results.extend(pack.outcomes())
        self._flow.under_way -= 1
        result = self._results.popleft()
        if isinstance(result, BaseException):
            raise result
        return result

    def _ends_the_job(self, error: PoolError) -> bool:
        if isinstance(error, _ENDS_THE_JOB):
            return True
        try:
            self._pool._connection.check_usable()
        except PoolError:
            return True
        return False


def _check(options: BatchOptions) -> None:
    if options.resume and options.overwrite:
        raise ConfigError("--resume goes on with the output, --overwrite begins anew: use one of them")
    if options.resume and not (is_regular(options.input) and is_regular(options.output)):
        raise ConfigError("--resume needs an input and an output that are files, not streams")
    with contextlib.suppress(OSError):
        if os.path.samefile(options.input, options.output):
            raise ConfigError(f"{options.output} is the input, too; write to another file")


def _check_model(pool: Pool, name: str) -> None:
    names = [model.name for model in pool.models()]
    if name not in names:
        raise ModelNotFound(f"no model {name!r} here; there are: {', '.join(sorted(names)) or 'none'}")


def _look_through(input_fd: int, options: BatchOptions) -> tuple[JobState, int]:
    """Return what identifies a job, and how many lines it has."""
    lines = InputLines(input_fd)
    total = sum(1 for _ in lines)
    os.lseek(input_fd, 0, os.SEEK_SET)
    return JobState(lines.size_bytes, lines.digest.hexdigest(), options.model, options.method), total


def _begin_output(options: BatchOptions, state: JobState | None, stack: contextlib.ExitStack) -> JobOutput:
    if is_regular(options.output):
        return JobOutput.begin(options.output, state, resume=options.resume, overwrite=options.overwrite)
    return JobOutput(stack.enter_context(_opened(options.output, os.O_WRONLY)), is_file=False)


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Generator[int]:
    if path == "-":
        yield 0 if flags == os.O_RDONLY else 1
        return
    try:
        fd = os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    try:
        yield fd
    finally:
        os.close(fd)


def _bar(options: BatchOptions, total: int | None, done: int) -> Any:
    from tqdm import tqdm

    # None: no bar where standard error is no terminal.
    shown = None if options.progress else True
    return tqdm(total=total, initial=done, desc=options.model, unit=" lines", disable=shown)


def _farewell(error: BaseException, tally: Tally, options: BatchOptions, state: JobState | None) -> str:
    reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
    done = f"{tally.lines} lines are done"
    if state is not None and is_regular(options.output):
        done = f"{done}; use --resume to go on from there"
    return f"{reason}\n{done}"
