"""Compiled packages: their constants are taken out of the library and shared, wherever torch has put them."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import compiled_models
import pool_models
import pytest
import torch
from compiled_models import SCALE, WIDTH, X
from freezing import roundtrip
from leftovers import wait_until
from onecopy.pool import LoadFailed, Model, Pool
from onecopy.protocol.messages import BuildModel
from onecopy.protocol.values import encode
from onecopy.workers import aoti_package
from onecopy.workers.opaque import opaque_parts
from onecopy.workers.sources import build

pytestmark = pytest.mark.timeout(400)  # the first test waits for the compiler

CONSTANTS_BYTES = 4 * (100 * WIDTH + 5 * WIDTH * WIDTH + 3 * WIDTH)
LIBRARY_BYTES = 2 << 20
SMALL_BYTES = CONSTANTS_BYTES // 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All packages; compiled by another process, for the compiler keeps processes and files of its own."""
    path = tmp_path_factory.mktemp("compiled")
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(path / "cache"), "TMPDIR": str(path)}
    subprocess.run([sys.executable, compiled_models.__file__, path], check=True, env=environment, timeout=300)
    shutil.rmtree(path / "cache")
    rewritten(path / "files.pt2", path / "nowhere.pt2", without_weights)
    return path


def without_weights(name, content):
    """What torch packages if the constants are to be nowhere."""
    return None if "/weights" in name else content


@pytest.fixture(scope="module")
def expected(folder):
    """What torch itself computes with a package; another process, for its library never goes."""
    program = (
        "import sys, torch, torch._inductor\n"
        "from compiled_models import SCALE, X\n"
        "model = torch._inductor.aoti_load_package(sys.argv[1])\n"
        "torch.save(model(X, scale=SCALE)['scores'], sys.argv[2])\n"
    )
    command = [sys.executable, "-c", program, folder / "inside.pt2", folder / "expected.pt"]
    path = os.path.dirname(compiled_models.__file__)
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, timeout=60)
    return torch.load(folder / "expected.pt")


def built(path, **options):
    """Load as a loader does."""
    return build(BuildModel("m", "path", options, [str(path), encode([[], {}]).body], b"", []))


def constants_of(model):
    return model.__getstate__()[1]


def weights_of(pool):
    return next(one for one in pool.memory().weights if one.model == "net")


def workers_of(pool):
    return {one.pid: one.private_bytes for one in pool.memory().processes if one.role == "worker"}


# --- in a pool -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["inside", "behind", "blob", "files"])
def test_workers_share_the_constants_and_compute_what_torch_computes(folder, expected, name):
    with Pool({"scale": pool_models.Scale()}, workers=2, slots=2, threads=1) as pool:
        assert wait_until(lambda: len(workers_of(pool)) == 2)
        before = workers_of(pool)
        pool.load("net", Model(str(folder / f"{name}.pt2"), warm=True))
        assert wait_until(lambda: weights_of(pool).workers == 2 and weights_of(pool).private_bytes)
        futures = [pool.submit("net", X, scale=SCALE) for _ in range(16)]
        assert all(torch.equal(future.result()["scores"], expected) for future in futures)
        one = weights_of(pool)
        assert CONSTANTS_BYTES <= one.size_bytes < CONSTANTS_BYTES + LIBRARY_BYTES
        assert one.private_bytes < SMALL_BYTES
        assert max(workers_of(pool).values()) - max(before.values()) < CONSTANTS_BYTES // 2
        assert [note for note in pool.status().fallbacks + pool.status().notes if ".pt2" in note] == []


def test_workers_that_forget_a_package_are_replaced_and_its_memory_is_freed(folder):
    with Pool({"net": Model(str(folder / "inside.pt2"), warm=True)}, workers=2) as pool:
        pool.run("net", X, scale=SCALE)
        assert wait_until(lambda: weights_of(pool).workers == 2)
        before = workers_of(pool)
        pool.unload("net")
        assert pool.memory().weights_bytes == 0
        assert wait_until(lambda: len(now := workers_of(pool)) == 2 and not now.keys() & before.keys())


def test_operators_of_the_user_are_called_and_a_buffer_is_each_workers_own(folder):
    with Pool({"net": Model("compiled_models:package", args=(str(folder / "counter.pt2"),))}, workers=1) as pool:
        for count in (1.0, 2.0):
            assert torch.equal(pool.run("net", torch.ones(4)), torch.full((4,), 2 + count))


def test_what_is_folded_when_it_first_runs_is_told(folder):
    with Pool({"net": Model(str(folder / "folded.pt2"))}, workers=1) as pool:
        pool.run("net", X, scale=SCALE)
        status = pool.status()
        (note,) = [one for one in status.fallbacks if "folded.pt2" in one]
        assert note in status.notes
    assert "each worker computes" in note
    assert "compiled with use_runtime_constant_folding" in note


# --- in this process -----------------------------------------------------------------------------------------


