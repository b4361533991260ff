"""The environments of peers: made once under ``.venv/peers``, made anew when what they hold has changed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from onecopy.pool.abilities import is_compiled

from .catalogue import ENVIRONMENTS, PLOTS, TORCH

ROOT = Path(__file__).parents[3]
#: Beside what `scripts/setup` keeps there, and ignored by git like it.
CACHE = ROOT / ".venv" / "peers"
_INSTALL_S = 1800


class InstallError(Exception):
    """An environment could not be made; the message is the end of what pip said."""


def python_of(environment: str) -> Path:
    """Return the interpreter of an environment, which is made if it is not there."""
    if environment == "onecopy":
        return ROOT / ".venv" / "bin" / "python"
    groups = [PLOTS] if environment == "plots" else [(TORCH,), ENVIRONMENTS[environment]]
    folder = CACHE / environment
    wanted = hashlib.sha256(json.dumps([platform.python_version(), groups]).encode()).hexdigest()
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{environment}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be making it
        stamp = folder / "stamp"
        if not stamp.exists() or stamp.read_text() != wanted:
            print(f"making the environment {environment!r}", flush=True)
            _make(folder, groups)
            stamp.write_text(wanted)
    return folder / "bin" / "python"


def _make(folder: Path, groups: list[tuple[str, ...]]) -> None:
    """Make an environment of these groups of packages, installed one group after the other."""
    shutil.rmtree(folder, ignore_errors=True)
    _do([sys.executable, "-m", "venv", str(folder)])
    for packages in groups:
        _do([str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *packages])


def versions(environment: str) -> dict[str, str]:
    """Return the version of every package in an environment."""
    code = (
        "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    )
    found: dict[str, str] = json.loads(_do([str(python_of(environment)), "-c", code]))
    return dict(sorted(found.items(), key=lambda one: one[0].lower()))


def write_weights(variables: dict[str, str], size_bytes: int) -> str:
    """Return the folder with the weights of all models, which are written if they are not there."""
    folder = CACHE / f"weights-{size_bytes}"
    if not folder.exists():
        unfinished = folder.with_suffix(".unfinished")
        _do([str(python_of("onecopy")), "-m", "peers.models", str(unfinished)], variables)
        unfinished.rename(folder)
    return str(folder)


def conditions() -> dict[str, Any]:
    """Return what figures depend on, as it is now."""
    with open("/proc/cpuinfo") as file:
        model = next(
            (line.partition(": ")[2].strip() for line in file if line.startswith("model name")), "unknown"
        )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory, GB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "compiled": is_compiled(),
    }


def without_paths(text: str) -> str:
    """Return a text that names no folder of this machine: results are published."""
    for folder, name in ((str(ROOT), "."), (sys.base_prefix, "python"), (str(Path.home()), "~")):
        text = text.replace(folder, name)
    return text


def _do(command: list[str], variables: dict[str, str] | None = None) -> str:
    """Run a command; return what it printed.

    Raises:
        InstallError: it failed, or took too long.
    """
    environment = os.environ | (variables or {})
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_INSTALL_S, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise InstallError(without_paths(f"{command[:3]} took more than {_INSTALL_S} s")) from error
    if done.returncode:
        raise InstallError(without_paths(f"{command}: {done.stderr[-1500:]}"))
    return done.stdout
