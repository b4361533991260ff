"""Modules that get their weights by reference compute what they do with weights that were copied into them."""

import copy
import json
import re
import subprocess
import sys

import pytest
import torch
import weight_models
from onecopy.protocol.errors import LoadFailed
from onecopy.workers.by_reference import build_without_weights, load
from onecopy.workers.weight_files import open_weights
from safetensors.torch import save_file, save_model
from torch import nn
from weight_models import file_of


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def normed():
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, dtype=torch.float64), nn.Dropout(0.5))


def parametrized():
    return nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))


def spectral():
    return nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))


def lazy():
    return nn.LazyLinear(8)


def bert():
    import transformers

    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    return transformers.BertForMaskedLM(config)


def gpt2():
    import transformers

    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config)


FLOATS, NUMBERS = torch.randn(3, 8), torch.tensor([[1, 2, 3]])


def output_of(module, x):
    with torch.no_grad():
        found = module.eval()(x)
    if hasattr(found, "logits"):
        return found.logits
    return found[0] if isinstance(found, tuple) else found


def saved(module, path):
    """Save the weights of a module, to a safetensors file without the duplicates of what is tied."""
    if path.suffix == ".pt":
        torch.save(module.state_dict(), path)
    else:
        save_model(module, str(path))
    return str(path)


@pytest.fixture(params=["weights.safetensors", "weights.pt"])
def path(request, tmp_path):
    return tmp_path / request.param


@pytest.mark.parametrize(
    ("factory", "x"),
    [
        (lambda: nn.Linear(8, 8), FLOATS), (normed, FLOATS.double()), (encoder, FLOATS[None]),
        (lambda: nn.LSTM(8, 8), FLOATS), (parametrized, FLOATS), (spectral, FLOATS), (lazy, FLOATS),
        (weight_models.Tied, NUMBERS), (bert, NUMBERS), (gpt2, NUMBERS),
    ],
    ids=["linear", "norm", "encoder", "lstm", "weight norm", "spectral norm", "lazy", "tied", "bert", "gpt2"],
)  # fmt: skip
def test_results_are_those_of_weights_that_were_copied(path, factory, x):
    original = factory()
    if factory is normed:
        original[0].double()
    if factory is lazy:
        original(x)  # which makes its parameters
    with torch.no_grad():
        for buffer in original.buffers():
            buffer.add_(1) if buffer.is_floating_point() else buffer
    opened = open_weights(saved(original, path))
    module, notes = load(factory, (), {}, opened.state)
    assert notes == []
    assert all(file_of(parameter) == str(path) for parameter in module.parameters())
    assert module.training == factory().training
    assert {name: p.requires_grad for name, p in module.named_parameters()} == {
        name: p.requires_grad for name, p in original.named_parameters()
    }
    made_anew = {"made"} if factory is weight_models.Tied else set()
    if not made_anew:
        assert torch.equal(output_of(module, x), output_of(original, x))
    else:
        plain = factory()
        plain.load_state_dict(original.state_dict())
        assert torch.equal(output_of(module, x), output_of(plain, x))


def test_ties_aliases_and_notes_on_parameters_are_kept(path):
    opened = open_weights(saved(weight_models.Tied(), path))
    module, _ = load(weight_models.Tied, (), {}, opened.state)
    assert module.head.weight is module.embedding.weight
    assert module.again is module.gain
    assert module.gain.note == "kept"
    assert not module.gain.requires_grad
    assert module.same_offset is module.offset
    assert module.first_half.untyped_storage().data_ptr() == module.table.untyped_storage().data_ptr()
    assert module.made.tolist() == [7.0, 7.0]


def test_only_parameters_lose_their_memory_while_a_module_is_built():
    module = build_without_weights(weight_models.Tied, (), {})
    assert all(parameter.is_meta for parameter in module.parameters())
    assert not any(buffer.is_meta for buffer in module.buffers())
    assert module.head.weight is module.embedding.weight
    assert not next(nn.Linear(1, 1).parameters()).is_meta  # afterwards modules are built as ever


