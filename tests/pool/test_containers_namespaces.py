"""Pools and clients in different containers that share a folder; pools that are a container's first process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from containers import Container
from leftovers import wait_until
from onecopy.pool import InvalidRequest, Pool
from standalone import TOYS, environment, onecopy, standalone

NOBODY = 65534
SERVE = [sys.executable, "-m", "onecopy.pool.cli", "serve"]
#: A kernel before 6.5 does not know this option of a socket.
OLD_KERNEL = "from onecopy.pool import peers; peers._SO_PEERPIDFD = 9999; "
CLIENT = """
import os, sys, torch
from onecopy.pool import Pool
with Pool.connect(sys.argv[1]) as pool:
    large = torch.arange(300_000.0)
    assert torch.equal(pool.model("toys", method="echo")(large), large)
    pool.attach("toys")
    print(os.getpid(), pool.run("toys", 7))
"""
#: A model whose every run leaves processes that end later than it.
LEAVING = """
import subprocess

class Leaves:
    def orphans(self, count):
        script = "for one in $(seq %d); do sh -c 'exit 0' & done; exit 0" % count
        subprocess.run(["setsid", "--fork", "sh", "-c", script], check=True)

def leaves():
    return Leaves()
"""


def is_served(directory: Path) -> bool:
    """Whether somebody listens at a folder's control socket: it is there a moment before that."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(directory / "control")) == 0


@contextmanager
def serving(container: Container, toml: str, command: list[str] = SERVE):
    """Serve as the first process of a container; the sockets lie in the folder that the machine sees, too."""
    config = container.folder / "pool.toml"
    config.write_text(toml)
    directory = container.folder / "sockets"
    log = container.folder / "log"
    arguments = [*command, str(config), "--directory", str(directory)]
    with log.open("wb") as output:
        process = subprocess.Popen(container.command(*arguments), stdout=output, stderr=output, env=environment())
    try:
        assert wait_until(lambda: is_served(directory) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield process, f"ipc://{directory}"
    finally:
        if process.poll() is None:
            process.kill()  # and with it the first process
        process.wait()


def test_a_client_outside_uses_a_pool_in_a_container(tmp_path):
    with serving(Container(tmp_path), TOYS) as (process, endpoint):
        large = torch.arange(300_000.0)
        with Pool.connect(endpoint) as pool:
            assert torch.equal(pool.model("toys", method="echo")(large), large)
            assert pool.attach("toys") is not None
            assert pool.status().clients == 1
        assert onecopy("stop", "--endpoint", endpoint).returncode == 0
        assert process.wait(20) == 0


def test_a_client_that_is_killed_outside_is_gone_inside(tmp_path):
    with serving(Container(tmp_path), TOYS) as (_, endpoint), Pool.connect(endpoint) as pool:
        program = (
            f"from onecopy.pool import Pool; pool = Pool.connect({endpoint!r}); print(1, flush=True); input()"
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen([sys.executable, "-c", program], **pipes) as client:
            assert client.stdout.readline() == b"1\n"
            assert pool.status().clients == 2
            client.kill()
            client.wait()
            assert wait_until(lambda: pool.status().clients == 1)


def test_a_client_in_a_container_uses_a_pool_outside(tmp_path):
    (tmp_path / "client.py").write_text(CLIENT)
    with standalone(tmp_path) as served:
        environ = {"PYTHONPATH": environment()["PYTHONPATH"]}
        done = Container(tmp_path).run(sys.executable, str(tmp_path / "client.py"), served.endpoint, **environ)
        assert (done.stdout, done.returncode) == ("1 49\n", 0), done.stderr


def test_on_an_old_kernel_a_client_that_cannot_be_seen_is_refused_by_name(tmp_path):
    program = OLD_KERNEL + "from onecopy.pool.supervisor.__main__ import main; raise SystemExit(main())"
    command = [sys.executable, "-c", program, "--config"]
    unseen = pytest.raises(InvalidRequest, match="in a namespace of processes that is not seen from this pool's")
    with serving(Container(tmp_path), TOYS, command) as (_, endpoint), unseen:
        Pool.connect(endpoint)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_another_user_is_refused_by_name_where_the_folder_lets_it_through(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "client.py").write_text(CLIENT)
    with serving(Container(tmp_path), TOYS) as (_, endpoint):
        client = Container(tmp_path, user=NOBODY)
        done = client.run(sys.executable, str(tmp_path / "client.py"), endpoint)
        assert f"nobody serves at {endpoint} (Permission denied)" in done.stderr  # the folder is closed to others
        (tmp_path / "sockets").chmod(0o755)
        (tmp_path / "sockets" / "control").chmod(0o777)
        done = client.run(sys.executable, str(tmp_path / "client.py"), endpoint)
        assert f"this pool belongs to uid 0; you are uid {NOBODY}" in done.stderr


def test_as_first_process_it_takes_off_the_table_what_models_leave_and_passes_signals_on(tmp_path):
    (tmp_path / "leaving.py").write_text(LEAVING)
    toml = 'workers = 2\n[models.leaves]\nsource = "leaving:leaves"\nmethod = "orphans"\n'
    with serving(Container(tmp_path), toml) as (process, endpoint):
        (first,) = psutil.Process(process.pid).children()
        with Pool.connect(endpoint) as pool:
            for _ in range(5):
                pool.run("leaves", 20)
            assert wait_until(lambda: not zombies(first))
            zygote = next(one for one in first.children(recursive=True) if is_zygote(one))
            zygote.kill()  # whoever it has forked belongs to the first process then
            assert wait_until(lambda: not zygote.is_running())
            pool.run("leaves", 20)
            assert wait_until(lambda: not zombies(first))
        first.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert "SIGTERM: finishing what was accepted" in (tmp_path / "log").read_text()


def test_an_app_that_is_the_first_process_is_given_nothing_that_models_leave(tmp_path):
    (tmp_path / "leaving.py").write_text(LEAVING)
    program = """
import sys, time
import psutil
sys.path.insert(0, sys.argv[1])
from onecopy.pool import Pool
with Pool({"leaves": "leaving:leaves"}, workers=1) as pool:
    pool.model("leaves", method="orphans")(50)
    seen = lambda: [one.info for one in psutil.process_iter(["name", "ppid", "status"])]  # but those that vanish
    while any("sh" in one["name"] or one["name"] == "setsid" or one["status"] == "zombie" for one in seen()):
        time.sleep(0.01)
    assert [one["ppid"] for one in seen()].count(1) == 1  # the supervisor
"""
    done = Container(tmp_path).run(sys.executable, "-c", program, str(tmp_path))
    assert done.returncode == 0, done.stderr


def zombies(first: psutil.Process) -> list[psutil.Process]:
    """Processes of a container that have ended and that nobody has waited for."""
    return [one for one in first.children(recursive=True) if is_zombie(one)]


def is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it was taken off the table just now
        return False


def is_zygote(process: psutil.Process) -> bool:
    try:
        return "onecopy.workers.zygote" in process.cmdline() and process.pid == os.getsid(process.pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False


def test_an_exit_code_of_the_fork_that_serves_is_that_of_the_container(tmp_path):
    container = Container(tmp_path)
    config = tmp_path / "pool.toml"
    config.write_text("workers = 0\n")
    assert container.run(*SERVE, str(config)).returncode == 2
    with serving(container, TOYS) as (process, _):
        (first,) = psutil.Process(process.pid).children()
        (served,) = first.children()
        served.kill()
        assert process.wait(20) == 128 + signal.SIGKILL
