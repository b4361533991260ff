"""Weights that lie outside of storages are found, whatever they hide in, and quickly."""

import io
import os
import subprocess
import sys
import time
import types

import pytest
import torch
from onecopy.protocol.mapping import map_region, storage_in
from onecopy.workers.heap import anonymous_bytes
from onecopy.workers.opaque import opaque_parts
from torch import nn

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*(TypedStorage|torch.jit|quantized tensor creation).*:UserWarning"),
]


def packed(count=1):
    plain = nn.Sequential(*[nn.Linear(32, 32) for _ in range(count)]).eval()
    return torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)


def convolution():
    from torch.ao import quantization

    model = nn.Sequential(quantization.QuantStub(), nn.Conv2d(3, 8, 3), quantization.DeQuantStub()).eval()
    model.qconfig = quantization.get_default_qconfig("x86")
    prepared = quantization.prepare(model)
    prepared(torch.randn(1, 3, 8, 8))
    return quantization.convert(prepared)


def embedding():
    from torch.ao import quantization

    model = nn.Sequential(nn.Embedding(10, 8)).eval()
    model.qconfig = quantization.float_qparams_weight_only_qconfig
    return quantization.convert(quantization.prepare(model))


def mkldnn_attribute():
    model = nn.Module()
    model.kernels = [torch.randn(8, 8).to_mkldnn()]
    return model


def traced():
    return torch.jit.trace(nn.Sequential(nn.Linear(32, 32), nn.ReLU()).eval(), torch.ones(1, 32))


def saved(script):
    stream = io.BytesIO()
    torch.jit.save(script, stream)
    stream.seek(0)
    return torch.jit.load(stream)


class Pipeline:
    """What is no module but has one."""

    def __init__(self, model):
        self.stages = {"encode": [model], 2: "text"}
        self.itself = self


@pytest.mark.parametrize(
    ("make", "path", "said"),
    [
        (packed, "0._packed_params._packed_params", "quantized.LinearPackedParamsBase"),
        (convolution, "1._packed_params", "quantized.Conv2dPackedParamsBase"),
        (embedding, "0._packed_params._packed_weight", "quantized.EmbeddingPackedParamsBase"),
        (mkldnn_attribute, "kernels.0", "256 bytes in the layout of oneDNN"),
        (lambda: torch.jit.script(packed()), "0._packed_params._packed_params", "LinearPackedParamsBase"),
        (lambda: saved(torch.jit.script(packed())), "0._packed_params._packed_params", "LinearPackedParamsBase"),
        (lambda: torch.jit.freeze(traced()), "(the model itself)", "program: 4,224 bytes of tensors"),
        (lambda: torch.jit.freeze(torch.jit.script(packed())), "(the model itself)", "LinearPackedParamsBase"),
        (lambda: Pipeline(packed()), "stages.encode.0.0._packed_params._packed_params", "LinearPackedParams"),
    ],
)
def test_a_part_that_packs_its_weights_is_named(make, path, said):
    parts = opaque_parts(make())
    assert list(parts) == [path]
    assert said in parts[path]


def test_modules_converted_for_onednn_are_named():
    from torch.utils.mkldnn import to_mkldnn

    parts = opaque_parts(nn.ModuleDict({"layer": to_mkldnn(nn.Linear(4, 4))}))
    assert set(parts) == {"layer.weight", "layer.bias"}
    assert "64 bytes in the layout of oneDNN" in parts["layer.weight"]


def test_each_of_several_is_named_although_torch_makes_their_objects_anew_when_asked():
    assert len(opaque_parts(torch.jit.script(packed(20)))) == 20


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.TransformerEncoderLayer(16, 2),
        traced,
        lambda: {"table": torch.eye(3).to_sparse(), "meta": torch.empty(3, device="meta"), "none": None},
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        lambda: len,
        lambda: 5,
    ],
)
def test_storages_are_not_named(make):
    assert opaque_parts(make()) == {}


class Hostile:
    __slots__ = ()

    def __getattribute__(self, name):
        raise RuntimeError(name)


class HostileDict(dict):
    def items(self):
        raise RuntimeError("items")


def test_what_cannot_be_looked_at_is_passed_over():
    model = nn.Module()
    vars(model).update(hostile=Hostile(), listed=HostileDict(inner=packed()), buffers=3)
    model._buffers["odd"] = Hostile()
    model.last = packed()
    assert set(opaque_parts(model)) == {
        "listed.inner.0._packed_params._packed_params",
        "last.0._packed_params._packed_params",
    }
    assert opaque_parts(Hostile()) == {}


def test_a_model_of_a_thousand_modules_takes_milliseconds_and_one_with_a_vocabulary_does_not_take_long():
    model = nn.Sequential(*[nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.ReLU()) for _ in range(250)])
    model.vocabulary = {str(number): [number, [number]] for number in range(100_000)}
    model.merges = [[(str(left), str(right)) for left in range(300)] for right in range(300)]
    model.last = packed()
    took_s = []
    for _ in range(5):
        started_at = time.perf_counter()
        parts = opaque_parts(model)
        took_s.append(time.perf_counter() - started_at)
    assert list(parts) == ["last.0._packed_params._packed_params"]
    assert min(took_s) < 0.1  # some 20 ms; machines may be slow


def test_nothing_is_imported():
    code = "from onecopy.workers.opaque import opaque_parts; print(opaque_parts({}), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["{}", "False"]


def test_anonymous_bytes_grow_by_what_is_written_and_not_by_what_is_shared():
    size_bytes = 64 << 20
    fd = os.memfd_create("shared")
    os.ftruncate(fd, size_bytes)
    mapping = map_region(fd, size_bytes)
    os.close(fd)
    words = torch.empty(0, dtype=torch.int64).set_(storage_in(mapping, 0, size_bytes))
    start_bytes = anonymous_bytes()
    assert int(words.sum()) == 0
    assert anonymous_bytes() - start_bytes < size_bytes // 8
    words[: words.numel() // 2] = 1
    assert size_bytes // 4 < anonymous_bytes() - start_bytes < size_bytes * 3 // 4


def test_a_compiled_package_is_named():
    """Without compiling one, which takes a minute: by the class that loads them all."""
    from torch.export.pt2_archive._package import AOTICompiledModel

    holder = types.SimpleNamespace(model=AOTICompiledModel.__new__(AOTICompiledModel))
    assert opaque_parts(holder) == {"model": "a compiled package, which loads its weights for itself"}
