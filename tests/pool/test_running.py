"""What an app sees when all goes well."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import itertools
import os
import signal
import threading

import numpy as np
import pool_models
import pytest
import torch
from leftovers import wait_until
from module_pool import shared_pool
from onecopy.pool import ConfigError, Model, ModelNotFound, Pool, RequestCancelled, SupervisorLost


@pytest.fixture(scope="module")
def module_pool(tmp_path_factory):
    """One pool for the tests that change nothing in it."""
    with shared_pool(
        tmp_path_factory, {"scale": pool_models.Scale(3.0), "trouble": pool_models.Trouble()}
    ) as pool:
        pool.run("scale", torch.ones(1))
        yield pool


def test_a_run_gives_what_the_model_gives(module_pool):
    x = torch.randn(7, 5)
    assert torch.equal(module_pool.run("scale", x), pool_models.Scale(3.0)(x))


def test_large_arrays_travel_both_ways(module_pool):
    x = np.random.default_rng(0).standard_normal((1000, 1000))
    y = module_pool.run("trouble", x)
    assert np.array_equal(x, y)
    y[0, 0] = 5.0  # the result belongs to the caller


def test_map_keeps_order_over_an_endless_source(module_pool):
    results = module_pool.map("scale", (torch.tensor(float(i)) for i in itertools.count()), buffersize=8)
    assert [float(y) for y in itertools.islice(results, 200)] == [3.0 * i for i in range(200)]
    results.close()


def test_as_completed_gives_each_result_once_with_its_index(module_pool):
    results = dict(module_pool.as_completed("scale", [torch.tensor(float(i)) for i in range(300)]))
    assert {index: float(y) for index, y in results.items()} == {i: 3.0 * i for i in range(300)}


def test_many_threads_share_a_pool(module_pool):
    def work(seed):
        return [float(module_pool.run("scale", torch.tensor(float(seed * 1000 + i)))) for i in range(50)]

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for seed, results in enumerate(threads.map(work, range(8))):
            assert results == [3.0 * (seed * 1000 + i) for i in range(50)]


def test_futures_are_real_ones_for_the_standard_library(module_pool):
    futures = [module_pool.submit("scale", torch.tensor(float(i))) for i in range(20)]
    done, waiting = concurrent.futures.wait(futures, timeout=20)
    assert len(done) == 20
    assert not waiting
    called = threading.Event()
    module_pool.submit("scale", torch.ones(1)).add_done_callback(lambda _: called.set())
    assert called.wait(20)


def test_asyncio_can_await_runs(module_pool):
    async def main():
        return await asyncio.gather(*(module_pool.arun("scale", torch.tensor(float(i))) for i in range(30)))

    assert [float(y) for y in asyncio.run(main())] == [3.0 * i for i in range(30)]


def test_a_handle_calls_the_method_it_names(module_pool):
    pid = module_pool.model("scale", method="pid")
    assert pid() != os.getpid()
    assert pid.submit().result() in {worker.pid for worker in module_pool.status().workers}


def test_runs_are_in_inference_mode_unless_a_model_wants_gradients(module_pool):
    assert module_pool.model("scale", method="grads")() is False
    module_pool.load("with_grad", Model(pool_models.Scale(), grad=True))
    assert module_pool.model("with_grad", method="grads")() is True
    module_pool.unload("with_grad")


def test_a_write_into_a_weight_stays_in_its_worker():
    with Pool({"written": pool_models.Scale(1.0, size=100_000)}, workers=1) as pool:
        writer, seen = pool.model("written", method="set_weight")(9.0)
        peek = pool.model("written", method="peek")
        assert (seen, peek()) == (9.0, (writer, 9.0))
        os.kill(writer, signal.SIGKILL)  # the next request goes to another, which maps the same region
        reader, seen = peek()
        assert reader != writer
        assert seen == 1.0


def test_another_client_may_join_and_leave_a_pool(module_pool):
    with Pool.connect(module_pool._connection.endpoint) as other:
        assert [model.name for model in other.models()] == ["scale", "trouble"]
        assert float(other.run("scale", torch.ones(1))) == 3.0
    assert float(module_pool.run("scale", torch.ones(1))) == 3.0


def test_statistics_are_frozen_readable_and_plain(module_pool):
    memory, status = module_pool.memory(), module_pool.status()
    assert memory.total_bytes > memory.weights_bytes > 0
    assert {process.role for process in memory.processes} >= {"supervisor", "zygote", "worker"}
    assert "scale: ready" in str(status)
    assert status.to_dict()["models"][0]["name"] == "scale"
    assert [model.name for model in module_pool.models()] == ["scale", "trouble"]


def test_random_numbers_differ_between_workers():
    class Dice(torch.nn.Module):
        def forward(self, _):
            return os.getpid(), float(torch.rand(1)), float(np.random.random())

    with Pool(Dice(), workers=2, slots=2, threads=1) as pool:
        drawn = [future.result() for future in [pool.submit("model", np.zeros(1)) for _ in range(50)]]
    assert len({torch_number for _, torch_number, _ in drawn}) == 50
    assert len({numpy_number for _, _, numpy_number in drawn}) == 50


def test_the_apps_object_uses_the_one_copy():
    module = pool_models.Scale(2.0, size=5_000_000)
    before = module.weight.data_ptr()
    with Pool({"scale": module}, workers=1) as pool:
        assert module.weight.data_ptr() != before
        assert pool.memory().app_held_bytes == 0
        assert torch.equal(pool.run("scale", torch.ones(2)), module(torch.ones(2)))
        with torch.no_grad():
            module.weight.fill_(7.0)  # copies pages of this process alone
        assert float(pool.run("scale", torch.ones(1))) == 2.0
    assert module(torch.ones(1)).tolist() == [7.0]


def test_an_object_can_be_left_alone():
    module = pool_models.Scale(2.0, size=100_000)
    before = module.weight.data_ptr()
    with Pool(Model(module, repoint=False), workers=1) as pool:
        assert module.weight.data_ptr() == before
        assert pool.memory().app_held_bytes >= 400_000


@pytest.mark.parametrize(
    "model",
    [
        functools.partial(pool_models.make_scale, 4.0),
        Model(pool_models.make_scale, args=(4.0,)),
        Model("pool_models:make_scale", kwargs={"factor": 4.0}),
        Model("pool_models:Scale", args=[2.0], prepare="pool_models:double"),
        Model(pool_models.Scale, args=[2.0], prepare=pool_models.double),
        Model(lambda: pool_models.Scale(4.0), warm=True),
    ],
    ids=["partial", "function", "name", "prepared by name", "prepared", "lambda, warm"],
)
def test_factories_run_once_in_a_loader(model):
    with Pool({"scale": model}, workers=2) as pool:
        assert float(pool.run("scale", torch.ones(1))) == 4.0
        assert float(pool.run("scale", torch.ones(1))) == 4.0
        (info,) = pool.models()
        assert info.state == "ready"
        assert info.weights_bytes > 0


def test_nothing_is_loaded_before_it_is_needed(tmp_path):
    begun, go = tmp_path / "begun", tmp_path / "go"
    model = Model(pool_models.make_late, args=(str(go), str(begun)))
    with Pool({"late": model, "scale": pool_models.Scale()}, workers=2) as pool:
        pool.run("scale", torch.ones(1))
        assert pool.models()[0].state == "declared"
        assert not begun.exists()
        future = pool.submit("late", torch.ones(1))
        assert wait_until(begun.exists)
        assert pool.models()[0].state == "building"
        assert float(pool.run("scale", torch.ones(1))) == 2.0  # loading never stops serving
        go.touch()
        assert float(future.result(30)) == 5.0


def test_two_first_requests_load_once(tmp_path):
    log = tmp_path / "loads"

    def factory():
        with open(log, "a") as file:
            file.write("x")
        return pool_models.Scale(2.0)

    with Pool({"scale": factory}, workers=2, slots=2) as pool:
        futures = [pool.submit("scale", torch.ones(1)) for _ in range(20)]
        assert [float(future.result()) for future in futures] == [2.0] * 20
    assert log.read_text() == "x"


def test_models_come_and_go_while_serving():
    with Pool({"a": pool_models.Scale(1.0)}, workers=2) as pool:
        pool.load("b", pool_models.Scale(2.0))
        assert float(pool.run("b", torch.ones(1))) == 2.0
        pool.load("a", pool_models.Scale(10.0))
        assert float(pool.run("a", torch.ones(1))) == 10.0
        pool.unload("b")
        with pytest.raises(ModelNotFound, match=r"no model 'b' here; there are: a"):
            pool.run("b", torch.ones(1))
        with pytest.raises(ModelNotFound, match="'b'"):
            pool.unload("b")


def test_unloading_gives_the_memory_back():
    with Pool({"small": pool_models.Scale()}, workers=2) as pool:
        before = pool.memory().weights_bytes
        pool.load("large", Model(pool_models.Scale, args=(2.0, 10_000_000)))
        pool.run("large", torch.ones(1))
        assert pool.memory().weights_bytes >= before + 40_000_000
        pool.unload("large")
        assert pool.memory().weights_bytes == before


def test_a_cancelled_future_is_never_answered(tmp_path):
    with Pool({"trouble": pool_models.Trouble()}, workers=1) as pool:
        running = pool.model("trouble", method="wait_for").submit(str(tmp_path / "go"), str(tmp_path / "begun"))
        assert wait_until((tmp_path / "begun").exists)
        queued = pool.submit("trouble", 1)
        assert queued.cancel()
        assert queued.cancelled()
        with pytest.raises(concurrent.futures.CancelledError):
            queued.result()
        (tmp_path / "go").touch()
        assert running.result() > 0
        assert not running.cancel()
        assert pool.run("trouble", 2) == 2


def test_shutdown_answers_what_was_submitted_first():
    pool = Pool({"scale": pool_models.Scale(2.0)}, workers=2)
    futures = [pool.submit("scale", torch.tensor(float(i))) for i in range(100)]
    pool.shutdown()
    assert [float(future.result()) for future in futures] == [2.0 * i for i in range(100)]
    with pytest.raises(SupervisorLost, match="closed"):
        pool.run("scale", torch.ones(1))
    pool.shutdown()


def test_shutdown_can_cancel_what_waits(tmp_path):
    pool = Pool({"trouble": pool_models.Trouble()}, workers=1)
    running = pool.model("trouble", method="wait_for").submit(str(tmp_path / "go"), str(tmp_path / "begun"))
    assert wait_until((tmp_path / "begun").exists)
    queued = pool.submit("trouble", 1)
    pool.shutdown(cancel_futures=True)
    for future in (running, queued):
        with pytest.raises(RequestCancelled):
            future.result()


def test_a_dropped_pool_leaves_nothing():
    pool = Pool({"scale": pool_models.Scale()}, workers=2)
    pool.run("scale", torch.ones(1))
    pool = Pool({"scale": pool_models.Scale(5.0)}, workers=2)  # a notebook cell that runs again
    assert float(pool.run("scale", torch.ones(1))) == 5.0
    del pool


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"workers": 0}, "workers must be a whole number from 1"),
        ({"workers": 2.5}, "workers must be a whole number"),
        ({"workers": (3, 2)}, "two .the least and the most, such as"),
        ({"workers": "many"}, "or 'auto'; not 'many'"),
        ({"workers": 1, "slots": -1}, "slots must be"),
        ({"name": "a b"}, "a name has"),
    ],
)
def test_a_wrong_setting_is_named(settings, said):
    with pytest.raises(ConfigError, match=said):
        Pool(pool_models.Scale(), **settings)


def test_a_pool_needs_a_model():
    with pytest.raises(ConfigError, match="at least one"):
        Pool({})
