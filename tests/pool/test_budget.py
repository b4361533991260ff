"""Weights that leave memory for the disk and come back: on request, and where a budget asks for it."""

import os

import pytest
import torch
from leftovers import wait_until
from onecopy.pool import InvalidRequest, Model, ModelNotFound, OutOfBudget, Pool
from standalone import onecopy, standalone

MIB = 1 << 20
#: Of one model; large enough to stand out from what processes take.
SIZE = 64 * MIB
X = torch.ones(3)


class Filled(torch.nn.Module):
    """A model of `SIZE` bytes whose content nothing else has."""

    def __init__(self, number):
        super().__init__()
        self.number = number
        self.weights = torch.nn.ParameterList(
            torch.full((SIZE // 16,), number + part / 4) for part in range(4)
        ).requires_grad_(requires_grad=False)

    def forward(self, x):
        return x * sum(float(weight[-1]) + float(weight[0]) for weight in self.weights)


def expected(number):
    return X * (8 * number + 3)


def weights_of(pool, name):
    return next(one for one in pool.memory().weights if one.model == name)


@pytest.fixture
def pool():
    with Pool({"a": Filled(1), "b": Filled(2)}, workers=2) as pool:
        for number, name in enumerate("ab", 1):
            assert torch.equal(pool.run(name, X), expected(number))
        yield pool


# --- on request ----------------------------------------------------------------------------------------------


def test_what_is_evicted_takes_no_memory_and_comes_back_with_the_next_request(pool):
    before = pool.memory()
    pool.evict("a")
    memory = pool.memory()
    assert before.weights_bytes - memory.weights_bytes >= SIZE
    one = weights_of(pool, "a")
    assert (one.state, one.tier, one.workers, one.evictions, one.returns) == ("evicted", "disk", 0, 1, 0)
    assert memory.devices[0].evicted_bytes == memory.devices[0].disk_bytes == one.size_bytes
    assert "a: 67.1 MB on the disk, evicted 1 times" in str(memory)
    assert "67.1 MB evicted to the disk" in str(memory)
    assert torch.equal(pool.run("a", X), expected(1))
    one, memory = weights_of(pool, "a"), pool.memory()
    assert (one.state, one.tier, one.evictions, one.returns) == ("ready", "memory", 1, 1)
    assert memory.weights_bytes == before.weights_bytes
    assert memory.total_bytes < before.total_bytes + SIZE / 2, "what is mapped again counts once"
    device = memory.devices[0]
    assert (device.evicted_bytes, device.disk_bytes) == (0, one.size_bytes)


def test_what_is_evicted_can_be_attached_to_and_unloaded(pool):
    pool.evict("a")
    assert torch.equal(pool.attach("a")(X), expected(1))
    pool.evict("b")
    pool.unload("b")
    memory = pool.memory()
    assert [one.model for one in memory.weights] == ["a"]
    assert memory.devices[0].disk_bytes == memory.weights[0].size_bytes


def test_only_what_is_there_and_free_to_go_is_evicted(pool):
    pool.pin("a")
    assert weights_of(pool, "a").is_pinned
    with pytest.raises(InvalidRequest, match="a stays in memory: it is pinned"):
        pool.evict("a")
    pool.unpin("a")
    assert not weights_of(pool, "a").is_pinned
    pool.evict("a")
    pool.evict("a")  # again is no mistake
    with pytest.raises(ModelNotFound, match="no model 'c' here; there are: a, b"):
        pool.evict("c")
    with pytest.raises(ModelNotFound, match="no model 'c'"):
        pool.pin("c")


def test_pinning_brings_back(pool):
    pool.evict("a")
    pool.pin("a")
    assert wait_until(lambda: weights_of(pool, "a").tier == "memory")


def test_where_there_is_no_disk_for_it_it_stays(monkeypatch):
    monkeypatch.setenv("ONECOPY_CACHE_DIR", "/dev/shm/onecopy-not-there")
    with Pool({"a": Filled(1)}, workers=1) as pool:
        assert torch.equal(pool.run("a", X), expected(1))
        with pytest.raises(OutOfBudget, match="is on tmpfs, which is memory itself"):
            pool.evict("a")
        assert weights_of(pool, "a").tier == "memory"
        assert torch.equal(pool.run("a", X), expected(1))
        assert any("a stays in memory" in note for note in pool.status().notes)


def test_nobody_pins_or_evicts_over_tcp(tmp_path):
    with standalone(tmp_path, "listen = ['tcp://127.0.0.1:*']\n[models.m]\nsource='toy_models:toys'") as served:
        assert wait_until(lambda: "listening at" in served.log.read_text())
        endpoint = served.log.read_text().partition("listening at ")[2].split()[0]
        with Pool.connect(endpoint) as pool:
            for order in (pool.pin, pool.unpin, pool.evict):
                with pytest.raises(InvalidRequest, match="never travel over tcp"):
                    order("m")


def test_the_command_line_does_it_too(tmp_path):
    toml = 'workers = 1\n[models.m]\nsource = "torch.nn:Linear"\nargs = [2048, 1024]\nwarm = false\npin = true\n'
    with standalone(tmp_path, toml):
        assert onecopy("run", "m", "--method", "extra_repr").returncode == 0
        refused = onecopy("evict", "m")
        assert (refused.returncode, refused.stderr) == (1, "onecopy: m stays in memory: it is pinned\n")
        assert "ready, pinned" in onecopy("memory").stdout
        for command in ("unpin", "evict"):
            done = onecopy(command, "m")
            assert done.returncode == 0, done.stderr
        shown = onecopy("memory").stdout
        assert "evicted  disk" in shown
        assert "device" in shown
        assert onecopy("pin", "m").returncode == 0
        assert wait_until(lambda: "ready, pinned  memory" in onecopy("memory").stdout)


# --- within a budget -----------------------------------------------------------------------------------------


def base_bytes():
    """Return what a pool of such models takes besides their weights."""
    with Pool({"a": Filled(1)}, workers=1) as pool:
        pool.run("a", X)
        return sum(one.private_bytes for one in pool.memory().processes if one.role != "loader")


def test_more_models_than_fit_are_all_answered_within_the_budget():
    budget = base_bytes() + int(3.5 * SIZE)
    models = {f"m{number}": Model(Filled, args=(number,)) for number in range(6)}
    with Pool(models, workers=1, devices={"cpu": {"budget": budget}}) as pool:
        for _ in range(2):
            for number in range(6):
                assert torch.equal(pool.run(f"m{number}", X), expected(number))
                assert pool.memory().weights_bytes < 4.5 * SIZE  # processes may take a little more or less
        memory = pool.memory()
        assert sum(one.evictions for one in memory.weights) > 3
        assert memory.devices[0].evicted_bytes >= 2 * SIZE
        assert memory.devices[0].budget_bytes == budget


def test_what_is_larger_than_the_budget_is_refused_with_the_numbers():
    with Pool({"small": torch.nn.Linear(2, 2)}, workers=1, devices={"cpu": {"budget": "200MB"}}) as pool:
        pool.run("small", torch.ones(2))
        with pytest.raises(OutOfBudget, match=r"budget 200\.0 MB") as caught:
            pool.load("large", Model(torch.nn.Linear, args=(8192, 8192)))
        assert caught.value.details["budget"] == 200_000_000
        assert caught.value.details["needed"] > caught.value.details["free"]
        assert wait_until(lambda: "loader" not in {one.role for one in pool.memory().processes})
        pool.run("small", torch.ones(2))


def test_a_pool_that_ends_with_weights_on_the_disk_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("ONECOPY_CACHE_DIR", str(tmp_path / "cache"))
    with Pool({"a": Filled(1)}, workers=1) as pool:
        pool.run("a", X)
        pool.evict("a")
        assert not any(".weights" in name for name in os.listdir(tmp_path / "cache"))
    assert not any(".weights" in name for name in os.listdir(tmp_path / "cache"))
