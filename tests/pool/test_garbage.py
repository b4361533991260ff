"""What a supervisor does again and again leaves no cycles: collections are so rare that they would add up."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pool_models
import pytest
import torch
import toy_models
from leftovers import wait_until
from onecopy.pool import Model, ModelError, ModelNotFound, Pool, WorkerDied
from onecopy.pool.core.instructions import Remember
from onecopy.pool.memory.memfd import MemfdStore
from onecopy.pool.supervisor.history import History

#: The first of these signals has a supervisor forget all that there is so far; the next has it tell what was left
#: since then, by kind.
_TELL = signal.SIGRTMIN + 3
_TELLING = f"""
    import collections, gc, json, os, signal, sys

    if "onecopy.pool.supervisor" in sys.orig_argv:
        def tell(*_):
            gc.collect()
            if not gc.get_freeze_count():
                gc.freeze()
                gc.disable()
                gc.set_debug(gc.DEBUG_SAVEALL)
                return
            kinds = collections.Counter(str(type(one)) for one in gc.garbage)
            with open(os.environ["ONECOPY_TEST_GARBAGE"] + ".new", "w") as file:
                file.write(json.dumps(kinds))
            os.rename(file.name, os.environ["ONECOPY_TEST_GARBAGE"])

        signal.signal({int(_TELL)}, tell)
"""


@pytest.fixture
def garbage(tmp_path, monkeypatch):
    """Return what calls something, and tells what kinds of cycles it has left in the supervisor of a pool."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(textwrap.dedent(_TELLING))
    told = tmp_path / "garbage.json"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("ONECOPY_TEST_GARBAGE", str(told))

    def garbage_of(pool, call):
        supervisor = pool.status().pid
        os.kill(supervisor, _TELL)
        pool.status()
        call()
        os.kill(supervisor, _TELL)
        assert wait_until(told.exists)
        return json.loads(told.read_text())

    return garbage_of


def test_a_supervisor_leaves_none_whatever_is_done(garbage):
    toys = Model("toy_models:toys", method="square")
    models = {"scale": pool_models.Scale(3.0), "toys": toys, "streams": Model("batch_models:Layers")}
    with Pool(models, workers=2, threads=1) as pool:
        pool.run("toys", 3)

        def work():
            sessions = [pool.model("toys", session=f"s{number % 3}") for number in range(60)]
            for future in [session.submit(number) for number, session in enumerate(sessions)]:
                future.result()
            pool.run("scale", torch.ones(3, 100_000))  # by way of a mailbox
            assert list(pool.model("streams", method="modes").stream()) == [True] * 3
            with pytest.raises(ModelError):
                pool.run("toys", -1)
            with pytest.raises(ModelNotFound):
                pool.run("nothing")
            for _ in range(3):
                with pytest.raises(WorkerDied):
                    pool.model("toys", method="die", retries=0)()
            pool.load("scale", pool_models.Scale(4.0))
            pool.evict("scale")
            assert float(pool.run("scale", torch.ones(1))) == 4.0
            with pytest.raises(ModelNotFound):
                pool.evict("nothing")
            with Pool.connect(pool.endpoint) as other:
                other.run("toys", 3)
            script = f"from onecopy.pool import Pool; Pool.connect({pool.endpoint!r}).attach('scale')"
            subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | _PATHS)
            pool.memory()
            pool.unload("scale")

        assert garbage(pool, work) == {}


#: Where models of tests are imported from.
_PATHS = {"PYTHONPATH": os.pathsep.join([str(Path(toy_models.__file__).parent), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture
def cycles():
    """Return what calls something, and tells how many objects are left in cycles."""

    def cycles_of(call):
        call()  # what is made once is no matter
        gc.collect()
        gc.disable()
        try:
            call()
            return gc.collect()
        finally:
            gc.enable()

    return cycles_of


def test_giving_pages_of_a_slot_back_leaves_none(cycles):
    store = MemfdStore()
    region = store.create(1 << 16, "slot", resizable=True)
    assert cycles(lambda: store.empty(region, 4096)) == 0
    store.close(region)


def test_writing_what_was_learned_leaves_none(cycles, tmp_path):
    history = History(str(tmp_path / "needs.json"), lambda *_: None, pytest.fail)

    def learn():
        history.remember(Remember("identity", "signature", 4096))
        history.write()

    assert cycles(learn) == 0
