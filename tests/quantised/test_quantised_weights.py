"""Quantised weights are storages like any other: one copy, and the same bits computed from it."""

import contextlib

import pytest
import quantised_models
import torch
from freezing import mapped, roundtrip, shared
from leftovers import wait_until
from onecopy.pool import Pool
from onecopy.protocol.frozen import freeze, thaw
from onecopy.workers.opaque import opaque_parts
from quantised_models import INPUT, INT8_BYTES, LAYERS, PACKED, SHARED, Measured, run_plain
from torch import nn

#: Scales, zero points and biases, and tables of what the codes stand for.
MOST_BESIDES_WEIGHTS = 0.25

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions.*:UserWarning"),
]


@contextlib.contextmanager
def single_threaded():
    """As each worker of the pool is: sums of several threads have other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(params=SHARED)
def quantised(request):
    make, weight_bytes = SHARED[request.param]
    return make(), int(INT8_BYTES * weight_bytes)


def test_the_memory_of_quantised_weights_is_shared_and_computes_the_same(quantised):
    model, weights_bytes = quantised
    expected = run_plain(model)
    frozen = freeze(model)
    assert weights_bytes <= frozen.manifest.storage_bytes <= weights_bytes * (1 + MOST_BESIDES_WEIGHTS)
    assert len(frozen.skeleton) < 20_000
    with shared(frozen) as regions:
        mappings = mapped(regions)
    thawed = thaw(frozen.skeleton, frozen.manifest, mappings)
    assert all(quantised_models.is_in_region(tensor) for _, tensor in quantised_models.memory_of(thawed))
    assert torch.equal(run_plain(thawed), expected)
    assert opaque_parts(thawed) == {}
    frozen.repoint(mappings)
    assert torch.equal(run_plain(model), expected)


@pytest.mark.parametrize("kind", PACKED)
def test_packed_weights_compute_the_same_and_are_named(kind):
    model = PACKED[kind]()
    thawed = roundtrip(model)
    assert torch.equal(run_plain(thawed), run_plain(model))
    parts = opaque_parts(thawed)
    assert set(parts) == {f"{index}._packed_params._packed_params" for index in range(len(model))}
    assert "LinearPackedParams" in parts["0._packed_params._packed_params"]


@pytest.mark.parametrize("kind", PACKED)
def test_a_pool_names_what_is_private_to_each_worker(answers, kind):
    weights = answers[kind.replace(" ", "_")]["opaque"]
    assert len(weights.opaque) == LAYERS
    assert "_packed_params" in weights.opaque_parts
    assert f"and {LAYERS - 3} more" in str(weights)


def test_a_packed_lstm_computes_the_same():
    plain = nn.ModuleDict({"lstm": nn.LSTM(16, 16, 2)}).eval()
    model = torch.ao.quantization.quantize_dynamic(plain, {nn.LSTM}, dtype=torch.qint8)
    x = torch.randn(3, 2, 16)
    thawed = roundtrip(model)
    with torch.inference_mode():
        assert torch.equal(thawed["lstm"](x)[0], model["lstm"](x)[0])
    assert set(opaque_parts(thawed)) == {f"lstm._all_weight_values.{layer}.param" for layer in (0, 1)}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What a pool of two workers says of each kind: results by worker, and what its weights take where."""
    makers = {name: make for name, (make, _) in SHARED.items()} | PACKED
    models = {name.replace(" ", "_"): make() for name, make in makers.items()}
    with single_threaded():
        said = {name: {"expected": run_plain(model)} for name, model in models.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("quantised")))
        pool = Pool({name: Measured(model) for name, model in models.items()}, workers=2, slots=2, threads=1)
        with pool:
            for name, answer in said.items():
                answer["results"] = results = {}
                answer["reports"] = reports = []
                assert wait_until(lambda: _ask(pool, name, results, reports) == 2)  # noqa: B023
            for info in pool.models():
                said[info.name]["weights_bytes"] = info.weights_bytes
            for weights in pool.memory().weights:
                said[weights.model]["opaque"] = weights
    return said


def _ask(pool, name, results, reports):
    """Let both workers run a model, if both are free; return how many have by now."""
    futures = [pool.submit(name, INPUT) for _ in range(6)]
    results.update(future.result() for future in futures)
    reports.append(pool.model(name, method="report")())
    return len(results)


@pytest.mark.parametrize("kind", [*SHARED, *PACKED])
def test_two_workers_answer_as_the_plain_model_does(answers, kind):
    answer = answers[kind.replace(" ", "_")]
    for result in answer["results"].values():
        assert torch.equal(result, answer["expected"])


@pytest.mark.parametrize("kind", SHARED)
def test_workers_hold_nothing_of_quantised_weights_for_themselves(answers, kind):
    answer, weights_bytes = answers[kind.replace(" ", "_")], int(INT8_BYTES * SHARED[kind][1])
    assert weights_bytes <= answer["weights_bytes"] <= weights_bytes * (1 + MOST_BESIDES_WEIGHTS)
    for report in answer["reports"]:
        assert report["private"] == []
        assert report["opaque"] == {}
        assert report["grown_bytes"] < weights_bytes / 4


@pytest.mark.parametrize("kind", PACKED)
def test_what_workers_pack_for_themselves_is_named_there(answers, kind):
    for report in answers[kind.replace(" ", "_")]["reports"]:
        assert len(report["opaque"]) == quantised_models.LAYERS
        assert report["grown_bytes"] > INT8_BYTES / 2
