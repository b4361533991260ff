"""Plans against reality: what is told before anything is loaded is what a pool takes that has loaded it."""

from __future__ import annotations

import json
import os
import re

import cuda_driver
import planned_models
import pytest
from leftovers import wait_until
from onecopy.pool import ConfigError, Model, Pool, plan
from onecopy.pool.planning.views import PlannedModel
from planned_models import KINDS, Layers, wide, write_weights
from standalone import CLI, onecopy, standalone

MIB = 1 << 20
GIVEN = {"workers": 2, "slots": 1, "threads": 1}


def is_close(found: float | None, expected: float, part: float) -> bool:
    return found is not None and abs(found - expected) <= part * expected


def test_a_plan_is_what_the_pool_then_takes(tmp_path):
    models: dict[str, Model] = {}
    for name, (kind, example) in KINDS.items():
        weights = write_weights(kind(), tmp_path / f"{name}.safetensors")
        # Each has slots of its own, so that it is seen what its runs take.
        models[name] = Model(f"planned_models:{kind.__name__}", weights=weights, example=example, workspace=name)
    told = plan(models, **GIVEN)
    assert told.fits
    assert {one.name: one.need_from for one in told.models} == {
        name: "a run" if name == "choosing" else "shapes" for name in KINDS
    }
    with Pool(models, **GIVEN) as pool:
        for name, (_, example) in KINDS.items():
            given = example if isinstance(example, tuple) else (example,)
            futures = [pool.submit(name, *given) for _ in range(6)]
            assert [one.exception() for one in futures] == [None] * 6
        memory, rings = pool.memory(), pool.status().rings
        [device] = told.devices
        assert {one.name: one.weights_bytes for one in told.models} == {
            one.model: one.size_bytes for one in memory.weights
        }
        assert device.weights_bytes == memory.weights_bytes
        # What workers tell is rounded up.
        needs = {name: need for ring in rings for name, need in ring.needs_bytes.items()}
        for one in told.models:
            assert -MIB <= (one.need_bytes or 0) - needs[one.name] <= 0.1 * needs[one.name], (one, needs)
        # How many pages of libraries are this pool's share depends on what else runs on the machine.
        files_bytes = sum(one.pss_bytes - one.private_bytes for one in memory.processes)
        assert is_close(device.needed_bytes, memory.total_bytes - files_bytes, 0.05), (told, memory)
        assert is_close(device.needed_bytes, memory.devices[0].used_bytes, 0.05), (told, memory)
        pool.run("layers", 4096)
        assert wait_until(
            lambda: max(ring.needs_bytes.get("layers", 0) for ring in pool.status().rings) > 16 * MIB
        )
        [again] = pool.plan({"layers": models["layers"]}).models
    # What earlier runs took counts where it is more.
    assert again.need_from == "earlier runs"
    assert is_close(again.need_bytes, 24 * MIB, 0.1)
    assert (again.actual_weights_bytes, again.actual_need_bytes) == (again.weights_bytes, again.need_bytes)


@pytest.fixture(scope="module")
def models_of_all_sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    path = write_weights(wide(), tmp_path_factory.mktemp("weights") / "wide.safetensors")
    return {
        "file": Model("planned_models:Wide", weights=path),
        "factory": wide,
        "object": Model(wide(), example=512),
        "alone": Model(wide, sharing="private"),
        "mapped": Model("planned_models:Wide", weights=path, residency="file"),
        "choosing": Model(planned_models.Choosing(), example=256),
        "broken": Model(planned_models.Broken(), example=1),
        "dies": planned_models.dies,
    }


