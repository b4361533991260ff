"""One copy by content: across models and versions, freed with its last user, never written by another."""

from __future__ import annotations

import os

import backbones
import pool_models
import pytest
import torch
from backbones import SIDE, Backboned, Folded, Scaled
from leftovers import wait_until
from onecopy.pool import LoadFailed, Model, Pool, WorkerDied
from safetensors.torch import save_file

WEIGHT = 4 * SIDE * SIDE
X = torch.randn(2, SIDE)
#: What `Folded` adds when its weight counts up.
LAST = torch.arange(float(1 << 20))[-4:]


def weights_of(pool, name):
    return next(one for one in pool.memory().weights if one.model == name)


@pytest.fixture
def pool():
    with Pool({"scale": pool_models.Scale()}, workers=2) as pool:
        yield pool


def test_models_share_what_is_equal_and_each_frees_what_is_its_own(pool):
    alone = pool.memory().weights_bytes
    names = [f"head{number}" for number in range(4)]
    for number, name in enumerate(names):
        source = Backboned(number) if number % 2 else Model(Backboned, args=(number,))
        pool.load(name, source)
    expected = {name: Backboned(number)(X) for number, name in enumerate(names)}
    for name in names:
        assert torch.equal(pool.run(name, X), expected[name])
    one = weights_of(pool, "head0")
    assert pool.memory().weights_bytes - alone < one.size_bytes + 3 * 1.01 * (WEIGHT + (1 << 16))
    assert one.shared_with.keys() == {"head1", "head2", "head3"}
    assert one.size_bytes - one.own_bytes == min(one.shared_with.values()) >= 3 * WEIGHT
    for name in ("head2", "head0", "head3", "head1"):
        before, own = pool.memory().weights_bytes, weights_of(pool, name).own_bytes
        pool.unload(name)
        assert before - pool.memory().weights_bytes == own
        for other in pool.models():
            if other.name in expected:
                assert torch.equal(pool.run(other.name, X), expected[other.name])
    assert pool.memory().weights_bytes == alone


def test_models_that_load_at_the_same_time_share_too():
    sources = {f"m{number}": Model(Backboned, args=(0,), warm=True) for number in range(4)}
    with Pool(sources, workers=1) as pool:
        for name in sources:
            pool.run(name, X)
        assert pool.memory().weights_bytes == weights_of(pool, "m0").size_bytes


def test_a_private_model_shares_with_nobody(pool):
    pool.load("shared", Backboned())
    before = pool.memory().weights_bytes
    pool.load("private", Model(Backboned, sharing="private"))
    private = weights_of(pool, "private")
    assert private.shared_with == {}
    assert private.own_bytes == private.size_bytes == pool.memory().weights_bytes - before
    assert torch.equal(pool.run("private", X), pool.run("shared", X))


def test_equal_buffers_are_written_by_nobody_else(pool):
    pool.load("one", Backboned(0))
    pool.load("other", Backboned(1))
    assert pool.run("one", X).shape == X.shape
    assert pool.model("one", method="note")(7.0) == (7.0, 0.0)
    for _ in range(10):
        assert pool.model("other", method="peek")() == (0.0, 0.0)


def test_a_new_version_shares_what_has_not_changed(pool):
    pool.load("m", Model(Backboned, args=(0,)))
    kept = pool.attach("m")  # so that the version before stays
    pool.load("m", Model(Backboned, args=(1,)))
    new = next(one for one in pool.memory().weights if one.model == "m" and one.state == "ready")
    assert new.shared_with["m"] >= 3 * WEIGHT
    assert new.own_bytes < 1.1 * WEIGHT
    assert torch.equal(kept(X), Backboned(0)(X))
    assert torch.equal(pool.run("m", X), Backboned(1)(X))
    del kept


def test_what_cannot_be_pickled_is_built_in_each_worker_around_the_one_copy(pool):
    pool.load("locked", Model(pool_models.Locked))
    noise = {pool.model("locked", method="noise_at")(5) for _ in range(20)}
    assert len(noise) == 1
    assert weights_of(pool, "locked").is_rebuilt
    assert weights_of(pool, "locked").size_bytes >= 1 << 20
    assert any("locked: each worker builds it anew" in note and "lock" in note for note in pool.status().notes)
    with pytest.raises(Exception, match="each worker builds it anew"):
        pool.attach("locked")


def test_a_script_module_is_built_in_each_worker_around_the_one_copy(pool):
    pool.load("script", Model(backbones.make_script))
    assert torch.equal(pool.run("script", X), backbones.make_script()(X))
    assert weights_of(pool, "script").is_rebuilt
    assert weights_of(pool, "script").private_bytes < WEIGHT / 2


# --- files that are mapped ----------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.arange(float(1 << 20))}, path)
    return path


def mapped(path):
    return Model(Folded, weights=str(path), residency="file")


def test_a_file_is_mapped_and_takes_no_memory(pool, file):
    before = pool.memory().weights_bytes
    pool.load("a", mapped(file))
    pool.load("b", mapped(file))
    assert torch.equal(pool.run("a", torch.zeros(4)), LAST)
    assert pool.memory().weights_bytes == before
    assert weights_of(pool, "a").shared_with == {"b": os.path.getsize(file)}
    assert pool.status().notes == []