def test_the_file_decides_on_dtypes(path):
    original = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).to(torch.bfloat16)
    module, _ = load(
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
        (),
        {},
        open_weights(saved(original, path)).state,
    )
    assert {name: tensor.dtype for name, tensor in module.state_dict().items()} == {
        name: tensor.dtype for name, tensor in original.state_dict().items()
    }


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (weight_models.Hidden, r"keeps a tensor of shape \[4, 4\] that no module has registered"),
        (weight_models.Computing, r"doubled has no values"),
        (weight_models.Asking, r"factory raises RuntimeError: .*meta"),
        (weight_models.Copying, r"weight has no values"),
        (weight_models.OldStyle, r"load_state_dict raises TypeError: .*assign"),
        (weight_models.OwnKind, r"weight is of a kind of its own, Own"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is a no-op.*:UserWarning")
def test_what_needs_values_is_built_as_ever_and_says_so(path, kind, said):
    original = kind()
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.add_(1)
    module, notes = load(kind, (), {}, open_weights(saved(original, path)).state)
    (note,) = notes
    assert note.startswith("the weights were copied into the model, not taken by reference: ")
    assert re.search(said, note)
    x = torch.randn(4, 4)
    plain = kind()
    plain.load_state_dict(original.state_dict())
    assert torch.equal(module(x), plain(x))
    assert all(file_of(parameter) == "" for parameter in module.parameters())


def test_renamed_weights_go_where_the_module_puts_them(tmp_path):
    original = nn.Linear(4, 4)
    save_file(
        {f"net.{name}": tensor for name, tensor in original.state_dict().items()}, tmp_path / "w.safetensors"
    )
    module, notes = load(weight_models.OldStyle, (), {}, open_weights(str(tmp_path / "w.safetensors")).state)
    assert torch.equal(module.weight, original.weight)
    assert len(notes) == 1


def test_what_a_module_makes_itself_is_not_loaded_and_noted(tmp_path):
    state = {name: tensor.clone() for name, tensor in weight_models.Tied().state_dict().items()}
    save_file({**state, "made": torch.zeros(2)}, tmp_path / "w.safetensors")
    module, notes = load(weight_models.Tied, (), {}, open_weights(str(tmp_path / "w.safetensors")).state)
    assert module.made.tolist() == [7.0, 7.0]
    assert notes == ["not loaded, because the model makes them itself: made"]


def test_of_tied_weights_that_differ_in_the_file_the_last_one_wins_as_in_torch(tmp_path):
    state = {name: tensor.clone() for name, tensor in weight_models.Tied().state_dict().items()}
    state["head.weight"] += 1
    save_file(state, tmp_path / "w.safetensors")
    plain = weight_models.Tied()
    plain.load_state_dict(state)
    module, _ = load(weight_models.Tied, (), {}, open_weights(str(tmp_path / "w.safetensors")).state)
    assert torch.equal(module.embedding.weight, plain.embedding.weight)
    assert module.head.weight is module.embedding.weight


@pytest.mark.parametrize("kind", [lambda: nn.Linear(4, 4), weight_models.OldStyle], ids=["by reference", "copied"])
def test_weights_that_do_not_fit_are_named(tmp_path, kind):
    state = {"weight": torch.ones(4, 5), **{f"more.{number}": torch.ones(1) for number in range(12)}}
    save_file(state, tmp_path / "w.safetensors")
    said = (
        r"do not fit \w+: 1 missing in the file: bias; 12 unknown to the model: more\.0, .*more\.9 and 2 more; "
        r"1 of another shape: weight is \[4, 5\] in the file and \[4, 4\] in the model"
    )
    with pytest.raises(LoadFailed, match=said):
        load(kind, (), {}, dict(sorted(open_weights(str(tmp_path / "w.safetensors")).state.items(), key=_number)))


def _number(item):
    name = item[0].rpartition(".")[2]
    return int(name) if name.isdigit() else -1


def test_a_factory_that_builds_no_module_is_refused_by_the_name_of_what_it_builds():
    with pytest.raises(LoadFailed, match=r"builds a weight_models.Pipeline; let it load its weights itself, or"):
        load(weight_models.Pipeline, (), {}, {})


def test_a_factory_that_fails_fails_with_its_own_error():
    with pytest.raises(TypeError, match="unexpected keyword"):
        load(nn.Linear, (4, 4), {"wrong": 1}, {})


def test_a_factory_that_leaves_parameters_without_memory_is_told_which():
    with pytest.raises(LoadFailed, match=r"leaves weight on the meta device"):
        load(
            lambda: weight_models.OldStyle().to("meta"),
            (),
            {},
            {"weight": torch.ones(4, 4), "bias": torch.ones(4)},
        )


def test_metadata_of_a_state_dict_is_used_and_not_changed(path):
    opened = open_weights(saved(nn.BatchNorm1d(4), path))
    before = copy.deepcopy(getattr(opened.state, "_metadata", None))
    load(lambda: nn.BatchNorm1d(4), (), {}, opened.state)
    assert getattr(opened.state, "_metadata", None) == before


def test_loading_by_reference_takes_no_memory(tmp_path):
    run = [sys.executable, weight_models.__file__, str(tmp_path / "large.safetensors")]
    done = subprocess.run(run, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size_bytes, by_reference, copied = json.loads(done.stdout)
    assert size_bytes > 200e6
    assert by_reference["private"] < 8e6
    assert by_reference["peak"] < 8e6
    assert copied["peak"] > size_bytes
