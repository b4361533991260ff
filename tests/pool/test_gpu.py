"""Pools on a GPU: the machine's own, or a stand-in with the processor's memory, where the CPU computes."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import cuda_driver
import psutil
import pytest
import torch
from gpu_models import WIDTH, Layers, Net, Same, Stuck, Wide
from leftovers import wait_until
from onecopy.pool import ConfigError, InvalidRequest, LoadFailed, Model, OutOfBudget, Pool, WorkerDied

MIB = 1 << 20
GRAIN = 2 * MIB
ONE = {"cuda:0": {"budget": "1GiB", "reserve": 0}}
X = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
stand_in_only = pytest.mark.skipif(torch.cuda.is_available(), reason="asks the kernel where memory is")


@pytest.fixture(scope="module", autouse=True)
def driver(tmp_path_factory):
    with cuda_driver.for_processes(tmp_path_factory.mktemp("driver")):
        yield


@pytest.fixture(scope="module")
def pool(driver):
    models = {"built": Model(Net, kwargs={"seed": 1}), "object": Net(2), "warm": Model(Net, args=(3,), warm=True)}
    with Pool(models, workers=2, devices=ONE) as pool:
        for name in models:
            pool.run(name, X)
        yield pool


def account(pool, device="cuda:0"):
    return next(one for one in pool.memory().devices if one.name == device)


def on_gpu(pool):
    """Return what weights take of the GPU."""
    return account(pool).accounts["weights"]


@pytest.mark.parametrize(("name", "seed"), [("built", 1), ("object", 2), ("warm", 3)])
def test_answers_are_those_of_the_processor(pool, name, seed):
    answer = pool.run(name, X)
    assert answer.device.type == "cpu"
    torch.testing.assert_close(answer, Net(seed)(X), rtol=0, atol=0 if not torch.cuda.is_available() else 1e-4)


@stand_in_only
@pytest.mark.parametrize("name", ["built", "object", "warm"])
def test_weights_are_on_the_gpu_read_only_and_the_rest_where_it_can_be_used(pool, name):
    places = pool.model(name, method="places")()
    weights = [places[key] for key in ("tied", "first.bias", "norm.weight", "last.weight", "last.bias")]
    assert {tuple(place.split()) for place in weights} == {("r--s", "/memfd:stand-in-device")}
    for key in ("runs", "norm.running_mean"):  # what models write into is each worker's own
        assert "memfd" not in places[key]
    for key in ("loose", "array"):  # what does not go along with a module stays with the processor
        assert places[key] == "rw-p /memfd:onecopy-weights"


def test_each_worker_counts_for_itself(pool):
    with Pool({"net": Model(Net)}, workers=1, devices=ONE) as other:
        for _ in range(3):
            other.run("net", X)
        assert other.model("net", method="count")() == 3


def test_what_is_warm_is_thawed_by_each_worker_which_is_said(pool):
    assert any(text.startswith("warm: each worker thaws it") for text in pool.status().fallbacks)


def test_the_gpu_has_accounts_of_its_own(pool):
    device = account(pool)
    assert device.budget_bytes == 1 << 30
    assert device.accounts["weights"] == 3 * GRAIN  # one pack each
    assert device.accounts["slots"] % GRAIN == 0


def test_equal_weights_are_on_the_gpu_once_and_go_with_the_last():
    with Pool({"a": Model(Same, args=(1,)), "b": Model(Same, args=(2,))}, workers=2, devices=ONE) as pool:
        assert pool.run("a", torch.ones(1)) != pool.run("b", torch.ones(1))
        assert on_gpu(pool) == 40 * MIB + 2 * GRAIN
        pool.unload("a")
        assert wait_until(lambda: on_gpu(pool) == 40 * MIB + GRAIN)
        pool.run("b", torch.ones(1))
        pool.unload("b")
        assert wait_until(lambda: on_gpu(pool) == 0)


def test_a_new_version_takes_over():
    with Pool({"net": Model(Net, args=(1,))}, workers=1, devices=ONE) as pool:
        before = pool.run("net", X)
        pool.load("net", Net(2))
        assert not torch.equal(pool.run("net", X), before)
        assert wait_until(lambda: on_gpu(pool) == GRAIN)


@stand_in_only
def test_who_writes_into_a_weight_dies_and_nobody_else_is_harmed():
    with Pool({"net": Net(1), "other": Net(2)}, workers=2, devices=ONE) as pool:
        right = pool.run("net", X)
        with pytest.raises(WorkerDied, match="net: the worker died"):
            pool.model("net", method="spoil")()
        assert torch.equal(pool.run("net", X), right)
        assert torch.equal(pool.run("other", X), Net(2)(X))


def test_what_does_not_fit_is_refused_with_the_numbers():
    small = {"cuda:0": {"budget": "200MiB", "reserve": 0}}
    with Pool({"net": Model(Net)}, workers=1, devices=small) as pool:
        pool.run("net", X)
        with pytest.raises(OutOfBudget, match=r"cuda:0"):
            pool.load("large", Model(Same, args=(0, 300 * MIB)))
        assert torch.equal(pool.run("net", X), Net()(X))


def is_alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def pid_of(pool, role):
    return next((one.pid for one in pool.memory().processes if one.role == role), 0)


@pytest.mark.parametrize("role", ["worker", "zygote"])
def test_a_kill_loses_nothing(role):
    with Pool({"net": Net(1)}, workers=2, devices=ONE) as pool:
        right = pool.run("net", X)
        futures = [pool.submit("net", X) for _ in range(50)]
        os.kill(pid_of(pool, role), signal.SIGKILL)
        for future in futures:
            assert torch.equal(future.result(), right)
        assert torch.equal(pool.run("net", X), right)


ATTACH = """
import sys, torch
from onecopy.pool import Pool
with Pool.connect(sys.argv[1]) as pool:
    module = pool.attach("built")
    x = torch.load(sys.argv[2])
    torch.save(module(x.to(module.first.weight.device)).cpu(), sys.argv[2])
