"""Whole pools in containers that lack something: memory under a name, a home, root's rights, a disk, cores."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from containers import Container

#: More than fits into 64 MB: of weights, and of one request.
JOB = """
import json, os, sys
import psutil, torch
from onecopy.pool import Model, Pool

class Add(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(20_000_000))

    def forward(self, x):
        return x + self.weight[-1]

if __name__ == "__main__":
    with Pool({"made": Model(Add), "given": torch.nn.Linear(1000, 1000)}, workers=2) as pool:
        large = torch.arange(20_000_000.0)
        assert torch.equal(pool.run("made", large), large + 1)
        assert pool.run("given", torch.ones(2, 1000)).shape == (2, 1000)
        pool.load("later", Model(Add))
        pool.unload("later")
        assert pool.attach("made").weight[0] == 1
        status = pool.status()
        told = {
            "pid": os.getpid(), "uid": os.getuid(), "endpoint": pool.endpoint, "fallbacks": status.fallbacks,
            "affinity": [psutil.Process(worker.pid).cpu_affinity() for worker in status.workers if worker.pid],
            "shm": [name for name in os.listdir("/dev/shm") if not name.startswith("onecopy-")],
            "weights": pool.memory().weights_bytes,
        }
    told["left"] = [process.pid for process in psutil.process_iter() if process.pid != os.getpid()]
    told["files"] = os.listdir(os.path.dirname(told["endpoint"].removeprefix("ipc://")))
    print(json.dumps(told))
"""
NOBODY = 65534


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    (tmp_path / "job.py").write_text(JOB)
    return tmp_path


def told_by(container: Container, **environment: str) -> dict:
    """What the job tells, once it is checked that nothing of it is left."""
    done = container.run(sys.executable, str(container.folder / "job.py"), **environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["left"], told["files"], told["shm"]) == ([], [], [])
    assert 80e6 <= told["weights"] < 90e6
    return told


def test_shared_memory_of_64_megabytes_is_enough_for_everything(folder):
    told = told_by(Container(folder))
    assert told["fallbacks"] == []
    assert told["pid"] == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_another_user_than_root_has_a_pool_without_a_home(folder):
    told = told_by(Container(folder, user=NOBODY))
    assert told["uid"] == NOBODY
    assert f"onecopy-{NOBODY}" in told["endpoint"]


def test_where_nothing_else_can_be_written_to_the_sockets_lie_in_dev_shm(folder):
    told = told_by(Container(folder, is_read_only=True))
    assert told["endpoint"].startswith(f"ipc:///dev/shm/onecopy-{os.getuid()}/pool-")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_a_container_that_lacks_all_of_it_at_once_will_do(folder):
    core = min(os.sched_getaffinity(0))
    told = told_by(Container(folder, user=NOBODY, is_read_only=True, cores=str(core)))
    assert (told["uid"], told["pid"]) == (NOBODY, 1)
    assert told["affinity"] == [[core], [core]]


def test_where_nothing_can_be_written_to_at_all_that_is_said(folder):
    container = Container(folder, is_read_only=True)
    program = f"mount -o remount,ro /dev/shm && exec {sys.executable} {folder / 'job.py'}"
    refused = container.run("sh", "-c", program)
    assert refused.returncode == 1
    assert "for the pool's sockets: Read-only file system; set XDG_RUNTIME_DIR to a folder" in refused.stderr
    served = container.run(sys.executable, str(folder / "job.py"), XDG_RUNTIME_DIR="/dev/shm")
    assert served.returncode == 0, served.stderr
