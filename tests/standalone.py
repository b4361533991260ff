"""Real supervisors and real command lines for tests."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from leftovers import wait_until
from onecopy.pool import SupervisorLost
from onecopy.pool.control import ControlSocket
from onecopy.pool.environment import default_directory

TESTS = str(Path(__file__).parent)
CLI = [sys.executable, "-m", "onecopy.pool.cli"]
TOYS = 'workers = 1\n[models.toys]\nsource = "toy_models:toys"\nmethod = "square"\n'
_STOP_S = 30


@dataclass
class Standalone:
    """A supervisor process that serves."""

    process: subprocess.Popen
    directory: str
    log: Path

    @property
    def endpoint(self) -> str:
        return f"ipc://{self.directory}"

    def is_serving(self) -> bool:
        try:
            ControlSocket(self.directory).close()
        except SupervisorLost:
            return False
        return True


@contextlib.contextmanager
def standalone(folder: Path, toml: str = TOYS, *arguments: str, command=None) -> Iterator[Standalone]:
    """Serve a pool.toml, which is written into the folder; models may come from `toy_models`."""
    config = folder / "pool.toml"
    config.write_text(toml)
    log = folder / "supervisor.log"
    command = command or [sys.executable, "-P", "-m", "onecopy.pool.supervisor", "--config"]
    with log.open("ab") as output:
        process = subprocess.Popen([*command, str(config), *arguments], stderr=output, env=environment())
    served = Standalone(process, default_directory(), log)
    try:
        assert wait_until(lambda: served.is_serving() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield served
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def onecopy(*arguments: object, text: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*CLI, *map(str, arguments)], input=text, capture_output=True, text=True, timeout=60, cwd=cwd,
        env=environment(), check=False,
    )  # fmt: skip


def start_onecopy(*arguments: object, **options) -> subprocess.Popen[str]:
    """Start a command."""
    return subprocess.Popen([*CLI, *map(str, arguments)], text=True, env=environment(), **options)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": TESTS, "COLUMNS": "200"}
