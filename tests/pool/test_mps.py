"""The Multi-Process Service: who is told of it, what is said where it cannot be used, that nothing is left."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from cuda_driver import for_processes, load
from gpu_models import Urgent
from leftovers import pool_processes, wait_until
from onecopy.pool import ConfigError, Model, Pool, PoolError
from onecopy.pool.devices import read_devices
from onecopy.pool.settings import Settings
from onecopy.pool.supervisor import mps as service
from onecopy.pool.supervisor.mps import Mps
from onecopy.pool.supervisor.reactor import Reactor
from onecopy.protocol import cuda
from standalone import TOYS, onecopy
from toy_models import Add

STAND_IN = Path(__file__).parents[1] / "gpu_checking" / "stand_in" / "mps_control.py"


@pytest.fixture
def no_program(monkeypatch):
    """There is no control program, wherever it would be looked for."""
    monkeypatch.setattr(service, "_ELSEWHERE", "")
    monkeypatch.setenv("PATH", "")


@pytest.fixture
def program(tmp_path, monkeypatch):
    """The stand-in for it is on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path = folder / service.CONTROL
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return path


class Surroundings:
    """What of a pool the service has to do with."""

    def __init__(self, folder, mps="on"):
        self.reactor = Reactor()
        self.notes = []
        self.zygotes = {name: SimpleNamespace(environment={}) for name in ("cpu", "cuda:0", "cuda:1")}
        named = {"cpu": {}, "cuda:0": {"share": 0 if mps == "off" else 30}, "cuda:1": {}}
        settings = Settings(mps=mps, devices=read_devices(named))
        self.mps = Mps(settings, str(folder), self.reactor, self.note)

    def start(self):
        self.mps.start(self.zygotes)

    def ask(self, command, device="cuda:0"):
        """Ask the daemon that a zygote was told of."""
        done = subprocess.run(
            [service.CONTROL], input=f"{command}\n", env=os.environ | self.zygotes[device].environment,
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.strip()

    def note(self, text, level):
        self.notes.append((level, text))
        self.reactor.stop()

    def run_until_noted(self):
        """Let the reactor run until something more is noted."""
        self.reactor.run(lambda: float("inf"), lambda: None)


@pytest.fixture
def pool(tmp_path):
    made = []

    def make(mps="on"):
        made.append(Surroundings(tmp_path, mps))
        return made[-1]

    yield make
    for one in made:
        one.mps.close()
        one.reactor.close()


def daemon():
    """The process of the daemon that was started from here."""
    (found,) = [pid for pid in pool_processes() if "-f" in psutil.Process(pid).cmdline()]
    return found


# --- while it runs -------------------------------------------------------------------------------------------


def test_processes_of_gpus_are_told_of_a_service_that_answers(program, pool, tmp_path):
    one = pool()
    one.start()
    first, second = one.zygotes["cuda:0"].environment, one.zygotes["cuda:1"].environment
    assert second == {
        "CUDA_MPS_PIPE_DIRECTORY": str(tmp_path / "mps/pipe"), "CUDA_MPS_LOG_DIRECTORY": str(tmp_path / "mps/log")
    }  # fmt: skip
    assert first == second | {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "30"}
    assert one.zygotes["cpu"].environment == {}
    assert one.ask("get_server_list").isdigit()
    assert (one.notes, one.mps.fallbacks) == ([("info", "mps: processes of a GPU compute at the same time")], [])


def test_it_is_as_private_as_the_pool(program, pool, tmp_path):
    pool().start()
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "mps").glob("*")} == {0o700}


def test_when_it_is_closed_its_servers_are_gone_too(program, pool):
    one = pool()
    one.start()
    server = int(one.ask("get_server_list"))
    assert os.getsid(server) == server
    one.mps.close()
    assert not psutil.pid_exists(server)
    assert repr(one.mps) == "<Mps, not running>"
    one.mps.close()


@pytest.mark.parametrize("mps", ["off", "auto"])
def test_it_is_not_started_where_it_is_not_wanted(program, pool, mps):
    one = pool(mps)
    if mps == "auto":  # on no device of a GPU it is not
        del one.zygotes["cuda:0"], one.zygotes["cuda:1"]
    one.start()
    assert (repr(one.mps), one.notes, one.mps.fallbacks) == ("<Mps, not running>", [], [])


