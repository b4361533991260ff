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
import sys
from collections import deque
from collections.abc import Iterator
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
from .client import Pool
from .config import ConfigError
from .futures import PoolFuture
from .jobfiles import MAX_LINE_BYTES, InputLine, InputLines, JobOutput, JobState, is_regular
from .lines import arguments, id_of, read_json, to_bytes, to_json

#: Requests under way at once: as many as `Pool.map` has.
_AHEAD_PER_WORKER: Final = 16
_LEAST_AHEAD: Final = 64
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
        timeout_s, retries: of each request.
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
    outcome: PoolFuture | PoolError
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
        source_fd = stack.enter_context(_opened(options.input))
        pool = stack.enter_context(Pool.connect(endpoint))
        if options.model not in [model.name for model in pool.models()]:
            known = ", ".join(model.name for model in pool.models()) or "none"
            raise ModelNotFound(f"no model {options.model!r} here; there are: {known}")
        state, total = None, None
        if is_regular(options.input):
            state, total = _look_through(source_fd, options)
        if is_regular(options.output):
            output = JobOutput.begin(
                options.output, state, resume=options.resume, overwrite=options.overwrite
            )
        else:
            fd = sys.stdout.fileno() if options.output == "-" else stack.enter_context(_opened(options.output, os.O_WRONLY))
            output = JobOutput(fd, is_file=False)
        return _Job(pool, options, InputLines(source_fd), output, state, total).run()


class _Job:
    def __init__(
        self,
        pool: Pool,
        options: BatchOptions,
        source: InputLines,
        output: JobOutput,
        state: JobState | None,
        total: int | None,
    ) -> None:
        self._options = options
        self._source = source
        self._output = output
        self._state = state
        self._total = total
        self._model = pool.model(
            options.model, method=options.method or None, timeout_s=options.timeout_s, retries=options.retries
        )
        self._ahead = max(_LEAST_AHEAD, _AHEAD_PER_WORKER * len(pool.status().workers))
        self._folder = os.path.dirname(os.path.abspath(options.input)) if options.input != "-" else os.getcwd()
        self._under_way: deque[_UnderWay] = deque()
        self._under_way_bytes = 0
        self._answer_bytes = 0  # the largest answer so far: what the next are expected to be
        self._lines, self._failed = output.done, output.failed

    def run(self) -> Tally:
        try:
            with contextlib.closing(self._output), self._bar() as bar:
                self._skip_what_is_done()
                while self._begin_next():
                    while self._under_way and self._must_finish_one():
                        self._finish_one()
                        bar.update()
                while self._under_way:
                    self._finish_one()
                    bar.update()
        except (*_ENDS_THE_JOB, KeyboardInterrupt, OSError) as error:
            raise JobInterrupted(self._farewell(error)) from error
        finally:
            for one in self._under_way:
                if isinstance(one.outcome, PoolFuture):
                    one.outcome.cancel()
        self._check_input_unchanged()
        return Tally(self._lines, self._failed)
