"""Experiments run whole, by the real binding, on a stand-in for the driver: they say what is so there."""

import os
from pathlib import Path

import pytest
from cuda_driver import build
from gpu_checking.results import Report

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "scripts"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """The folder with the stand-in for libcuda."""
    return build(tmp_path_factory.mktemp("driver")).parent


@pytest.mark.parametrize("name", ["T1", "T4", "T5", "T13", "F4"])
def test_an_experiment_runs_to_its_end_and_finds_what_is_so(command, driver, tmp_path, name):
    path = tmp_path / "report.json"
    line = "gpu GPU-0000000{0}-0000-4000-8000-00000000000{0} 8589934592 0 Stand-in\n"
    (tmp_path / "gpus").write_text(line.format(1) + line.format(2) + "peers 0 1\n")
    done = command(
        "-m", "rehearsed", str(path), name,
        LD_LIBRARY_PATH=str(driver), STAND_IN_GPUS=str(tmp_path / "gpus"),
        PYTHONPATH=os.pathsep.join(
            filter(None, [str(HERE / "stand_in"), str(SCRIPTS), os.environ.get("PYTHONPATH")])
        ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = Report.read(path).results[name]
    assert (found.verdict, found.notes) == ("holds", [])
    assert len(found.claims) > 3
