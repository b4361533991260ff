"""One step of a measurement: a peer is started, asked and ended, within a time and in a session of its own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import environments
from .adapters.base import Job
from .catalogue import Peer
from .processes import SHARED_MEMORY, descendants, end_all, footprint, remove_left_shared_memory
from .workloads import BIG_BYTES_VARIABLE

#: How long a peer may take to end by itself.
_STOP_S = 15.0
#: How much of what a peer has printed is kept of a failure.
_ERROR_CHARACTERS = 1500
#: Every process computes with one thread, and nothing is looked for in the network.
_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]).rstrip(":"),
}


class StepError(Exception):
    """A step failed; the message is what the peer said last."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all steps have in common.

    Attributes:
        big_bytes: the size of the model that memory is measured with.
        timeout_s: how long a step may take besides what it measures.
    """

    big_bytes: int
    timeout_s: float

    def variables(self, peer: Peer | None = None) -> dict[str, str]:
        """Return what a peer's processes have in their environment beside the usual."""
        return _VARIABLES | {BIG_BYTES_VARIABLE: str(self.big_bytes)} | dict(peer.variables if peer else {})

    def run(
        self, peer: Peer, step: str, workload: str, workers: int, spare: int = 0, **told: Any
    ) -> dict[str, Any]:
        """Do a step of a peer and return what was measured.

        Args:
            peer: which.
            step: of the driver: "memory", "start" or "speed".
            workload: what is served.
            workers: by how many.
            spare: how many more the step will ask for.
            told: what the step is told besides.

        Raises:
            StepError: the peer failed, or was not done in time.
        """
        weights = environments.write_weights(self.variables(), self.big_bytes)
        folder, before = tempfile.mkdtemp(prefix="peer"), os.listdir(SHARED_MEMORY)
        job = Job(workload, workers, weights, peer.loading, folder, spare)
        order = {"job": job.to_dict(), "adapter": peer.adapter, "step": step, "told": told}
        command = [str(environments.python_of(peer.environment)), "-m", "peers.driver", json.dumps(order)]
        variables = os.environ | self.variables(peer) | {"TMPDIR": folder, "ONECOPY_CACHE_DIR": folder}
        deadline = time.monotonic() + self.timeout_s + 5 * told.get("window_s", 0.0)
        pipe = subprocess.PIPE
        try:
            with (
                open(f"{folder}/log", "w+") as log,
                subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, stderr=log, env=variables, start_new_session=True
                ) as process,
            ):
                try:
                    values = _follow(process, deadline)
                    _let_end(process)
                except StepError as error:
                    log.seek(max(0, log.seek(0, os.SEEK_END) - _ERROR_CHARACTERS))
                    raise StepError(f"{error}: {environments.without_paths(log.read())}") from None
                finally:
                    end_all()
            return values
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            remove_left_shared_memory(before)


def _follow(process: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
    """Return the values that a driver reports, or, once it is ready to be looked at, its memory."""
    line = _read_line(process, deadline)
    if not line.get("ready"):
        return line["values"]
    tree = set(descendants(os.getpid()))  # those that have lost their parent are children of this process
    found = footprint(tree if line["counts_client"] else tree - {process.pid})
    client = footprint([process.pid])
    client_bytes = client.anonymous_bytes + client.file_bytes
    return asdict(found) | {"total_bytes": found.total_bytes, "client_bytes": client_bytes}


def _read_line(process: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
    """Return the next line of a report.

    Raises:
        StepError: it did not come.
    """
    assert process.stdout is not None
    received = b""
    while not received.endswith(b"\n"):
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([process.stdout], [], [], left_s)[0]:
            raise StepError("not done in time")
        if not (part := os.read(process.stdout.fileno(), 1 << 16)):
            raise StepError("the driver ended without a report")
        received += part
    return json.loads(received)


def _let_end(process: subprocess.Popen[bytes]) -> None:
    """Let a driver end its peer, for a while."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
