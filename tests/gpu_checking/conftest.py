"""Where the checks lie, which are scripts and not part of what is installed; and how a command of them is run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "scripts"
sys.path += [str(SCRIPTS), str(HERE)]


@pytest.fixture
def command():
    """Run a module or file as a process of its own, that finds the checks and what lies beside these tests."""

    def run(*arguments, **environment):
        paths = os.pathsep.join(filter(None, [str(SCRIPTS), str(HERE), os.environ.get("PYTHONPATH")]))
        return subprocess.run(
            [sys.executable, *arguments],
            env=os.environ | {"PYTHONPATH": paths} | environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=100,
        )

    return run


@pytest.fixture
def children_find_modules(monkeypatch):
    """Let processes that a test starts by itself find them too."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SCRIPTS), str(HERE)]))
