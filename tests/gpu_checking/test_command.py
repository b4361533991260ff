"""The command, on a machine without a GPU."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu-check"


def gpu_check(*options):
    return subprocess.run(
        [SCRIPT, *options], check=False, capture_output=True, text=True, timeout=100, env=os.environ | {"OUT": ""}
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_in_a_sentence_what_is_missing(tmp_path):
    done = gpu_check("--only", "T1", "--out", str(tmp_path / "results"))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("scripts/gpu-check: nothing can be checked here: torch ")
    assert line.endswith(".")
    assert not (tmp_path / "results").exists()


def test_a_folder_without_wheels_is_refused_by_name(tmp_path):
    done = gpu_check("--wheels", str(tmp_path))
    assert done.returncode == 2
    assert f"there are no wheels in {tmp_path}" in done.stderr


def test_a_broken_report_is_refused_by_name(tmp_path):
    path = tmp_path / "earlier.json"
    path.write_text("[]")
    done = gpu_check("--resume", str(path), "--out", str(tmp_path))
    assert done.returncode == 2
    assert "earlier.json is no report of scripts/gpu-check" in done.stderr
