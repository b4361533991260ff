"""Wrong use of every kind: a clear error for the caller, and the pool stays up."""

from __future__ import annotations

import threading

import pool_models
import pytest
import torch
from leftovers import wait_until
from onecopy.pool import (
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    LoadFailed,
    Model,
    ModelError,
    ModelNotFound,
    OutOfBudget,
    Pool,
    SupervisorLost,
)


@pytest.fixture
def pool():
    with Pool({"trouble": pool_models.Trouble(), "scale": pool_models.Scale()}, workers=1) as pool:
        yield pool
        assert pool.run("trouble", "still here") == "still here"


def test_a_model_that_raises_shows_where(pool):
    with pytest.raises(ModelError) as caught:
        pool.model("trouble", method="fail")("oh")
    assert caught.value.details["exception"] == "KeyError"
    assert "pool_models.py" in str(caught.value)
    assert "worker.py" not in str(caught.value)
    assert "raise KeyError(text)" in str(caught.value)


def test_an_unknown_model_or_method_is_named(pool):
    with pytest.raises(ModelNotFound, match=r"no model 'nobody' here; there are: scale, trouble"):
        pool.run("nobody")
    with pytest.raises(ModelNotFound, match=r"trouble \(Trouble\) has no method 'fly'"):
        pool.model("trouble", method="fly")()


def test_a_value_that_cannot_travel_is_refused_where_it_enters(pool):
    with pytest.raises(InvalidRequest, match=r"\[args, kwargs\]\[0\]\[0\]\['a'\]\[1\] cannot travel"):
        pool.run("trouble", {"a": [1, threading.Lock()]})


def test_a_result_that_cannot_travel_is_refused_where_it_leaves(pool):
    with pytest.raises(InvalidRequest, match=r"the result cannot travel: a _thread\.lock"):
        pool.model("trouble", method="secret")()


def test_wrong_options_are_refused_at_once(pool):
    with pytest.raises(ConfigError, match="timeout_s"):
        pool.model("trouble", timeout_s=-1)
    with pytest.raises(ConfigError, match="retries"):
        pool.model("trouble", retries=-1)
    with pytest.raises(ConfigError, match="buffersize"):
        next(pool.map("trouble", [1], buffersize=0))


def test_a_late_request_fails_while_it_waits_and_while_it_runs(pool, tmp_path):
    go, begun = tmp_path / "go", tmp_path / "begun"
    pool.run("trouble", 1)  # so that there are workers
    slow = pool.model("trouble", method="wait_for", timeout_s=0.5).submit(str(go), str(begun))
    assert wait_until(begun.exists)
    queued = pool.model("trouble", timeout_s=0.1).submit(1)
    with pytest.raises(DeadlineExceeded, match=r"no answer within 0.1 s \(waiting for a worker\)"):
        queued.result()
    with pytest.raises(DeadlineExceeded, match=r"no answer within 0.5 s \(running\)"):
        slow.result()
    go.touch()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (pool_models.make_failing, r"ValueError: no such weights(.|\n)*make_failing"),
        (pool_models.make_unpicklable, r"lock"),
        (pool_models.make_too_large, r"alloc|memory"),
        (pool_models.make_dies_in_thaw, "not here"),
        (Model("no_such_module:thing"), r"no module 'no_such_module' here"),
        (Model("pool_models:Nothing"), r"pool_models has no 'Nothing'"),
        (Model(pool_models.make_scale, kwargs={"wrong": 1}), "unexpected keyword argument"),
        (Model(pool_models.make_scale, prepare=lambda _: 1 / 0), "ZeroDivisionError"),
        (Model(torch.load, args=("/no/such/file.pt",)), "No such file"),
    ],
    ids=["raises", "unpicklable", "too large", "thaw", "module", "name", "arguments", "prepare", "file"],
)
def test_a_model_that_cannot_be_built_says_why(pool, model, said):
    def load_and_run():
        pool.load("bad", model)
        pool.run("bad", torch.ones(1))

    with pytest.raises(LoadFailed, match=said):
        load_and_run()


def test_a_model_that_does_not_fit_is_refused_with_the_numbers(pool):
    with pytest.raises(OutOfBudget, match=r"loading large needs [\d,.]+ MB on cpu, and [\d,.]+ MB are free"):
        pool.load("large", pool_models.make_larger_than_free)


def test_a_truncated_file_says_so(pool, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(pool_models.Scale(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LoadFailed, match=r"cut: .*Error"):
        pool.load("cut", Model(torch.load, args=(str(path),), kwargs={"weights_only": False}))


def test_an_object_that_cannot_be_pickled_is_refused_with_its_path():
    scale = pool_models.Scale()
    scale.inner = torch.nn.Module()
    scale.inner.lock = threading.Lock()
    with pytest.raises(LoadFailed, match=r"inner\.lock"):
        Pool({"scale": scale}, workers=1)


def test_a_failed_load_can_be_tried_again(tmp_path):
    path = tmp_path / "ready"

    def factory():
        if not path.exists():
            raise FileNotFoundError(path)
        return pool_models.Scale(3.0)

    with Pool({"scale": factory}, workers=1) as pool:
        with pytest.raises(LoadFailed, match="FileNotFoundError"):
            pool.run("scale", torch.ones(1))
        assert pool.models()[0].state == "failed"
        path.touch()
        assert float(pool.run("scale", torch.ones(1))) == 3.0


def test_a_failed_replacement_leaves_the_old_version(pool):
    with pytest.raises(LoadFailed, match="no such weights"):
        pool.load("scale", pool_models.make_failing)
    assert float(pool.run("scale", torch.ones(1))) == 2.0


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("just a name", "neither of the form 'package.module:name' nor a path"),
        (("args",), ""),
    ],
)
def test_a_source_that_is_none_is_named(pool, model, said):
    if said:
        with pytest.raises(ConfigError, match=said):
            pool.load("bad", model)
    else:
        pool.load("tuple", model)  # any object may be a model
        with pytest.raises(ModelNotFound, match=r"tuple \(tuple\) has no method '__call__'"):
            pool.run("tuple")


@pytest.mark.parametrize("endpoint", ["http://x", "ipc:///no/such/folder", "tcp://127.0.0.1:1"])
def test_connecting_to_nobody_says_so(endpoint, monkeypatch):
    monkeypatch.setattr("onecopy.pool.connection._HELLO_S", 0.2)
    with pytest.raises((SupervisorLost, InvalidRequest), match=r"endpoint|nobody"):
        Pool.connect(endpoint)
