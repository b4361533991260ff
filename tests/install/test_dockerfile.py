"""The Dockerfile, as far as it can be tried without docker: what it names is there, and what it starts serves."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from containers import Container
from leftovers import wait_until
from standalone import TESTS, TOYS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CLI = [sys.executable, "-m", "onecopy.pool.cli"]


class Line(NamedTuple):
    """An instruction of the Dockerfile."""

    word: str
    rest: str

    @property
    def command(self) -> list[str]:
        """The program and its arguments, of an instruction that has them as a list."""
        return json.loads(self.rest[self.rest.index("[") :])


def lines() -> list[Line]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [Line(*line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def of(word: str) -> list[Line]:
    return [line for line in lines() if line.word == word]


def copied() -> list[str]:
    """What is copied from the repository."""
    return [name for line in of("COPY") if "--from" not in line.rest for name in line.rest.split()[:-1]]


def is_ignored(path: str) -> bool:
    """Whether docker would leave a path out, by the rules of .dockerignore that are used in it."""
    rules = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    ignored = False
    for rule in rules:
        pattern = rule.lstrip("!")
        parts = Path(path).parts
        prefixes = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        if any(fnmatch.fnmatch(f"/{one}" if pattern.startswith("**/") else one, pattern) for one in prefixes):
            ignored = not rule.startswith("!")
    return ignored


def test_everything_that_is_copied_is_there_and_is_let_through():
    assert {"protocol", "pool", "workers", "pyproject.toml", "setup.py"} <= set(copied())
    for name in copied():
        assert (ROOT / name).exists(), name
        assert not is_ignored(name)
    assert not is_ignored("pool/supervisor/supervisor.py")
    for left_out in (
        ".git/config",
        "tests/conftest.py",
        "workers/libonecopy_arena.so",
        "pool/__pycache__/cli.pyc",
        "keys",
    ):
        assert is_ignored(left_out), left_out


def test_it_installs_the_torch_that_the_project_declares():
    (torch,) = (one for one in PROJECT["project"]["dependencies"] if one.startswith("torch"))
    assert any(f'"{torch}"' in line.rest for line in of("RUN"))


def test_it_runs_as_a_user_who_owns_what_is_written_to():
    (user,) = of("USER")
    made = next(line.rest for line in of("RUN") if "useradd" in line.rest)
    assert f"--create-home {user.rest}" in made
    assert lines().index(user) < lines().index(of("ENTRYPOINT")[0])
    folders = [value for value in environment().values() if value.startswith(("/run/", "/var/"))]
    assert len(folders) == 2
    assert all(f" {folder}" in made and f"--owner {user.rest}" in made for folder in folders)


def test_what_is_installed_from_what_is_copied_has_all_of_the_package(tmp_path):
    for name in copied():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(tmp_path / "out")]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path, env=os.environ | {"ONECOPY_COMPILE": "0"})
    (wheel,) = (tmp_path / "out").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    here = {
        f"onecopy/{path.relative_to(ROOT)}"
        for name in ("protocol", "pool", "workers")
        for path in (ROOT / name).rglob("*.py")
    }
    assert here <= names
    assert "onecopy/workers/libonecopy_arena.so" in names


def environment() -> dict[str, str]:
    """The environment of the image that runs, but for the path, which is this machine's."""
    pairs = dict(pair.split("=", 1) for pair in shlex.split(of("ENV")[-1].rest))
    return {name: value for name, value in pairs.items() if name != "PATH"}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("is_read_only", [False, True], ids=["", "read-only"])
def test_what_it_starts_serves_is_healthy_and_ends_with_a_signal(tmp_path, is_read_only):
    """As the first process, another user than root, with the environment and commands of the image."""
    (entry,), (arguments,), (health,) = of("ENTRYPOINT"), of("CMD"), of("HEALTHCHECK")
    tmp_path.chmod(0o755)
    (tmp_path / arguments.command[0]).write_text(f'name = "other"\n{TOYS}')
    env = os.environ | environment() | {"PYTHONPATH": TESTS, "HOME": "/nonexistent"}
    for name in ("XDG_RUNTIME_DIR", "ONECOPY_CACHE_DIR"):  # in the image they are that user's
        folder = tmp_path / name.lower()
        folder.mkdir()
        os.chown(folder, 1000, 1000)
        env[name] = str(folder)
    container = Container(tmp_path, user=1000, is_read_only=is_read_only)
    command = container.command(*CLI, *entry.command[1:], *arguments.command)
    with subprocess.Popen(command, env=env, cwd=tmp_path) as process:
        try:
            assert wait_until(lambda: is_healthy(process, [*CLI, *health.command[1:]], env), interval_s=0.5)
            (first,) = psutil.Process(process.pid).children()
            first.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


def is_healthy(process: subprocess.Popen, check: list[str], env: dict[str, str]) -> bool:
    """Whether the check, run in the container as docker does it, finds the pool."""
    first = psutil.Process(process.pid).children()
    if not first:
        return False
    enter = ["nsenter", "--target", str(first[0].pid), "--mount", "--pid", "--setuid", "1000", "--setgid", "1000"]
    done = subprocess.run([*enter, *check], env=env, capture_output=True, text=True)
    return done.returncode == 0 and json.loads(done.stdout)["name"] == "default"