def test_daemon_and_clients_are_shown_gpus_by_what_both_call_them(program, pool, tmp_path, monkeypatch):
    load(tmp_path)
    uuid = cuda.describe(0).uuid
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    one = pool()
    one.start()
    assert one.zygotes["cuda:1"].environment["CUDA_VISIBLE_DEVICES"].startswith(uuid)
    assert f"devices {uuid}" in (tmp_path / "mps/log/control.log").read_text()
    one.mps.close()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", uuid)  # as good as it is
    one.start()
    assert "CUDA_VISIBLE_DEVICES" not in one.zygotes["cuda:1"].environment


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks the stand-in for the driver")
@pytest.mark.parametrize("mps", ["on", "off"])
def test_where_workers_compute_at_the_same_time_the_gpu_hears_of_priorities(program, tmp_path, mps):
    gpus = {"cuda:0": {"budget": "1GiB", "reserve": 0}}
    with (
        for_processes(tmp_path),
        Pool({"m": Model(Urgent)}, workers=1, devices=gpus, mps=mps) as pool,
    ):
        levels = [pool.model("m", priority=priority)(0) for priority in (0, 10, 0, -10, 10)]
    assert levels == ([-3, -5, -3, 0, -5] if mps == "on" else [0] * 5)


# --- where it cannot be used ---------------------------------------------------------------------------------


def test_without_its_program_a_pool_goes_on_and_says_so(no_program, pool):
    one = pool("auto")
    one.start()
    why = "nvidia-cuda-mps-control, which comes with the driver, is not on PATH"
    text = f"mps: processes of a GPU compute in turns: {why}"
    assert (one.mps.fallbacks, one.notes) == ([text], [("warning", text)])
    assert one.zygotes["cuda:0"].environment == {}


def test_a_pool_that_must_have_it_does_not_start_without(no_program, pool):
    one = pool("on")
    with pytest.raises(PoolError, match=r"is not on PATH; mps = 'auto' goes on without it"):
        one.start()
    del one.zygotes["cuda:0"], one.zygotes["cuda:1"]
    with pytest.raises(PoolError, match=r"the pool has no device of a GPU, such as 'cuda:0'; mps = 'auto'"):
        one.start()


@pytest.mark.parametrize(
    ("fault", "starts_within_s", "said"),
    [
        (
            "refuses",
            20,
            "its daemon ended at once (exit code 1: Starting control daemon | An instance of this daemon",
        ),
        ("never listens", 0, "its daemon does not answer: Cannot find MPS control daemon process"),
        ("never answers", 5, "its daemon does not answer: nothing came in 0.5 s"),
        ("answers nonsense", 0, "its daemon does not answer: Cannot find MPS control daemon process"),
    ],
)
def test_a_daemon_that_does_not_serve_is_ended_and_its_reason_told(
    program, pool, monkeypatch, fault, starts_within_s, said
):
    monkeypatch.setenv("STAND_IN_MPS", fault)
    monkeypatch.setattr(service, "_STARTS_WITHIN_S", starts_within_s)
    monkeypatch.setattr(service, "_ANSWERS_WITHIN_S", 0.5)
    one = pool("auto")
    one.start()
    assert said in one.mps.fallbacks[0]
    assert (repr(one.mps), one.zygotes["cuda:0"].environment) == ("<Mps, not running>", {})
    assert pool_processes() == frozenset()


def test_a_daemon_that_does_not_quit_is_killed(program, pool, monkeypatch):
    monkeypatch.setenv("STAND_IN_MPS", "never quits")
    one = pool()
    one.start()
    one.mps.close()
    assert pool_processes() == frozenset()


def test_a_folder_whose_sockets_would_have_too_long_a_name_is_refused(program, pool, tmp_path):
    one = Surroundings(tmp_path / ("long" * 25))
    with pytest.raises(PoolError, match=r"\d+ bytes long, and 107 is the most: set XDG_RUNTIME_DIR to a shorter"):
        one.start()
    one.reactor.close()


def test_what_a_predecessor_left_is_removed_first(program, pool, tmp_path):
    (tmp_path / "mps/pipe").mkdir(parents=True)
    (tmp_path / "mps/pipe/control").write_text("of one that was killed")
    one = pool()
    one.start()
    assert one.ask("get_server_list").isdigit()


# --- its end -------------------------------------------------------------------------------------------------


def test_a_daemon_that_dies_is_told_and_takes_its_servers_along(program, pool):
    one = pool()
    one.start()
    server = int(one.ask("get_server_list"))
    os.kill(daemon(), signal.SIGKILL)
    one.run_until_noted()
    assert wait_until(lambda: not psutil.pid_exists(server))
    assert one.mps.fallbacks[0].startswith(
        "mps: processes of a GPU compute in turns: its daemon ended (exit code 137"
    )
    assert (repr(one.mps), one.zygotes["cuda:0"].environment) == ("<Mps, not running>", {})


