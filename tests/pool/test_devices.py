"""A machine divided into devices: where models go, what each device has of its own, and what is common."""

import collections
import json
import os
import signal

import pytest
import torch
from device_models import Deep, Where
from leftovers import wait_until
from onecopy.pool import ConfigError, InvalidRequest, Model, OutOfBudget, Pool, environment, plan
from standalone import onecopy, standalone

MIB = 1 << 20
X = torch.ones(3)
TWO = {"cpu:0": {"budget": "1GiB"}, "cpu:1": {"budget": "1GiB"}}


def answer(seed, size_bytes=MIB):
    return Where(seed, size_bytes)(X)


def are_up(pool):
    """Whether the two workers of each device are forked."""
    return sum(worker.pid > 0 for worker in pool.status().workers) == 4


def homes(pool, name):
    return [one.device for one in pool.models() if one.name == name]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    models = {f"m{seed}": Model(Where, kwargs={"seed": seed}) for seed in range(4)}
    models["object"] = Model(Where(4), device="cpu:1")
    models["both"] = Model(Where, kwargs={"seed": 5}, replicas=2)
    cache = os.environ.get("ONECOPY_CACHE_DIR")
    os.environ["ONECOPY_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    with Pool(models, workers=2, devices=TWO) as pool:
        assert wait_until(lambda: are_up(pool))
        for name in models:
            pool.run(name, X)
        yield pool
    if cache is None:
        del os.environ["ONECOPY_CACHE_DIR"]


def test_models_spread_and_answer_from_wherever_they_are(pool):
    assert collections.Counter(homes(pool, f"m{seed}")[0] for seed in range(4)) == {"cpu:0": 2, "cpu:1": 2}
    assert homes(pool, "object") == ["cpu:1"]
    for seed in range(4):
        assert torch.equal(pool.run(f"m{seed}", X), answer(seed))
    assert torch.equal(pool.run("object", X), answer(4))


def test_replicas_share_the_requests_and_each_device_has_its_copy(pool):
    assert homes(pool, "both") == ["cpu:0", "cpu:1"]
    for future in [pool.submit("both", X) for _ in range(40)]:
        assert torch.equal(future.result(), answer(5))
    assert all(one.answered >= 10 for one in pool.models() if one.name == "both")
    copies = [one for one in pool.memory().weights if one.model == "both"]
    assert [(one.device, one.own_bytes) for one in copies] == [("cpu:0", MIB), ("cpu:1", MIB)]


def test_each_device_has_workers_a_zygote_and_accounts_of_its_own(pool):
    status, memory = pool.status(), pool.memory()
    assert collections.Counter(worker.device for worker in status.workers) == {"cpu:0": 2, "cpu:1": 2}
    assert list(status.zygotes) == ["cpu:0", "cpu:1"]
    assert len(set(status.zygotes.values())) == 2
    by_role = collections.Counter((one.role, one.device) for one in memory.processes)
    assert by_role == {
        ("supervisor", "cpu:0"): 1,
        **{(role, device): count for role, count in (("zygote", 1), ("worker", 2)) for device in TWO},
    }
    for device in memory.devices:
        own = sum(one.private_bytes for one in memory.processes if one.device == device.name)
        assert device.accounts["workers"] + device.accounts["others"] == pytest.approx(own, rel=0.05)
        weights = sum(one.own_bytes for one in memory.weights if one.device == device.name)
        assert device.accounts["weights"] == weights
    assert "cpu:1: " in str(memory)


def test_workers_keep_to_the_cores_of_their_device(pool):
    mine = environment.my_cores()
    if len(mine) < 2 or environment.cores_are_limited():
        pytest.skip("there are too few cores to divide")
    half = len(mine) // 2
    assert set(pool.model("object", method="cores")()) <= set(mine[half:])


def test_the_death_of_a_zygote_or_a_worker_leaves_the_other_device_alone():
    with Pool({"object": Model(Where(4), device="cpu:1")}, workers=2, devices=TWO) as pool:
        assert torch.equal(pool.run("object", X), answer(4))
        assert wait_until(lambda: are_up(pool))
        end_those_of_the_second_device(pool)


def end_those_of_the_second_device(pool):
    before = pool.status()
    os.kill(before.zygotes["cpu:1"], signal.SIGKILL)
    victim = pool.model("object", method="pid")()
    os.kill(victim, signal.SIGKILL)
    assert torch.equal(pool.run("object", X), answer(4))
    assert wait_until(lambda: pool.status().zygotes["cpu:1"] not in (0, before.zygotes["cpu:1"]))
    after = pool.status()
    assert after.zygotes["cpu:0"] == before.zygotes["cpu:0"]
    pids = {device: {one.pid for one in before.workers if one.device == device} for device in TWO}
    assert {one.pid for one in after.workers if one.device == "cpu:0"} == pids["cpu:0"]


def test_a_device_that_is_none_is_named_and_nothing_changes(pool):
    before = [(one.name, one.device) for one in pool.models()]
    with pytest.raises(InvalidRequest, match="no device 'cpu:7' in this pool; there are: cpu:0, cpu:1"):
        pool.load("new", Model(Where, device=["cpu:0", "cpu:7"]))
    with pytest.raises(InvalidRequest, match="no device 'cpu:7' in this pool"):
        pool.load("new", Model(Where(9), device="cpu:7"))
    with pytest.raises(InvalidRequest, match="object is on cpu:1, and the new version would be on cpu:0"):
        pool.load("object", Model(Where(9), device="cpu:0"))
    assert [(one.name, one.device) for one in pool.models()] == before


def test_what_does_not_fit_on_one_device_goes_to_the_next_and_what_fits_on_none_is_refused():
    budgets = {"cpu:0": {"budget": "400MiB"}, "cpu:1": {"budget": "700MiB"}}
    with Pool({"small": Model(Where, pin=True, device="cpu:1")}, workers=1, devices=budgets) as pool:
        pool.run("small", X)
        size = 320 * MIB
        pool.load("large", Model(Where, kwargs={"size_bytes": size}))
        assert homes(pool, "large") == ["cpu:1"]
        assert torch.equal(pool.run("large", X), answer(0, size))
        with pytest.raises(OutOfBudget, match=r" on cpu:0, [\d,]+ on cpu:1, .* too few, however it is divided"):
            pool.load("too-large", Model(Where, kwargs={"size_bytes": 800 * MIB}))


def test_each_device_evicts_its_own():
    budgets = {"cpu:0": {"budget": "300MiB"}, "cpu:1": {"budget": "1GiB"}}
    names = [f"m{seed}" for seed in range(4)]
    models = {
        name: Model(Where, kwargs={"seed": seed, "size_bytes": 64 * MIB}, device="cpu:0")
        for seed, name in enumerate(names)
    }
    with Pool({**models, "other": Model(Where(9), device="cpu:1")}, workers=1, devices=budgets) as pool:
        for name in names * 2:
            assert torch.equal(pool.run(name, X), answer(names.index(name), 64 * MIB))
        first, second = pool.memory().devices
        assert first.evicted_bytes > 0
        assert (second.evicted_bytes, second.disk_bytes) == (0, 0)
        assert torch.equal(pool.run("other", X), answer(9))


def test_the_machine_is_divided_by_its_nodes():
    nodes = environment.numa_nodes()
    if not nodes:
        with pytest.raises(ConfigError, match="tells of no NUMA nodes"):
            Pool({}, devices="numa")
        return
    with Pool(Where(1), workers=1, devices="numa") as pool:
        assert torch.equal(pool.run("model", X), answer(1))
        assert set(pool.status().zygotes) == {f"numa:{number}" for number in nodes}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"device": "gpu"},
            "device must be 'auto', the name of one, such as 'cpu:0', or a list of such; not 'gpu'",
        ),
        ({"device": []}, "device must be 'auto'"),
        ({"device": 3}, "device must be 'auto'"),
        ({"device": ["cpu:0", 3]}, "device must be 'auto'"),
        ({"replicas": 0}, "replicas must be a whole number from 1"),
        ({"device": ["cpu:0", "cpu:1"], "replicas": 3}, "replicas must be a whole number from 1 to 2"),
    ],
)
def test_wishes_that_no_pool_can_fulfil_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        Model(Where, **options)


