"""The folder of a supervisor's sockets: private, locked, swept."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from leftovers import wait_until
from onecopy.pool import ConfigError
from onecopy.pool.environment import runtime_base
from onecopy.pool.runtime import AlreadyServed, RuntimeDirectory, sweep


def test_a_folder_is_private_and_gone_afterwards():
    directory = RuntimeDirectory()
    assert os.stat(directory.path).st_mode & 0o777 == 0o700
    assert directory.path.startswith(runtime_base())
    directory.remove()
    assert not os.path.exists(directory.path)


def test_a_folder_that_was_removed_in_part_is_swept(monkeypatch):
    directory = RuntimeDirectory()
    for name in ("control", "requests"):
        with open(directory.join(name), "w"):
            pass
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # as if it was killed before the last step
    directory.remove()
    assert os.listdir(directory.path) == ["lock"]
    monkeypatch.undo()
    sweep(runtime_base())
    assert not os.path.exists(directory.path)


def test_a_folder_serves_one_at_a_time():
    directory = RuntimeDirectory(os.path.join(runtime_base(), "default"))
    try:
        with pytest.raises(AlreadyServed, match=rf"\(pid {os.getpid()}\) already serves"):
            RuntimeDirectory(directory.path)
    finally:
        directory.remove()


def test_a_path_that_is_too_long_for_a_socket_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"a socket's path has at most 107"):
        RuntimeDirectory(str(tmp_path / ("x" * 100)))


def test_a_folder_that_others_can_enter_is_refused(tmp_path):
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match=r"must be a folder of mode 0700.*it has mode 0755"):
        RuntimeDirectory(str(tmp_path))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot make .*file/pool"):
        RuntimeDirectory(str(tmp_path / "file" / "pool"))


HOLD = """
from onecopy.pool.runtime import RuntimeDirectory
directory = RuntimeDirectory()
print(directory.path, flush=True)
input()
"""


def test_what_a_killed_supervisor_left_is_swept():
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        path = process.stdout.readline().strip()
        sweep(runtime_base())
        assert os.path.isdir(path)
        process.kill()
        process.wait()
    assert wait_until(lambda: sweep(runtime_base()) is None and not os.path.exists(path))
