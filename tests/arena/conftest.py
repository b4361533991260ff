"""Processes in which the slot's allocator is preloaded, and the C programs that try it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from onecopy.workers.arena import built

#: Reads the name of a program, runs it in a fork of itself, where torch is imported already, writes how it ended.
_SERVER = """
import os, runpy, sys
import torch
torch.set_num_threads(1)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        output = os.open(line.strip() + ".output", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(null)
        os.close(output)
        code = 1
        try:
            runpy.run_path(line.strip(), run_name="__main__")
            code = 0
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
        sys.stdout.flush()
        os._exit(code)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


@pytest.fixture(scope="session")
def compile_c() -> Callable[..., None]:
    """Call the C compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("there is no C compiler")

    def call(*arguments: object) -> None:
        done = subprocess.run([compiler, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return call


@pytest.fixture(scope="module")
def library() -> str:
    """The library to preload."""
    path, reason = built()
    if path is None:
        pytest.skip(reason)
    return path


@pytest.fixture(scope="module")
def server(library: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A process with torch and the allocator that forks."""
    folder = tmp_path_factory.mktemp("server")
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        env=os.environ | {"LD_PRELOAD": library},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=folder,
        text=True,
    )
    yield process
    process.communicate()


@pytest.fixture
def preloaded(server: subprocess.Popen[str], tmp_path: Path) -> Callable[[str], str]:
    """Run a Python program where the allocator is; return what it printed. `PRELUDE` comes before it."""

    def run(program: str) -> str:
        path = tmp_path / "program.py"
        path.write_text(PRELUDE + program)
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(f"{path}\n")
        server.stdin.flush()
        status = server.stdout.readline().strip()
        output = path.with_name("program.py.output").read_text()
        assert status == "0", output
        return output

    return run


PRELUDE = """
import gc, os, threading
import torch
from torch import nn
from onecopy.workers.arena import Arena

arena = Arena.preloaded()
MB = 1 << 20

def slot_of(size_bytes):
    fd = os.memfd_create("slot", os.MFD_CLOEXEC)
    os.ftruncate(fd, size_bytes)
    return fd, arena.attach(fd, 1 << 32)
"""