"""


def tiers(pool):
    return {one.model: one.tier for one in pool.memory().weights}


def test_what_does_not_fit_beside_another_takes_turns_with_it():
    """What leaves is written to a file, and comes back from there; so does what was handed over."""
    models = {"object": Wide(0)} | {name: Model(Wide, args=(seed,)) for seed, name in enumerate("ab", 1)}
    with Pool(models, workers=1, slots=1, devices={"cuda:0": {"budget": "250MiB", "reserve": 0}}) as pool:
        for _ in range(3):
            for seed, name in enumerate(models):
                assert pool.run(name, torch.ones(1)) == Wide.value(seed)
        weights = {one.model: one for one in pool.memory().weights}
        assert sum(one.evictions for one in weights.values()) >= 3
        assert set(tiers(pool).values()) == {"gpu", "disk"}
        pool.evict("b")
        assert next(one.state for one in pool.memory().weights if one.model == "b") == "evicted"
        assert "carrier" in {one.role for one in pool.memory().processes}
        assert sum(one.returns for one in weights.values()) >= 3


def test_what_cannot_be_written_to_a_disk_is_built_anew(monkeypatch):
    models = {"built": Model(Net, args=(1,)), "object": Net(2)}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, monkeypatch.context() as environment:
        environment.setenv("ONECOPY_CACHE_DIR", folder)
        _is_built_anew(models)


def test_a_carrier_that_is_killed_again_and_again_loses_nothing():
    models = {name: Model(Wide, args=(seed,)) for seed, name in enumerate("abc")}
    with Pool(models, workers=1, slots=1, devices={"cuda:0": {"budget": "250MiB", "reserve": 0}}) as pool:
        for round_ in range(12):
            future = pool.submit("abc"[round_ % 3], torch.ones(1))
            for one in pool.memory().processes:
                if one.role == "carrier":
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(one.pid, signal.SIGKILL)
            assert future.result() == Wide.value(round_ % 3)
        pool.unload("a")
        assert pool.run("b", torch.ones(1)) == Wide.value(1)


def _is_built_anew(models):
    with Pool(models, workers=1, devices=ONE) as pool:
        expected = {name: pool.run(name, X) for name in ("built", "object")}
        pool.evict("built")
        assert tiers(pool)["built"] == ""
        with pytest.raises(OutOfBudget, match="memory itself"):
            pool.evict("object")
        for name, result in expected.items():
            assert torch.equal(pool.run(name, X), result)
        told = pool.status().fallbacks
        assert any(one.startswith("built: it is built anew after each eviction") for one in told)
        assert any(one.startswith("object: it is not evicted") for one in told)


def test_an_attached_process_has_the_module_on_the_same_memory(pool, tmp_path):
    torch.save(X, tmp_path / "x")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", ATTACH, pool.endpoint, str(tmp_path / "x")]
    subprocess.run(command, env=environment, check=True)
    torch.testing.assert_close(torch.load(tmp_path / "x"), Net(1)(X))
    assert on_gpu(pool) == 3 * GRAIN


def test_a_module_is_loaded_from_a_file_of_weights_straight_into_the_gpu(tmp_path):
    from safetensors.torch import save_file

    module = Same(7)
    save_file({name: tensor.data for name, tensor in module.named_parameters()}, tmp_path / "weights.safetensors")
    model = Model(Same, weights=str(tmp_path / "weights.safetensors"))
    with Pool({"same": model}, workers=1, devices=ONE) as pool:
        assert torch.equal(pool.run("same", torch.ones(1)), module(torch.ones(1)))
        assert on_gpu(pool) == 40 * MIB + GRAIN


def test_weights_of_a_file_become_of_another_dtype_on_their_way_and_equal_ones_are_there_once(tmp_path):
    from safetensors.torch import save_file

    weights = {name: tensor.data for name, tensor in Layers(2, 20 * MIB).state_dict().items()}
    save_file(weights, tmp_path / "wide.safetensors")
    save_file({name: one.bfloat16() for name, one in weights.items()}, tmp_path / "narrow.safetensors")
    args = (2, 20 * MIB)
    models = {
        "cast": Model(Layers, args=args, weights=str(tmp_path / "wide.safetensors"), dtype="bfloat16"),
        "same": Model(Layers, args=args, weights=str(tmp_path / "narrow.safetensors"), dtype="bfloat16"),
    }
    expected = Layers(*args).bfloat16()(torch.ones(1, dtype=torch.bfloat16))
    with Pool(models, workers=1, devices=ONE) as pool:
        for name in models:
            assert torch.equal(pool.run(name, torch.ones(1, dtype=torch.bfloat16)), expected)
        assert on_gpu(pool) == 20 * MIB + GRAIN


def test_beside_a_gpu_the_processor_can_be_a_device_and_models_choose():
    both = {"cpu": {"budget": "1GiB"}, **ONE}
    models = {"any": Model(Net, args=(1,)), "here": Model(Net, args=(2,), device="cpu"), "object": Net(3)}
    with Pool(models, workers=1, devices=both) as pool:
        for seed, name in enumerate(models, 1):
            torch.testing.assert_close(pool.run(name, X), Net(seed)(X))
        assert {one.name: one.device for one in pool.models()} == {
            "any": "cuda:0", "here": "cpu", "object": "cuda:0",
        }  # fmt: skip


def test_large_inputs_and_results_travel_as_ever(pool):
    x = torch.randn(4000, WIDTH)
    torch.testing.assert_close(pool.run("built", x), Net(1)(x), rtol=1e-4, atol=1e-4)
    assert [torch.equal(one, pool.run("built", X)) for one in pool.map("built", [X] * 20)] == [True] * 20


@pytest.fixture
def two_gpus(monkeypatch, tmp_path):
    if torch.cuda.is_available() and torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    line = "gpu GPU-0000000{0}-0000-4000-8000-00000000000{0} 4294967296 0 Stand-in\n"
    (tmp_path / "gpus").write_text(line.format(1) + line.format(2))
    monkeypatch.setenv("STAND_IN_GPUS", str(tmp_path / "gpus"))
    return tmp_path / "gpus"


@pytest.fixture
def linked_gpus(two_gpus):
    if torch.cuda.is_available() and not torch.cuda.can_device_access_peer(0, 1):
        pytest.skip("the GPUs cannot use each other's memory")
    with two_gpus.open("a") as file:
        file.write("peers 0 1\n")


def test_on_several_gpus_weights_are_once_on_each_that_has_them(two_gpus):
    models = {"one": Model(Net, args=(1,), device="cuda:1"), "both": Model(Net, args=(2,), replicas=2)}
    with Pool(models, workers=1, devices="cuda") as pool:
        torch.testing.assert_close(pool.run("one", X), Net(1)(X))
        for future in [pool.submit("both", X) for _ in range(40)]:
            torch.testing.assert_close(future.result(), Net(2)(X))
        assert sorted((one.name, one.device) for one in pool.models()) == [
            ("both", "cuda:0"), ("both", "cuda:1"), ("one", "cuda:1"),
        ]  # fmt: skip
        assert [one.accounts["weights"] for one in pool.memory().devices][:2] == [GRAIN, 2 * GRAIN]


@stand_in_only
def test_a_gpu_may_be_named_by_its_uuid(two_gpus):
    with Pool({"net": Net(1)}, workers=1, devices={"cuda:GPU-00000002": {}}) as pool:
        assert [one.device for one in pool.models()] == ["cuda:1"]
    with pytest.raises(ConfigError, match="'cuda:GPU-0' means several GPUs; there are: cuda:0"):
        Pool({"net": Net(1)}, devices={"cuda:GPU-0": {}})


SMALL = {f"cuda:{number}": {"budget": "200MiB", "reserve": 0} for number in range(2)}


@pytest.mark.parametrize("how", ["built", "from a file"])
def test_a_model_that_fits_on_no_gpu_is_divided_among_those_that_reach_each_other(linked_gpus, how, tmp_path):
    from safetensors.torch import save_file

    module = Layers(6, 40 * MIB)
    model = Model(Layers, args=(6, 40 * MIB))
    if how == "from a file":
        save_file(module.state_dict(), tmp_path / "weights.safetensors")
        model = Model(Layers, args=(6, 40 * MIB), weights=str(tmp_path / "weights.safetensors"))
    with Pool({"large": model}, workers=1, devices=SMALL) as pool:
        for _ in range(3):
            torch.testing.assert_close(pool.run("large", torch.ones(1)), module(torch.ones(1)))
        taken_bytes = [account(pool, name).accounts["weights"] for name in SMALL]
        assert sorted(taken_bytes) == [120 * MIB, 120 * MIB + GRAIN], "and what is small, in one pack"
        (loaded,) = pool.models()
        assert loaded.device in SMALL
        assert any("it fits on no device alone, and is divided: " in text for text in pool.status().fallbacks)
        with pytest.raises(InvalidRequest, match="it is divided among devices"):
            pool.evict("large")
        pool.unload("large")
        assert wait_until(lambda: sum(account(pool, name).accounts["weights"] for name in SMALL) == 0)


@stand_in_only
def test_a_model_that_fits_on_no_gpu_is_refused_where_none_can_use_anothers_memory(two_gpus):
    refusal = pytest.raises(OutOfBudget, match=r"on cuda:[01], .*; .*on cuda:[01], .*; it is not divided, because")
    with Pool({"net": Model(Net)}, workers=1, devices=SMALL) as pool, refusal:
        pool.load("large", Model(Same, args=(0, 300 * MIB)))


@stand_in_only
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(InvalidRequest, match=r"'cuda:9' cannot be used"):
        Pool({"net": Net()}, devices={"cuda:9": {}})


def test_a_killed_loader_is_a_failed_load_and_gives_back_what_it_had():
    with Pool({"net": Net(1)}, workers=1, devices=ONE) as pool:
        pool.run("net", X)
        with ThreadPoolExecutor(1) as thread:
            loading = thread.submit(pool.load, "stuck", Model(Stuck))
            assert wait_until(lambda: pid_of(pool, "loader"))
            os.kill(pid_of(pool, "loader"), signal.SIGKILL)
            with pytest.raises(LoadFailed, match="SIGKILL"):
                loading.result()
        assert on_gpu(pool) == GRAIN
        pool.load("stuck", Model(Same))
        assert pool.run("stuck", torch.zeros(1)) == 0


def test_a_killed_supervisor_leaves_nothing():
    with Pool({"net": Net(1)}, workers=2, devices=ONE) as pool:
        pool.run("net", X)
        processes = [psutil.Process(one.pid) for one in pool.memory().processes]
        os.kill(pid_of(pool, "supervisor"), signal.SIGKILL)
        assert wait_until(lambda: not any(is_alive(one) for one in processes))


def test_without_a_driver_it_is_said_what_is_missing():
    environment = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
    program = "from onecopy.pool import Pool; Pool({'m': print}, devices={'cuda:0': {}})"
    if torch.cuda.is_available():
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode
    assert "the device 'cuda:0' cannot be used" in done.stderr