def test_weights_of_all_sources_are_told_apart_without_being_loaded(models_of_all_sources):
    module = models_of_all_sources["object"].source
    before = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    plan_of_all = plan(models_of_all_sources, devices={"cpu:0": {"budget": "4GB"}}, **GIVEN)
    assert plan_of_all.notes == []
    told = {one.name: one for one in plan_of_all.models}
    check_sizes(told)
    check_runs(told)
    assert "signal 6" in told["dies"].error
    assert not plan_of_all.fits
    # The one copy, the one that is not shared, and what chooses or is broken; a file takes no memory.
    others = [told["choosing"].weights_bytes, told["broken"].weights_bytes]
    assert plan_of_all.devices[0].weights_bytes == 2 * 64 * MIB + sum(others)
    assert {name: tensor.data_ptr() for name, tensor in module.state_dict().items()} == before


def check_sizes(told: dict[str, PlannedModel]) -> None:
    assert {told[name].weights_bytes for name in ("file", "factory", "object", "alone")} == {64 * MIB}
    assert told["object"].shared_with == {"file": 64 * MIB, "factory": 64 * MIB}
    assert told["object"].own_bytes == 0
    assert told["alone"].own_bytes == 64 * MIB
    assert told["mapped"].file_bytes == told["mapped"].weights_bytes >= 64 * MIB
    # What a factory builds is in its loader's memory; what is in a file, or in the app, is not.
    assert told["factory"].loading_bytes > 50 * MIB > 2 * told["file"].loading_bytes
    assert told["object"].loading_bytes == 0


def check_runs(told: dict[str, PlannedModel]) -> None:
    sources = {name: one.need_from for name, one in told.items() if one.name in ("object", "choosing", "broken")}
    assert sources == {"object": "shapes", "choosing": "a run", "broken": "a failed run"}
    assert told["file"].need_from == "no example"
    assert is_close(told["object"].need_bytes, 2 * 8 * MIB, 0.01)  # what goes in, and what comes out
    assert told["object"].flops == 2 * 512 * 4096 * 4096
    assert told["object"].is_compute_bound
    assert (told["choosing"].need_bytes or 0) > 8 * MIB
    assert "DataDependent" in told["choosing"].notes[0]
    assert told["broken"].need_bytes is None
    assert told["broken"].notes == [
        "its example could not be run: broken: ValueError: there is nothing to be done"
    ]


TWO = {name: {"budget": "800MB", "workers": 1} for name in ("cpu:0", "cpu:1")}


def test_a_pool_does_as_planned():
    computing = {name: Model(Layers, args=(4,), example=4096, sharing="private") for name in ("a", "b")}
    models = computing | {"wide": Model(wide, example=1), "twice": Model(Layers, replicas=2)}
    told = plan(models, devices=TWO)
    placed = told.placed(models)
    assert list(placed) == [*(name for name in told.order if name != "twice"), "twice"]
    assert placed["twice"] is models["twice"]
    assert placed["a"].devices != placed["b"].devices, "both compute"
    with Pool(placed, devices=TWO) as pool:
        for name, given in {"a": 1, "b": 1, "wide": 1}.items():
            pool.run(name, given)
        found = {one.name: one.device for one in pool.models() if one.name != "twice"}
    assert found == {one.name: one.device for one in told.models if one.name != "twice"}


def test_what_could_not_be_planned_stays_as_it_is():
    models = {"gone": Model("planned_models:Nothing"), "layers": Model(Layers, device="cpu")}
    told = plan(models, **GIVEN)
    placed = told.placed({**models, "more": Layers()})
    assert list(placed) == ["layers", "gone", "more"]
    assert placed["gone"] is models["gone"]


PLANNED = """
[devices."cpu:0"]
budget = "800MB"
workers = 1
[devices."cpu:1"]
budget = "800MB"
workers = 1
[models.a]
source = "planned_models:Layers"
example = 4096
sharing = "private"
[models.b]
source = "planned_models:Layers"
example = 4096
sharing = "private"
"""


def test_the_command_serves_as_planned(tmp_path):
    command = [*CLI, "serve"]
    with (
        standalone(tmp_path, PLANNED, "--planned", command=command) as served,
        Pool.connect(served.endpoint) as pool,
    ):
        assert {one.device for one in pool.models()} == {"cpu:0", "cpu:1"}
        assert "in this order: " in served.log.read_text()


