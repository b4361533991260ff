"""Kills at any moment: what ran is answered or fails by name, the pool goes on, nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pool_models
import psutil
import pytest
import torch
from leftovers import pool_processes, wait_until
from onecopy.pool import InvalidRequest, LoadFailed, Model, ModelError, Pool, SupervisorLost, WorkerDied


@pytest.fixture
def pool():
    with Pool({"trouble": pool_models.Trouble(), "scale": pool_models.Scale()}, workers=2, slots=2) as pool:
        yield pool


def test_a_request_survives_the_death_of_its_worker(pool, tmp_path):
    pid = pool.model("trouble", method="die_once")(str(tmp_path / "died"))
    assert pid in {worker.pid for worker in pool.status().workers}
    assert pool.status().retried == 1


def test_a_request_that_kills_two_workers_fails_with_the_signals_name(pool):
    with pytest.raises(WorkerDied, match=r"SIGSEGV.*tried 2 times, retries=1") as caught:
        pool.model("trouble", method="die")(int(signal.SIGSEGV))
    assert caught.value.details == {"deaths": 2, "cause": "SIGSEGV"}
    assert pool.run("trouble", 1) == 1


def test_retries_can_be_forbidden(pool, tmp_path):
    with pytest.raises(WorkerDied, match=r"SIGKILL.*tried 1 times, retries=0"):
        pool.model("trouble", method="die_once", retries=0)(str(tmp_path / "died"))


def test_only_what_had_begun_is_blamed(tmp_path):
    with Pool({"trouble": pool_models.Trouble()}, workers=1) as pool:
        for _ in range(20):
            pool.run("trouble", 1)  # so that requests are handed ahead
        die = pool.model("trouble", method="die", retries=0).submit()
        behind = [pool.model("trouble", retries=0).submit(i) for i in range(30)]
        assert [future.result() for future in behind] == list(range(30))
        with pytest.raises(WorkerDied):
            die.result()


def test_killed_workers_are_replaced_while_requests_go_on(pool):
    futures = []
    for _ in range(5):
        futures += [pool.model("scale", retries=50).submit(torch.tensor(float(i))) for i in range(200)]
        for worker in pool.status().workers:
            if worker.pid:
                os.kill(worker.pid, signal.SIGKILL)
    assert [float(future.result()) for future in futures] == [2.0 * i for i in range(200)] * 5
    assert wait_until(lambda: [one.state for one in pool.status().workers] == ["idle"] * 2)


def test_what_a_model_started_ends_with_its_worker(pool):
    child = psutil.Process(pool.model("trouble", method="start_child")())
    worker = child.ppid()
    os.kill(worker, signal.SIGKILL)
    assert wait_until(lambda: not child.is_running())


def test_a_killed_zygote_is_replaced_and_so_are_workers_which_share_no_page_with_the_next_one(pool):
    before = pool.status()
    os.kill(before.zygote_pid, signal.SIGKILL)
    assert wait_until(lambda: pool.status().zygote_pid not in (0, before.zygote_pid))
    assert float(pool.run("scale", torch.ones(1))) == 2.0
    old = {0, *(worker.pid for worker in before.workers)}
    assert wait_until(lambda: not old & {worker.pid for worker in pool.status().workers})
    for worker in pool.status().workers:
        os.kill(worker.pid, signal.SIGKILL)  # the new zygote must fork their successors
    assert float(pool.model("scale", retries=5)(torch.ones(1))) == 2.0


def test_a_zygote_killed_at_the_start_is_replaced():
    with Pool({"scale": pool_models.make_scale}, workers=2) as pool:
        future = pool.submit("scale", torch.ones(1))
        os.kill(pool.status().zygote_pid, signal.SIGKILL)
        assert float(future.result(60)) == 2.0


def test_a_loader_that_dies_is_a_failed_load(pool):
    with pytest.raises(LoadFailed, match=r"the loader died \(SIGKILL\)"):
        pool.load("dying", pool_models.make_dying)
    with pytest.raises(LoadFailed, match="SIGKILL"):
        pool.run("dying", 1)
    assert pool.run("trouble", 1) == 1


def test_a_loader_killed_in_the_middle_leaves_no_memory(pool, tmp_path):
    before = pool.memory().weights_bytes
    model = Model(pool_models.make_late, args=(str(tmp_path / "go"), str(tmp_path / "begun")))

    def kill():
        assert wait_until((tmp_path / "begun").exists)
        (loader,) = [one.pid for one in pool.memory().processes if one.role == "loader"]
        os.kill(loader, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(LoadFailed, match="SIGKILL"):
        pool.load("late", model)
    killer.join()
    assert pool.memory().weights_bytes == before


def test_a_lost_supervisor_is_told_within_a_second(tmp_path):
    pool = Pool({"trouble": pool_models.Trouble()}, workers=2, slots=2)
    try:
        futures = [
            pool.model("trouble", method="wait_for").submit(str(tmp_path / "never"), str(tmp_path / f"begun{i}"))
            for i in range(2)
        ]
        assert wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        for worker in pool.status().workers:
            os.kill(worker.pid, signal.SIGSTOP)
        os.kill(pool.status().pid, signal.SIGKILL)
        killed_at = time.monotonic()
        for future in futures:
            with pytest.raises(SupervisorLost, match="is gone"):
                future.result(10)
        told_after_s = time.monotonic() - killed_at
        assert wait_until(lambda: not pool_processes())
        assert told_after_s < 1.0
        with pytest.raises(SupervisorLost):
            pool.run("trouble", 1)
    finally:
        pool.shutdown()


def test_even_a_stopped_zygote_ends_with_its_supervisor():
    pool = Pool({"scale": pool_models.Scale()}, workers=1)
    try:
        pool.run("scale", torch.ones(1))
        os.kill(pool.status().zygote_pid, signal.SIGSTOP)
        os.kill(pool.status().pid, signal.SIGKILL)
        assert wait_until(lambda: not pool_processes())
    finally:
        pool.shutdown()


APP = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    import pool_models, torch
    from onecopy.pool import Pool
    pool = Pool({{"scale": pool_models.Scale(3.0)}}, workers=2)
    print(float(pool.run("scale", torch.ones(1))), flush=True)
    {end}
"""


