"""Runs facts one by one, each in a process group of its own and for a limited time."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from typing import IO

from .children import how_it_ended
from .fact import Fact
from .processes import end_children, end_group
from .results import Result

_CHUNK_BYTES = 64 << 10
_ENDS_S = 15.0


def run(fact: Fact, catalogue: str, limit_s: float) -> Result:
    """Try one fact of a catalogue, named by its module; what it said before a crash or its limit is kept."""
    result = Result(fact.name, fact.statement)
    started_at = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "gpu_checking.trial", catalogue, fact.name],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            with process.stdout:
                is_in_time = _listen(process.stdout, result, started_at + limit_s)
        finally:
            end_group(process.pid)
            is_gone = _ends(process)
            end_children()
        result.seconds = round(time.monotonic() - started_at, 1)
        if not is_gone:
            result.take({"broken": f"still there {_ENDS_S:g} s after SIGKILL"})
        elif not is_in_time:
            result.take({"broken": f"stopped at its limit of {limit_s:g} s"})
        elif process.returncode and not result.broken:
            errors.seek(0)
            said = how_it_ended(process.returncode, errors.read())
            result.take({"broken": f"its process ended with {said}"})
    return result


def _ends(process: subprocess.Popen[bytes]) -> bool:
    """Wait for a killed process; return whether it ended. One that waits for a broken GPU may not."""
    try:
        process.wait(_ENDS_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _listen(output: IO[bytes], result: Result, deadline: float) -> bool:
    """Take records until the process closes its output; return whether it did in time."""
    pending = b""
    while (left_s := deadline - time.monotonic()) > 0:
        if not select.select([output], [], [], left_s)[0]:
            break
        if not (chunk := os.read(output.fileno(), _CHUNK_BYTES)):
            return True
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            result.take(json.loads(line))
    return False