def test_an_object_has_no_replicas():
    with pytest.raises(ConfigError, match="this source is an object in memory"):
        Model(Where(1), replicas=2)


TOML = """
workers = 1
[devices."cpu:0"]
budget = "1GiB"
[devices."cpu:1"]
budget = "1GiB"
threads = 1
[models.here]
source = "device_models:Where"
kwargs = {seed = 1}
device = "cpu:0"
[models.there]
source = "device_models:Where"
kwargs = {seed = 2}
device = ["cpu:1"]
"""


def test_a_file_says_it_too_and_the_command_line_shows_it(tmp_path):
    with standalone(tmp_path, TOML):
        for name in ("here", "there"):
            assert onecopy("run", name, "--arg", "[1.0]", "--method", "pid").returncode in (0, 1)
        told = json.loads(onecopy("models", "--json").stdout)
        assert {one["name"]: one["device"] for one in told} == {"here": "cpu:0", "there": "cpu:1"}


def test_a_plan_tells_where_models_would_go():
    models = {
        "a": Model(Where, kwargs={"size_bytes": 200 * MIB}),
        "b": Model(Where, kwargs={"seed": 1, "size_bytes": 200 * MIB}, device="cpu:1"),
    }
    made = plan(models, workers=1, devices={"cpu:0": {"budget": "600MB"}, "cpu:1": {"budget": "600MB"}})
    assert {one.name: one.device for one in made.models}["b"] == "cpu:1"
    assert sum(one.weights_bytes for one in made.devices) == 400 * MIB
    assert made.fits, made


