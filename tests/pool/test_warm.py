"""Warm models: thawed in the zygote and found there by workers, and given back, whoever is killed meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from leftovers import wait_until
from onecopy.pool import LoadFailed, Model, Pool
from pool_models import Scale
from warm_models import Awkward, Locked, Where, make_late

#: Larger than all that other models here have, so that it is certain whose memory it is.
LARGE = 4 << 20
X = torch.tensor(2.0)


def warm(kind, *args):
    return Model(kind, args=args, warm=True)


@pytest.fixture
def pool():
    with Pool({"scale": Scale()}, workers=2, slots=2) as pool:
        yield pool


def thawed_in(pool, name):
    """For each worker that answers one of a few requests, in which process its model was thawed."""
    futures = [pool.model(name, method="where", retries=20).submit() for _ in range(6)]
    return dict(future.result() for future in futures)


def is_inherited(pool, *names):
    """Whether both workers, and no others, have these models from the present zygote."""
    status = pool.status()
    workers = {worker.pid for worker in status.workers}
    expected = dict.fromkeys(workers, status.zygote_pid)
    return len(workers) == 2 and all(thawed_in(pool, name) == expected for name in names)


def holders_of_large(pool):
    """The processes of the pool in which large weights are mapped or open, the supervisor aside."""
    found = set()
    for process in pool.memory().processes:
        with contextlib.suppress(OSError):
            if process.role != "supervisor" and (_is_mapped(process.pid) or _is_open(process.pid)):
                found.add(process.role)
    return found


def _is_mapped(pid):
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        start, end = (int(one, 16) for one in line.split()[0].split("-"))
        if "onecopy-weights" in line and end - start >= LARGE:
            return True
    return False


def _is_open(pid):
    links = list(Path(f"/proc/{pid}/fd").iterdir())
    return any("onecopy-weights" in os.readlink(link) and os.stat(link).st_size >= LARGE for link in links)


def weights_of(pool, name):
    return next(one for one in pool.memory().weights if one.model == name)


class Traffic(threading.Thread):
    """Requests of another model, one after another, each answered rightly."""

    def __init__(self, pool):
        super().__init__()
        self._pool, self._is_over, self._count, self._error = pool, False, 0, None

    def run(self):
        try:
            while not self._is_over:
                assert float(self._pool.model("scale", retries=20)(X)) == 4.0
                self._count += 1
        except BaseException as error:
            self._error = error

    def __enter__(self):
        self.start()

    def __exit__(self, *_):
        self._is_over = True
        self.join()
        assert self._error is None, self._error
        assert self._count > 0


# --- thawed once ---------------------------------------------------------------------------------------------


def test_a_warm_model_is_thawed_once_in_the_zygote_and_every_worker_has_it(pool):
    pool.load("m", warm(Where, LARGE, 3.0))
    assert float(pool.run("m", X)) == 6.0
    assert wait_until(lambda: is_inherited(pool, "m"))
    assert float(pool.run("m", X)) == 6.0
    assert weights_of(pool, "m").workers == 2
    assert holders_of_large(pool) == {"zygote", "worker"}
    assert pool.status().fallbacks == []
    assert all(worker.is_thawed for worker in pool.status().workers)


def test_what_one_worker_writes_no_other_sees_although_all_have_it_from_one_process(pool):
    pool.load("m", Model(Scale, warm=True))
    pool.load("where", warm(Where))
    assert wait_until(lambda: is_inherited(pool, "where"))
    pid, value = pool.model("m", method="set_weight")(7.0)
    assert value == 7.0
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: is_inherited(pool, "where"))
    assert {pool.model("m", method="peek")()[1] for _ in range(20)} == {2.0}


def test_workers_draw_numbers_of_their_own_although_one_process_thawed(pool):
    pool.load("m", warm(Where))
    assert wait_until(lambda: is_inherited(pool, "m"))
    draws = [pool.model("m", method="draw").submit() for _ in range(40)]
    assert len({future.result() for future in draws}) == 40


def test_a_warm_model_that_is_built_anew_is_built_once_in_the_zygote(pool):
    pool.load("locked", warm(Locked))
    assert wait_until(lambda: is_inherited(pool, "locked"))
    assert len({pool.model("locked", method="first")() for _ in range(20)}) == 1
    assert weights_of(pool, "locked").is_rebuilt


def test_several_warm_models_are_all_there_and_each_goes_alone(pool):
    for name in ("a", "b", "c"):
        pool.load(name, warm(Where))
    assert wait_until(lambda: is_inherited(pool, "a", "b", "c"))
    before = pool.status().zygote_pid
    pool.unload("b")
    assert wait_until(lambda: is_inherited(pool, "a", "c"))
    assert pool.status().zygote_pid != before
    pool.load("b", warm(Where))
    assert wait_until(lambda: is_inherited(pool, "a", "b", "c"))


# --- given back ----------------------------------------------------------------------------------------------


def test_unloading_gives_the_memory_back_while_others_are_answered(pool):
    before = pool.memory().weights_bytes
    pool.load("m", warm(Where, LARGE))
    assert wait_until(lambda: is_inherited(pool, "m"))
    assert pool.memory().weights_bytes >= before + LARGE
    with Traffic(pool):
        pool.unload("m")
        assert pool.memory().weights_bytes == before
        assert wait_until(lambda: not holders_of_large(pool))
    assert wait_until(lambda: is_inherited(pool))


def test_a_new_version_takes_over_and_the_old_one_is_freed(pool):
    pool.load("m", warm(Where, LARGE, 1.0))
    assert wait_until(lambda: is_inherited(pool, "m"))
    before = pool.memory().weights_bytes
    with Traffic(pool):
        pool.load("m", warm(Where, LARGE, 5.0))
        assert float(pool.run("m", X)) == 10.0
        assert wait_until(lambda: pool.memory().weights_bytes == before)
        assert wait_until(lambda: is_inherited(pool, "m"))
    assert float(pool.run("m", X)) == 10.0


def test_a_loader_keeps_nothing_of_a_model_that_is_unloaded_meanwhile(pool, tmp_path):
    before = pool.memory().weights_bytes
    pool.load("m", warm(Where, LARGE))
    assert wait_until(lambda: is_inherited(pool, "m"))
    late = Model(make_late, args=(str(tmp_path / "go"), str(tmp_path / "begun")))
    loading = threading.Thread(target=pool.load, args=("late", late))
    loading.start()
    assert wait_until((tmp_path / "begun").exists)
    assert "loader" not in holders_of_large(pool)
    pool.unload("m")
    assert pool.memory().weights_bytes == before
    assert wait_until(lambda: not holders_of_large(pool))
    (tmp_path / "go").touch()
    loading.join()
    assert float(pool.run("late", X)) == 2.0


# --- killed --------------------------------------------------------------------------------------------------


def kill(pool, whom):
    """End the zygote, a worker, or the zygote and all workers, as far as they are there."""
    status = pool.status()
    workers = [worker.pid for worker in status.workers]
    victims = {"zygote": [], "worker": workers[:1], "everybody": workers}[whom]
    if whom != "worker":
        victims = [*victims, status.zygote_pid]
    for pid in filter(None, victims):  # 0 would be this process, and all of its group
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_whoever_is_killed_the_next_ones_have_it_too_and_no_request_is_lost(pool):
    pool.load("m", warm(Where))
    assert wait_until(lambda: is_inherited(pool, "m"))
    with Traffic(pool):
        kill(pool, "worker")
        assert wait_until(lambda: is_inherited(pool, "m"))
        kill(pool, "everybody")
        assert wait_until(lambda: is_inherited(pool, "m"))
        before = pool.status()
        kill(pool, "zygote")
        assert wait_until(lambda: pool.status().zygote_pid not in (0, before.zygote_pid))
        assert thawed_in(pool, "m") == {worker.pid: before.zygote_pid for worker in before.workers}
        kill(pool, "worker")
        assert wait_until(lambda: pool.status().zygote_pid in thawed_in(pool, "m").values())


@pytest.mark.parametrize(
    ("moment", "whom"), [("loaded", "everybody"), ("in a trial", "zygote"), ("inherited", "everybody")]
)
def test_a_kill_at_any_step_loses_no_request_and_leaves_no_memory(pool, moment, whom):
    moments = {
        "loaded": lambda: True,
        "in a trial": lambda: "trial" in {one.role for one in pool.memory().processes} or is_inherited(pool, "m"),
        "inherited": lambda: is_inherited(pool, "m"),
    }
    before = pool.memory().weights_bytes
    with Traffic(pool):
        pool.load("m", warm(Where, LARGE))
        assert wait_until(moments[moment])
        kill(pool, whom)
        assert float(pool.model("m", retries=20)(X)) == 2.0
        unloading = threading.Thread(target=pool.unload, args=("m",))
        unloading.start()
        kill(pool, whom)
        unloading.join()
        assert pool.memory().weights_bytes == before
        assert wait_until(lambda: not holders_of_large(pool))


# --- what should not be thawed there -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("thread", "as soon as it starts: to thaw it starts a thread"),
        ("raises", "as soon as it starts: awkward cannot be thawed"),
        ("dies", "when it is first run there: 2 processes that tried it died (SIGSEGV)"),
        ("hangs", "when it is first run there: it took longer than 5 s"),
    ],
)
def test_what_fails_in_a_throwaway_fork_is_left_to_workers_and_hurts_no_other(pool, tmp_path, how, said):
    pool.load("good", warm(Where))
    assert wait_until(lambda: is_inherited(pool, "good"))
    before = pool.status()
    with Traffic(pool):
        pool.load("awkward", warm(Awkward, how, str(tmp_path / "is fine")))
        assert wait_until(lambda: pool.status().fallbacks)
        assert is_inherited(pool, "good")
    [told] = pool.status().fallbacks
    assert told.startswith("awkward: each worker thaws it on its own, ")
    assert said in told
    assert any(said in note for note in pool.status().notes)
    assert pool.status().zygote_pid == before.zygote_pid
    (tmp_path / "is fine").touch()
    if how == "raises":
        with pytest.raises(LoadFailed, match="not here"):
            pool.run("awkward", X)
    else:
        assert float(pool.run("awkward", X)) == 2.0
        pid, thawed_in_pid = pool.model("awkward", method="where")()
        assert pid == thawed_in_pid
    pool.unload("awkward")
    assert pool.status().fallbacks == []
    assert pool.status().zygote_pid == before.zygote_pid