def test_what_is_not_as_it_is_in_its_file_is_copied_and_that_is_said(pool, file):
    pool.load("m", Model(Folded, weights=str(file), residency="file", dtype="bfloat16"))
    assert torch.equal(pool.run("m", torch.zeros(4)), LAST.bfloat16().float())
    assert any(
        "2,097,152 of 2,097,152 bytes were copied although residency is 'file'" in note
        for note in pool.status().notes
    )


def test_a_file_that_is_replaced_by_another_changes_nothing(pool, file, tmp_path):
    pool.load("m", mapped(file))
    save_file({"weight": torch.ones(1 << 20)}, tmp_path / "new")
    os.replace(tmp_path / "new", file)
    assert torch.equal(pool.run("m", torch.zeros(4)), LAST)
    pool.load("m", mapped(file))
    assert torch.equal(pool.run("m", torch.zeros(4)), torch.ones(4))


def test_a_file_that_is_written_to_is_noticed_and_loaded_anew(pool, file):
    pool.load("m", mapped(file))
    assert torch.equal(pool.run("m", torch.zeros(4)), LAST)
    with open(file, "r+b") as opened:
        opened.seek(-16, os.SEEK_END)
        opened.write(torch.full((4,), 9.0).numpy().tobytes())
    wait_until(lambda: any("was written to while it was mapped" in note for note in pool.status().notes))
    assert torch.equal(pool.run("m", torch.zeros(4)), torch.full((4,), 9.0))


def test_several_files_of_one_model_that_are_written_to_at_once_are_noticed(pool, tmp_path):
    parts = {"weight": 2.0, "bias": 3.0}
    for name, value in parts.items():
        save_file({name: torch.full((1 << 18,), value)}, tmp_path / f"{name}.safetensors")
    pool.load("m", Model(Scaled, weights=str(tmp_path), residency="file"))  # in no worker: it is freed at once
    for name, value in parts.items():
        save_file({name: torch.full((1 << 18,), value + 1)}, tmp_path / "new")
        (tmp_path / f"{name}.safetensors").write_bytes((tmp_path / "new").read_bytes())
    (tmp_path / "new").unlink()
    assert wait_until(lambda: any("was written to while it was mapped" in one for one in pool.status().notes))
    assert torch.equal(pool.run("m", torch.ones(1 << 18)), torch.full((1 << 18,), 7.0))


def test_a_file_that_is_cut_while_it_is_mapped_ends_no_more_than_requests(pool, file):
    pool.load("m", mapped(file))
    pool.run("m", torch.zeros(4))
    os.truncate(file, 8192)
    # Depending on who comes first, a worker that reads what is no more or the supervisor that looks after it.
    with pytest.raises((WorkerDied, LoadFailed), match=r"was cut from|may be truncated"):
        pool.run("m", torch.zeros(4))
    assert any("was cut from" in note for note in pool.status().notes)
    assert pool.run("scale", torch.ones(1)) == 2.0


# --- attached ------------------------------------------------------------------------------------------------


def test_an_attached_model_is_the_real_one_with_hooks_and_gradients(pool):
    pool.load("m", Model(Backboned, args=(0,)))
    module = pool.attach("m")
    seen = []
    module.backbone[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    x = X.clone().requires_grad_()
    module(x).sum().backward()
    assert seen == [torch.Size([2, SIDE])]
    assert x.grad is not None
    with torch.no_grad():
        module.head.weight.zero_()
    assert torch.equal(pool.run("m", X), Backboned(0)(X))


def test_what_is_attached_outlives_being_unloaded_and_goes_when_it_is_let_go(pool):
    before = pool.memory().weights_bytes
    pool.load("m", Model(Backboned, args=(0,)))
    module = pool.attach("m")
    pool.unload("m")
    [held] = [one for one in pool.memory().weights if one.model == "m"]
    assert (held.state, held.attached, held.workers) == ("draining", 1, 0)
    assert torch.equal(module(X), Backboned(0)(X))
    del module, held
    wait_until(lambda: pool.memory().weights_bytes == before)


def test_attaching_costs_no_second_copy(pool):
    pool.load("m", Model(Backboned, args=(0,)))
    before = private_bytes()
    modules = [pool.attach("m") for _ in range(5)]
    outputs = [module(X) for module in modules]
    assert all(torch.equal(one, outputs[0]) for one in outputs)
    assert private_bytes() - before < 2 * WEIGHT


def test_attaching_waits_for_the_load_and_tells_if_there_is_nothing_to_attach_to(pool):
    pool.load("m", Model(Backboned, args=(2,)))
    assert torch.equal(pool.attach("m")(X), Backboned(2)(X))
    with pytest.raises(LookupError, match="no model 'nothing'"):
        pool.attach("nothing")


def private_bytes():
    with open("/proc/self/smaps_rollup") as rollup:
        return next(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Pss_Anon"))