# --- what fits on no device ----------------------------------------------------------------------------------


LAYERS, WIDTH = 40, 2048  # of 16 MiB each: 640 MiB, more than is left beside the processes
TIGHT = {"cpu:0": {"budget": "680MiB", "workers": 1}, "cpu:1": {"budget": "680MiB", "workers": 1}}


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A model that is larger than either device, and its weights in a file."""
    from safetensors.torch import save_file

    model = Deep(LAYERS, WIDTH)
    path = str(tmp_path_factory.mktemp("deep") / "deep.safetensors")
    save_file(model.state_dict(), path)
    return model, path


def test_a_model_that_fits_on_no_device_is_divided_and_answers_as_it_would_undivided(deep):
    model, path = deep
    x = torch.linspace(-1, 1, 3 * WIDTH).reshape(3, WIDTH)
    wanted = Model(Deep, args=(LAYERS, WIDTH), weights=path)
    with Pool({"small": Model(Where, kwargs={"seed": 1})}, devices=TIGHT, threads=1) as pool:
        pool.run("small", X)
        pool.load("deep", wanted)
        torch.set_num_threads(1)
        with torch.inference_mode():
            assert torch.equal(pool.run("deep", x), model(x))
        parts = [one for one in pool.memory().weights if one.model == "deep"]
        assert sorted(one.device for one in parts) == ["cpu:0", "cpu:1"]
        assert sum(one.size_bytes for one in parts) >= LAYERS * WIDTH * WIDTH * 4
        assert all(one.used_bytes <= one.limit_bytes for one in pool.memory().devices), pool.memory()
        assert len(homes(pool, "deep")) == 1
        (told,) = [one.weights_bytes for one in pool.models() if one.name == "deep"]
        assert told == sum(one.size_bytes for one in parts)
        assert "it fits on no device alone, and is divided" in "\n".join(pool.status().notes)
        (home,) = homes(pool, "deep")
        (worker,) = [one.pid for one in pool.status().workers if one.device == home]
        os.kill(worker, signal.SIGKILL)
        with torch.inference_mode():
            assert torch.equal(pool.run("deep", x), model(x)), "the next worker maps both parts, too"
        pool.unload("deep")
        assert not [one for one in pool.memory().weights if one.model == "deep"]
        assert all(device.accounts["weights"] <= 2 * MIB for device in pool.memory().devices)
        with pytest.raises(OutOfBudget, match="too few, however it is divided"):
            pool.load("deeper", Model(Deep, args=(3 * LAYERS, WIDTH)))
        with pytest.raises(OutOfBudget, match=r"on cpu:., and .*on cpu:., and "):
            pool.load("deep", Model(Deep, args=(LAYERS, WIDTH), weights=path, divide=False))


def test_a_plan_tells_what_would_be_divided(deep):
    told = plan({"deep": Model(Deep, args=(LAYERS, WIDTH), weights=deep[1])}, workers=1, devices=TIGHT)
    assert sorted(told.models[0].device.split(", ")) == ["cpu:0", "cpu:1"]
    assert told.fits, told
    assert (
        sum(one.weights_bytes for one in told.devices)
        == told.models[0].weights_bytes
        >= LAYERS * WIDTH * WIDTH * 4
    )


def test_a_divided_model_that_is_warm_is_found_thawed_by_every_worker(deep):
    model, path = deep
    x = torch.linspace(-1, 1, 3 * WIDTH).reshape(3, WIDTH)
    torch.set_num_threads(1)
    with torch.inference_mode():
        expected = model(x)
    wanted = Model(Deep, args=(LAYERS, WIDTH), weights=path, warm=True)
    with Pool({"deep": wanted}, devices=TIGHT, threads=1) as pool:
        assert torch.equal(pool.run("deep", x), expected)
        (home,) = homes(pool, "deep")

        def thawed_without_a_run():
            found = [one for one in pool.status().workers if one.device == home and one.is_thawed and not one.runs]
            return [one.pid for one in found if one.models == ["deep"]]

        assert wait_until(thawed_without_a_run), "the worker that ran it gives way to one that inherits it"
        (worker,) = thawed_without_a_run()
        os.kill(worker, signal.SIGKILL)
        assert wait_until(lambda: thawed_without_a_run() not in ([], [worker]))
        assert torch.equal(pool.run("deep", x), expected)
        assert all(one.used_bytes <= one.limit_bytes for one in pool.memory().devices), pool.memory()
        pool.unload("deep")  # which takes a new zygote
        assert all(device.accounts["weights"] == 0 for device in pool.memory().devices)
