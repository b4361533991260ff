"""Scenarios from options and files: what is said is done, and what cannot be is refused by name."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from simulation import report
from simulation.costs import costs
from simulation.scenario import read, scenario_of

SCRIPTS = Path(__file__).parents[2] / "scripts"


def simulate(*options):
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS)}
    command = [sys.executable, "-m", "simulation", *options]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=100)


def test_a_file_says_what_models_and_clients_there_are_and_options_go_before_it():
    said = ["--file", str(SCRIPTS / "simulation" / "mixed.toml"), "--duration-s", "0.25"]
    done = simulate("load", *said, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    scenario = found["scenario"]
    assert scenario["duration_s"] == 0.25
    models = [(one["name"], one["count"], one["base_ms"], one["sigma"]) for one in scenario["models"]]
    assert models == [("embed", 1, 4, 0.5), ("rank", 4, 20, 0.5)]
    assert [one["priority"] for one in scenario["clients"]] == [0, -10]
    assert found["machine"] == "Simulated: 8 workers, 5 models."
    assert found["load"]["unanswered"] == 0
    assert found["load"]["requests in the pool"] > 64
    assert found["load"]["calls of a run"]["max"] > 8
    assert set(found["load"]["latency by models, ms"]) == {"embed", "rank"}
    latency = found["load"]["latency by clients, ms"]
    assert latency["people"]["p50"] < latency["job"]["p50"]


def test_tables_are_printed_and_many_devices_are_said_to_be_one_ring():
    done = simulate(
        "load", "saturation", "--devices", "2", "--models", "2", "--clients", "2", "--duration-s", "0.2"
    )
    assert done.returncode == 0, done.stderr
    assert "The core knows one device: they are one ring of 32 seats" in done.stdout
    for text in ("utilisation", "p99.9", "latency, ms", "Jain's index over clients", "models by share: 2"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["speed"], "no part 'speed'; there are load, saturation, backlog, costs"),
        (["load", "--workers", "0"], "workers must be from 1 to 1,024, not 0"),
        (["load", "--service", "gamma"], "service must be one of fixed, exponential, lognormal"),
        (["load", "--file", "nowhere.toml"], "nowhere.toml: "),
    ],
)
def test_what_cannot_be_simulated_is_refused_by_name(options, complaint):
    done = simulate(*options)
    assert done.returncode == 2
    assert complaint in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"worker": 3}, "unknown ['worker']; there are ['clients', 'devices', "),
        ({"workers": 2.5}, "workers must be of type int, not 2.5"),
        ({"models": [{"share": 0}]}, "models: share must be from 1e-06 to 1,000,000.0, not 0"),
        ({"models": [{"adaptive": 1}]}, "models: adaptive must be of type bool, not 1"),
        ({"models": [{"sharing": 2}]}, "models: unknown ['sharing']"),
        ({"models": []}, "models must be how many there are, or a list of tables, not []"),
        ({"clients": ["ann"]}, "clients must be how many there are, or a list of tables, not ['ann']"),
        ({"base_ms": 0}, "models: base_ms or item_ms must be more than 0: a run takes time"),
    ],
)
def test_scenarios_that_cannot_be_are_refused_by_name(said, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        scenario_of(said)


def test_a_file_that_is_none_is_refused_by_name(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("workers = ")
    with pytest.raises(ValueError, match=r"broken\.toml: "):
        read(str(path))


def test_an_event_takes_as_many_steps_on_a_large_machine_as_on_a_small_one(capsys):
    found = costs(rounds=1, requests=2000)
    assert (found["small"]["workers"], found["large"]["workers"]) == (8, 1024)
    assert (found["small"]["requests that wait"], found["large"]["requests that wait"]) == (8, 100_000)
    assert 50 < found["steps of a request"]["small"] < 2000
    assert found["steps of a request"]["large / small"] < 1.1
    for name in ("a request comes: median, us", "a run ends: p99, us"):
        assert found[name]["small"] > 0
        assert found[name]["large / small"] == pytest.approx(found[name]["large"] / found[name]["small"])
    report.show("costs", found)
    assert "a run ends: median, us" in capsys.readouterr().out