def test_a_library_travels_without_its_constants_and_keeps_none_of_its_own(folder, one_thread):
    model = built(folder / "inside.pt2").model
    library, constants = model.__getstate__()
    assert library.size_bytes > CONSTANTS_BYTES
    assert sum(len(content) for _, content in library.segments) < LIBRARY_BYTES
    assert sum(tensor.nbytes for tensor in constants.values()) == CONSTANTS_BYTES
    assert constants["mixing"].stride() == (1, WIDTH)
    assert opaque_parts(model) == {}
    thawed = roundtrip(model)
    assert torch.equal(thawed(X, scale=SCALE)["scores"], model(X, scale=SCALE)["scores"])
    for tensor in constants_of(thawed).values():
        tensor.zero_()
    assert not thawed(X, scale=SCALE)["scores"].any()
    assert model(X, scale=SCALE)["scores"].any()


@pytest.mark.parametrize("name", ["nowhere", "inside"])
def test_weights_from_elsewhere_take_the_place_of_its_own(folder, tmp_path, expected, name, one_thread):
    state = torch.load(folder / "state.pt")
    found = built(folder / f"{name}.pt2", weights=str(folder / "state.pt"))
    assert torch.equal(found.model(X, scale=SCALE)["scores"], expected)
    assert found.notes == []
    state["up.bias"] = state["up.bias"] + 1
    module = compiled_models.net()
    module.load_state_dict(state)
    torch.save(state, tmp_path / "tuned.pt")
    tuned = built(folder / f"{name}.pt2", weights=str(tmp_path / "tuned.pt")).model
    torch.testing.assert_close(tuned(X, scale=SCALE), module(X, scale=SCALE))


def test_weights_that_lack_some_leave_the_packages_own_and_that_is_told(folder, tmp_path):
    torch.save({"up.bias": torch.zeros(2 * WIDTH)}, tmp_path / "bias.pt")
    found = built(folder / "inside.pt2", weights=str(tmp_path / "bias.pt"))
    assert not constants_of(found.model)["up.bias"].any()
    (note,) = found.notes
    assert "5 constants are those of the package, such as down.bias" in note


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"up.bias": torch.zeros(3)}, r"up\.bias is float32 \[3\], compiled was float32 \[2000\]"),
        ({"up.bias": torch.zeros(2 * WIDTH).half()}, r"up\.bias is float16 \[2000\], compiled was float32"),
        ({}, r"'down\.bias' is in no weights that were given \(6 of 6 are missing\); give them as weights="),
    ],
)
def test_weights_that_do_not_fit_or_are_missing_are_named(folder, tmp_path, changed, said):
    torch.save(changed, tmp_path / "state.pt")
    with pytest.raises(LoadFailed, match=said):
        built(folder / "nowhere.pt2", weights=str(tmp_path / "state.pt"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"AOTI_DEVICE_KEY": "cuda"}, "compiled for the device 'cuda', and workers run on the CPU"),
        ({"AOTI_MACHINE": "vax"}, "compiled for vax, and this machine is"),
        ({"AOTI_CPU_ISA": "AMX_TILE NOTHING"}, "compiled for AMX_TILE, which this processor lacks"),
    ],
)
def test_what_was_compiled_for_another_machine_is_refused_before_it_runs(
    folder, tmp_path, monkeypatch, change, said
):
    def changed(name, content):
        return json.dumps(json.loads(content) | change).encode() if name.endswith("_metadata.json") else content

    monkeypatch.setattr(aoti_package, "_processor_flags", lambda: {"avx2"})
    with pytest.raises(LoadFailed, match=f"{said}.*compile it again on a machine like this"):
        built(rewritten(folder / "counter.pt2", tmp_path / "other.pt2", changed))


def test_packages_of_another_kind_say_what_to_do(folder, tmp_path):
    def without_library(name, content):
        return None if name.endswith(".so") else content

    with pytest.raises(LoadFailed, match="holds 0 compiled libraries and must hold one"):
        built(rewritten(folder / "counter.pt2", tmp_path / "sources.pt2", without_library))

    def broken(name, content):
        return b"no library" if name.endswith(".so") else content

    with pytest.raises(LoadFailed, match=r"torch cannot load the compiled library.*Compile it with the torch"):
        built(rewritten(folder / "nowhere.pt2", tmp_path / "broken.pt2", broken))
    add = {
        "custom_objs_config.json": "holds objects of C\\+\\+ classes",
        "../second/x.so": "holds 2 compiled models",
    }
    for name, said in add.items():
        path = shutil.copy(folder / "counter.pt2", tmp_path / "more.pt2")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(os.path.normpath(f"counter/data/aotinductor/model/{name}"), b"{}")
        with pytest.raises(LoadFailed, match=said):
            built(path)
    with pytest.raises(LoadFailed, match="dtypes of an exported program are fixed"):
        built(folder / "inside.pt2", dtype="float16")


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rewritten(source, target, change):
    """Copy a package, each file as a function of its name and content says; None leaves it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target