def run_app(end: str) -> subprocess.Popen[str]:
    code = textwrap.dedent(APP).format(tests=os.path.dirname(pool_models.__file__), end=end)
    app = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert app.stdout is not None
    assert app.stdout.readline() == "3.0\n"
    return app


def end_of(app: subprocess.Popen[str]) -> str:
    _, error = app.communicate(timeout=30)
    return error


def test_an_app_that_is_killed_takes_its_pool_with_it():
    app = run_app("import time; time.sleep(600)")
    app.kill()
    end_of(app)
    assert wait_until(lambda: not pool_processes())


def test_an_app_that_just_ends_leaves_nothing():
    app = run_app("")
    assert end_of(app) == ""
    assert app.returncode == 0
    assert wait_until(lambda: not pool_processes())


def test_ctrl_c_ends_a_script_and_its_pool():
    app = run_app("import time; time.sleep(600)")
    app.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in end_of(app)
    assert wait_until(lambda: not pool_processes())


def test_a_forked_child_is_told_to_connect_anew():
    with Pool({"scale": pool_models.Scale()}, workers=1) as pool:
        pool.run("scale", torch.ones(1))
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                pool.run("scale", torch.ones(1))
            except InvalidRequest as error:
                code = 0 if "before a fork" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert float(pool.run("scale", torch.ones(1))) == 2.0


def test_a_model_that_exits_only_fails(pool):
    with pytest.raises(ModelError, match="SystemExit: 3"):
        pool.model("trouble", method="leave")()
    assert pool.run("trouble", 1) == 1