KILLED = """
import os, signal, sys
from types import SimpleNamespace
from onecopy.pool.devices import read_devices
from onecopy.pool.settings import Settings
from onecopy.pool.supervisor.mps import Mps
from onecopy.pool.supervisor.reactor import Reactor
settings = Settings(mps="on", devices=read_devices({"cuda:0": {}}))
Mps(settings, sys.argv[1], Reactor(), print).start({"cuda:0": SimpleNamespace()})
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("fault", ["", "never quits"])
def test_nothing_of_it_outlives_a_supervisor_that_is_killed(program, tmp_path, fault):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], check=False, env=os.environ | {"STAND_IN_MPS": fault}
    )
    assert done.returncode == -signal.SIGKILL
    marker = f"CUDA_MPS_PIPE_DIRECTORY={tmp_path}/mps/pipe"
    assert wait_until(lambda: not [pid for pid in psutil.pids() if marker in environment_of(pid)])


def environment_of(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return []


# --- whole pools ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    """Processes that are started meanwhile find a GPU."""
    with for_processes(tmp_path_factory.mktemp("driver")):
        yield


def gpu_pool(mps, share=0):
    return Pool({"add": Add}, workers=1, devices={"cuda:0": {"budget": "1GiB", "share": share}}, mps=mps)


def of_service(pool):
    """What a pool's workers were told of the service."""
    told = [one for worker in pool.status().workers for one in environment_of(worker.pid)]
    return {one.split("=")[0] for one in told if one.startswith("CUDA_MPS_")}


def test_workers_of_a_pool_are_told_of_it(gpu, program):
    with gpu_pool("on", share=40) as pool:
        assert float(pool.run("add", 2.0)) == 3.0
        assert of_service(pool) == {
            "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
        }  # fmt: skip
        assert not [text for text in pool.status().fallbacks if text.startswith("mps")]


def test_a_pool_goes_on_without_it_and_says_so(gpu, program, monkeypatch):
    monkeypatch.setenv("STAND_IN_MPS", "refuses")
    with gpu_pool("auto") as pool:
        assert float(pool.run("add", 2.0)) == 3.0
        assert of_service(pool) == set()
        (said,) = [text for text in pool.status().fallbacks if text.startswith("mps")]
        assert said.startswith("mps: processes of a GPU compute in turns: its daemon ended at once (exit code 1: ")
    with pytest.raises(
        PoolError, match=r"cannot be used: its daemon ended at once .*; mps = 'auto' goes on without"
    ):
        gpu_pool("on")


def test_a_pool_whose_daemon_dies_says_so_and_answers(gpu, program):
    with gpu_pool("on") as pool:
        os.kill(daemon(), signal.SIGKILL)
        assert wait_until(lambda: [text for text in pool.status().fallbacks if text.startswith("mps")])
        assert float(pool.run("add", 2.0)) == 3.0


@pytest.mark.parametrize(("said", "code"), [("--mps=on", 1), ("--mps=yes", 2)])
def test_a_pool_that_is_served_may_be_told_too(tmp_path, said, code):
    (tmp_path / "pool.toml").write_text(f'mps = "auto"\n{TOYS}')
    done = onecopy("serve", tmp_path / "pool.toml", said)
    assert done.returncode == code
    expected = (
        "the pool has no device of a GPU" if code == 1 else "mps must be one of 'off', 'auto', 'on', not 'yes'"
    )
    assert expected in done.stderr


def test_of_a_pool_that_is_killed_no_service_is_left(gpu, program):
    pool = gpu_pool("on")
    os.kill(pool.status().pid, signal.SIGKILL)
    pool.shutdown()
    assert wait_until(lambda: pool_processes() == frozenset())


# --- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mps": "yes"}, "mps must be one of 'off', 'auto', 'on', not 'yes'"),
        ({"devices": {"cpu": {"share": 50}}}, "devices.cpu.share is a part of a GPU, which 'cpu' is not"),
        ({"devices": {"cuda:0": {"share": 50}}}, "devices.cuda:0.share needs mps = 'on' or 'auto'"),
        ({"devices": {"cuda:0": {"share": 101}}}, "devices.cuda:0: share must be a whole number from 0 to 100"),
    ],
)
def test_settings_that_cannot_be_are_refused(given, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        Settings(**given | ({"devices": read_devices(given["devices"])} if "devices" in given else {}))
