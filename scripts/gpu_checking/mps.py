"""A daemon of NVIDIA's Multi-Process Service of our own, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .check import Untried

CONTROL: Final = "nvidia-cuda-mps-control"
#: Where images put the driver's programs besides PATH.
_ELSEWHERE: Final = ("/usr/bin", "/usr/local/nvidia/bin", "/usr/local/cuda/bin")
_ANSWERS_S: Final = 10.0


@dataclass(frozen=True)
class Mps:
    """A running daemon."""

    program: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process its client."""
        return {
            "CUDA_MPS_PIPE_DIRECTORY": str(self.folder / "pipe"),
            "CUDA_MPS_LOG_DIRECTORY": str(self.folder / "log"),
        }

    def ask(self, command: str) -> str:
        """Return what the daemon answers.

        Raises:
            subprocess.SubprocessError: It refused, or gave no answer in time.
        """
        done = subprocess.run(
            [self.program],
            input=command + "\n",
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=_ANSWERS_S,
        )
        return done.stdout.strip()

    def clients(self) -> list[int]:
        """Return the process ids of its servers' clients."""
        servers = self.ask("get_server_list").split()
        return [int(pid) for one in servers for pid in self.ask(f"get_client_list {one}").split() if pid.isdigit()]

    def log(self) -> str:
        """Return the last lines of its logs."""
        lines = [line for path in sorted((self.folder / "log").glob("*.log"))
                 for line in path.read_text(errors="replace").splitlines()[-3:]]  # fmt: skip
        return " | ".join(lines)


@contextmanager
def daemon() -> Iterator[Mps]:
    """Start a daemon, and stop it in the end.

    Raises:
        Untried: There is none on this machine, or it does not start.
    """
    places = os.pathsep.join([os.environ.get("PATH", ""), *_ELSEWHERE])
    program = shutil.which(CONTROL, path=places)
    if program is None:
        raise Untried(f"{CONTROL} is not installed")
    # A short name: the daemon's sockets lie inside, and a socket's path has at most 108 bytes.
    with tempfile.TemporaryDirectory(prefix="mps-", ignore_cleanup_errors=True) as folder:
        mps = Mps(program, Path(folder))
        for name in ("pipe", "log"):
            (mps.folder / name).mkdir(mode=0o700)
        try:
            done = subprocess.run(
                [program, "-d"], env=os.environ | mps.environment, stdin=subprocess.DEVNULL, capture_output=True,
                text=True, check=False, timeout=_ANSWERS_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Untried(f"{CONTROL} -d does not return") from error
        if done.returncode:
            raise Untried(f"{CONTROL} -d: {(done.stderr or done.stdout).strip()} {mps.log()}")
        try:
            yield mps
        finally:
            # Whatever it leaves is a descendant of the run, which ends all of them after every fact.
            with suppress(subprocess.SubprocessError):
                mps.ask("quit -t 2")
