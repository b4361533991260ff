"""A short storm, always the same: everything is accounted for, and nothing is left."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"

STORM = ("--minutes", "0.1", "--seed", "7", "--kills", "12", "--workers", "2")
#: They take half a minute, and longer where others work, too.
pytestmark = pytest.mark.timeout(300)


def start(*options):
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS)}
    command = [sys.executable, "-m", "soaking", *options]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_a_pool_that_is_attacked_keeps_its_promises(tmp_path):
    path = tmp_path / "found.json"
    said, _ = start(*STORM, "--json", str(path)).communicate()
    found = json.loads(path.read_text())
    assert found["violations in words"] == [], said
    assert found["kills"] >= 12
    assert found["requests"]["answered"] > 100
    assert found["transitions"]["request: running -> queued"] > 0
    assert found["transitions"]["slot: leased -> lost"] > 0
    assert found["memory"]["after"]["processes"] == found["memory"]["before"]["processes"]
    assert "everything is accounted for" in said


def test_an_interrupted_storm_ends_in_good_order_with_what_it_has(tmp_path):
    storm = start("--minutes", "60", "--seed", "8", "--workers", "2")
    said = ""
    while "accepted" not in said:
        said = storm.stdout.readline()
        assert said, storm.wait()
    os.kill(storm.pid, signal.SIGINT)
    said, _ = storm.communicate()
    assert storm.returncode == 0, said
    assert "everything is accounted for" in said