def test_as_many_workers_are_planned_as_there_may_be():
    assert plan(Layers(1), workers=(1, 3), slots=1).workers == 3


def test_wrong_settings_are_refused_before_anything_runs():
    with pytest.raises(ConfigError, match="workers must be a whole number, two"):
        plan(Layers(), workers="many")
    with pytest.raises(ConfigError, match=r"devices.card must be a mapping with a budget"):
        plan(Layers(), devices={"card": {}})
    with pytest.raises(ConfigError, match=r"a key of devices.card must be one of 'budget', 'reserve'"):
        plan(Layers(), devices={"card": {"budget": 1, "size": 1}})
    with pytest.raises(ConfigError, match=r"a device in only\['model'\] must be one of 'cpu', not 'cuda:0'"):
        plan(Layers(), only={"model": ["cuda:0"]})


TOML = """
workers = 1
[models.words]
source = "planned_models:Words"
example = [[1, 2, 3, 4]]
[models.layers]
source = "planned_models:Layers"
weights = "{weights}"
[devices.cpu]
budget = "{budget}"
"""


def test_the_command_tells_of_a_file_and_beside_it_of_the_pool_that_serves_it(tmp_path):
    path = write_weights(Layers(), tmp_path / "layers.safetensors")
    toml = TOML.format(weights=os.path.basename(path), budget="2GB")
    with standalone(tmp_path, toml):
        assert onecopy("run", "words", "--arg", "[[1, 2, 3, 4]]").returncode == 0
        done = onecopy("plan", tmp_path / "pool.toml", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["fits"]
    [words, layers] = told["models"]
    assert words["need_from"] == "shapes"
    assert words["actual_weights_bytes"] == words["weights_bytes"]
    assert layers["actual_weights_bytes"] is None
    assert told["devices"][0]["weights_bytes"] == words["weights_bytes"] + layers["weights_bytes"]


def test_the_command_fails_if_it_does_not_fit_or_a_model_cannot_be_built(tmp_path):
    config = tmp_path / "pool.toml"
    config.write_text(TOML.format(weights="nowhere.safetensors", budget="100MB"))
    done = onecopy("plan", config)
    assert done.returncode == 1
    assert re.search(r"words +cpu +5\.\d MB", done.stdout)
    assert "bytes too many" in done.stdout
    assert "| limit 100.0 MB" in done.stdout
    assert re.search(r"layers: .*nowhere.safetensors: no such file or folder", done.stdout)
    config.write_text("workers = 0")
    assert onecopy("plan", config).returncode == 2


def test_a_gpu_is_planned_for_where_it_is_and_by_its_budget_where_it_is_not(tmp_path):
    models = {"layers": Model(Layers, example=4)}
    told = plan(models, **GIVEN, devices={"cuda:5": {"budget": "1GiB", "reserve": 0}})
    assert [(one.name, one.total_bytes) for one in told.devices] == [("cuda:5", 1 << 30)]
    assert any("CUDA context" in note for note in told.notes)
    with pytest.raises(ConfigError, match=r"devices\.cuda:5 is not on this machine; give it a budget"):
        plan(models, **GIVEN, devices={"cuda:5": {}})
    with cuda_driver.for_processes(tmp_path):
        [device] = plan(models, **GIVEN, devices="cuda").devices
    assert device.name == "cuda:0"
    assert device.total_bytes > 1 << 32


def test_beside_a_processor_a_gpu_is_where_models_go_that_name_no_device():
    devices = {"cpu": {"budget": "2GiB"}, "cuda:5": {"budget": "1GiB", "reserve": 0}}
    models = {"anywhere": Model(Layers, example=4), "here": Model(wide, device="cpu")}
    told = plan(models, **GIVEN, devices=devices)
    assert {one.name: one.device for one in told.models} == {"anywhere": "cuda:5", "here": "cpu"}
