"""What pools on a GPU are held to, tried small on a stand-in for the driver: the experiments run to their ends."""

import os
from pathlib import Path

import pytest
from cuda_driver import for_processes
from gpu_checking.pools.catalogue import FACTS
from gpu_checking.results import Report

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "scripts"
#: Of this there is something to say on a GPU alone.
SPEED = ("together they keep", "it is loaded at", "a run in a slot takes at most", "its return takes at most")


def test_they_take_less_than_the_time_that_there_is():
    assert sum(fact.limit_s for fact in FACTS) < 530


@pytest.mark.parametrize("name", ["P2", "P3", "P5", "P6"])
def test_an_experiment_runs_to_its_end_and_finds_what_is_so(command, tmp_path, name):
    path = tmp_path / "report.json"
    with for_processes(tmp_path):
        done = command(
            "-m", "rehearsed_pools", str(path), name, GPU_CHECK_SMALL="1",
            LD_LIBRARY_PATH=os.environ.get("LD_LIBRARY_PATH", ""),
            PYTHONPATH=os.pathsep.join(filter(None, [str(HERE), str(SCRIPTS), os.environ.get("PYTHONPATH")])),
        )  # fmt: skip
    found = Report.read(path).results[name]
    assert not found.broken, (found.broken, done.stderr)
    assert [note for note in found.notes if not any(text in note for text in SPEED)] == []
    assert found.claims
