"""Whole steps of peers that need no other environment than this one: their reports, their failures, their end.

In an interpreter of its own, which has no other children than those of the test.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts" / "benchmarks"
#: Does a step of a peer whose model is tiny; prints what came of it, and how many processes are left.
STEP = """
import json, os, sys
folder, adapter, step, workers, timeout_s, told = json.loads(sys.argv[1])
os.environ["PEERS_BIG_BYTES"] = str(1 << 24)
from peers import environments, models, processes, steps
from peers.catalogue import Peer
environments.write_weights = lambda *_: folder
if os.path.isdir(folder):
    models.write_weights(folder)
processes.adopt_orphans()
peer = Peer("", "onecopy", adapter)
try:
    came = steps.Bench(1 << 24, timeout_s).run(peer, step, "small", workers, **told)
except steps.StepError as error:
    came = str(error)
print(json.dumps([came, len(processes.descendants(os.getpid()))]))
"""


def run(folder, adapter, step, workers=1, timeout_s=60.0, **told):
    """Do a step; return what came of it."""
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS)}
    order = json.dumps([str(folder), adapter, step, workers, timeout_s, told])
    command = [sys.executable, "-c", STEP, order]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    came, left = json.loads(done.stdout)
    assert left == 0
    return came


def test_a_speed_step_tells_four_loops_and_an_answer(tmp_path):
    came = run(tmp_path, "processes:Executor", "speed", 2, window_s=0.2, in_flight=4, seed=1)
    loops = [came[name] for name in ("at_rest", "few", "busy", "half_load")]
    assert all(one["answers"] > 0 and one["failed"] == one["unanswered"] == 0 for one in loops)
    assert all(one["p50_ms"] > 0 for one in loops)
    plain = run(tmp_path, "processes:Plain", "speed", window_s=0.1, in_flight=1, seed=1)
    assert came["answer"] == pytest.approx(plain["answer"])


def test_a_memory_step_is_looked_at_from_outside(tmp_path):
    came = run(tmp_path, "processes:Executor", "memory", 2)
    assert came["processes"] >= 2
    parts = ("anonymous_bytes", "file_bytes", "shared_bytes")
    assert came["total_bytes"] == sum(came[part] for part in parts)
    assert came["anonymous_bytes"] > 50 << 20  # torch alone in two processes


def test_a_pool_of_onecopy_is_measured_like_the_others(tmp_path):
    came = run(tmp_path, "own:Onecopy", "speed", 2, window_s=0.2, in_flight=4, seed=1)
    assert came["busy"]["answers"] > came["busy"]["failed"] == 0


def test_a_start_step_tells_when_the_first_and_all_workers_have_answered(tmp_path):
    came = run(tmp_path, "processes:Executor", "start", 2)
    assert 0 < came["first_s"] <= came["all_s"]
    assert "one_more_s" not in came


def test_a_peer_that_cannot_load_its_weights_has_failed_and_leaves_nothing(tmp_path):
    came = run(tmp_path / "nowhere", "processes:Executor", "memory")
    assert came.startswith("the driver ended without a report")
    assert "BrokenProcessPool" in came


def test_a_peer_that_takes_too_long_has_failed_and_leaves_nothing(tmp_path):
    assert run(tmp_path, "processes:Executor", "memory", timeout_s=0.0).startswith("not done in time")
