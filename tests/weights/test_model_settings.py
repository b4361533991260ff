"""What a `Model` may be: its kinds, its paths, what is refused, and the same from a pool.toml."""

import pathlib

import pytest
import torch
from onecopy.pool import ConfigError, Model
from onecopy.pool.settings import Settings
from onecopy.pool.toml import read_toml

MODULE = torch.nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (MODULE, "object"), (torch.nn.Linear, "factory"), ("torch.nn:Linear", "import"), ("./folder", "path"),
        (".", "path"), ("/models/bert", "path"), ("model.pt", "path"), ("model.pt2", "path"),
        ("model.pth", "path"),
        (pathlib.Path("model"), "path"), ("owner/model", "path"), ("~/model", "path"),
    ],
)  # fmt: skip
def test_a_source_tells_its_kind(source, kind):
    assert Model(source).kind == kind


def test_paths_are_made_absolute_and_names_of_the_hub_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Model("./folder/../model.pt").source == str(tmp_path / "model.pt")
    assert Model(pathlib.Path("model")).source == str(tmp_path / "model")
    assert Model("~/model").source == str(pathlib.Path.home() / "model")
    assert Model("owner/model").source == "owner/model"
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert Model("owner/model").source == str(tmp_path / "owner" / "model")
    assert Model("torch.nn:Linear", weights="w.safetensors").weights == str(tmp_path / "w.safetensors")


def test_options_are_plain_and_hold_what_was_asked_for():
    assert Model(MODULE).options == {
        "method": "__call__", "grad": False, "warm": False, "residency": "memory", "sharing": "shared",
        "workspace": "device", "on_overflow": "spill", "max_batch": 1, "max_wait_ms": 0.0, "collate": "",
        "split": "", "share": 1.0, "max_queue": 0, "min_workers": 0, "max_workers": 0,
        "adaptive": True,
    }  # fmt: skip
    options = Model(
        "torch.nn:Linear", weights="/w.pt", dtype="bfloat16", residency="file", sharing="private"
    ).options
    assert options.items() >= {
        "weights": "/w.pt", "dtype": "bfloat16", "residency": "file", "sharing": "private",
    }.items()  # fmt: skip
    options = Model(MODULE, max_batch=8, max_wait_ms=2, collate="join", split="cut", share=3, max_queue=9).options
    assert options.items() >= {
        "max_batch": 8, "max_wait_ms": 2.0, "collate": "join", "split": "cut", "share": 3.0, "max_queue": 9,
    }.items()  # fmt: skip
    assert {type(options[key]) for key in ("max_wait_ms", "share")} == {float}
    assert Model("/m", dtype=torch.bfloat16).options["dtype"] == "bfloat16"
    assert Model(MODULE, cuda_graph=True).options["cuda_graph"] is True
    assert Model("/m.pt", trusted=True).options["trusted"] is True
    assert Model("/m", task="text-classification").options["task"] == "text-classification"


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        (
            MODULE,
            {"weights": "w.pt"},
            r"and for \.pt2 programs; this source is an object",
        ),
        ("/m", {"weights": "w.pt"}, r"\.pt2 programs; this source is a path"),
        (MODULE, {"dtype": "float16"}, "dtype is for models that a loader builds"),
        (MODULE, {"residency": "file"}, "residency 'file' is for weights files"),
        (torch.nn.Linear, {"task": "fill-mask"}, "task is for paths"),
        ("torch.nn:Linear", {"trusted": True}, "trusted is for paths"),
        ("/m", {"args": [1]}, "args are for factories"),
        (MODULE, {"args": [1]}, "args and kwargs are for factories"),
        ("/m", {"dtype": "int8"}, "dtype must be one of 'bfloat16', 'float16', 'float32', not 'int8'"),
        ("/m", {"dtype": torch.int8}, "dtype must be one of 'bfloat16', 'float16', 'float32', not 'int8'"),
        ("/m", {"residency": "disk"}, "residency must be one of 'memory', 'file'"),
        ("/m", {"sharing": True}, "sharing must be one of 'shared', 'private'"),
        (torch.nn.Linear, {"weights": ""}, "weights must be the path of a file or folder, not ''"),
        (torch.nn.Linear, {"weights": 3}, "weights must be the path"),
        (torch.nn.Linear, {"weights": "a\0b"}, "weights must be the path"),
        ("bert", {}, "neither of the form 'package.module:name' nor a path"),
        ("weights.safetensors", {}, r"write a path in this folder as './weights\.safetensors'"),
        ("", {}, "neither of the form"),
        (MODULE, {"max_batch": 0}, "max_batch must be a whole number from 1 to 4096, not 0"),
        (MODULE, {"max_batch": True}, "max_batch must be"),
        (MODULE, {"max_wait_ms": -1}, "max_wait_ms must be a number from 0"),
        (MODULE, {"max_wait_ms": float("nan")}, "max_wait_ms must be"),
        (MODULE, {"max_wait_ms": "2"}, "max_wait_ms must be"),
        (MODULE, {"share": 0}, "share must be a number above 0"),
        (MODULE, {"share": float("inf")}, "share must be a number above 0"),
        (MODULE, {"max_queue": -1}, "max_queue must be a whole number from 0 to 100000"),
        (MODULE, {"adaptive": 1}, "adaptive must be true or false, not 1"),
        (MODULE, {"cuda_graph": "yes"}, "cuda_graph must be true or false, not 'yes'"),
        (MODULE, {"cuda_graph": True, "grad": True}, "cuda_graph is for models without grad=True"),
        (MODULE, {"collate": "join"}, "collate is for batches; with max_batch=1 every call runs alone"),
        (MODULE, {"max_batch": 2, "split": "_cut"}, "split must be the name of a public method.*'_cut'"),
        (MODULE, {"max_batch": 2, "collate": print}, "collate .*a name has"),
        (MODULE, {"max_batch": 2, "collate": None}, "collate None: a name has"),
    ],
)
def test_what_makes_no_sense_is_refused(source, options, said):
    with pytest.raises(ConfigError, match=said):
        Model(source, **options)


def test_a_pool_toml_finds_paths_from_its_own_folder(tmp_path, monkeypatch):
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "pool.toml").write_text(
        """
        [models.one]
        source = "torch.nn:Linear"
        args = [4, 4]
        weights = "weights/one.safetensors"
        dtype = "bfloat16"
        residency = "file"
        sharing = "private"
        [models.two]
        source = "./two"
        task = "text-classification"
        [models.three]
        source = "three.pt"
        trusted = true
        [models.four]
        source = "owner/model"
        """
    )
    monkeypatch.chdir(tmp_path)
    models = read_toml("config/pool.toml")[1]
    assert models["one"].weights == str(folder / "weights" / "one.safetensors")
    assert (models["one"].dtype, models["one"].residency, models["one"].sharing) == ("bfloat16", "file", "private")
    assert (models["two"].source, models["two"].task) == (str(folder / "two"), "text-classification")
    assert (models["three"].source, models["three"].trusted) == (str(folder / "three.pt"), True)
    assert models["four"].source == "owner/model"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("weights = 3", r"models\.m\.weights must be str, not int"),
        ("trusted = 'yes'", r"models\.m\.trusted must be bool"),
        ("dtype = 'half'", r"\[models\.m\] dtype must be one of"),
        ("max_batch = 2.0", r"models\.m\.max_batch must be int, not float"),
        ("share = true", r"models\.m\.share must be float, not bool"),
        ("max_wait_ms = -1", r"\[models\.m\] max_wait_ms must be a number from 0"),
        ("cuda_graph = 1", r"models\.m\.cuda_graph must be bool"),
        ("cuda_graph = true\ngrad = true", r"\[models\.m\] cuda_graph is for models without grad=True"),
        ("adaptive = 1", r"models\.m\.adaptive must be bool"),
        ("weight = 'w.pt'", r"unknown key 'weight'; did you mean 'weights'\?"),
    ],
)
def test_a_pool_toml_with_a_mistake_names_file_and_key(tmp_path, line, said):
    path = tmp_path / "pool.toml"
    path.write_text(f"[models.m]\nsource = 'torch.nn:Linear'\n{line}\n")
    with pytest.raises(ConfigError, match=rf"pool\.toml: .*{said}"):
        read_toml(str(path))


def test_a_pool_toml_says_how_models_are_scheduled(tmp_path):
    path = tmp_path / "pool.toml"
    path.write_text(
        """
        slots = 1
        [models.one]
        source = "torch.nn:Linear"
        max_batch = 32
        max_wait_ms = 2
        collate = "join"
        split = "cut"
        share = 0.5
        max_queue = 100
        adaptive = false
        [models.two]
        source = "torch.nn:Linear"
        max_wait_ms = 2.5
        share = 3
        """
    )
    settings, models = read_toml(str(path))
    assert not settings.adaptive
    one, two = models["one"], models["two"]
    assert (one.max_batch, one.max_wait_ms, one.collate, one.split) == (32, 2, "join", "cut")
    assert (one.share, one.max_queue, one.adaptive) == (0.5, 100, False)
    assert (two.max_batch, two.max_wait_ms, two.share, two.adaptive) == (1, 2.5, 3, True)


def test_how_many_run_at_once_is_found_out_unless_it_is_said():
    assert Settings(workers=4).adaptive is True
    assert Settings(workers=4, slots=2).adaptive is False
    assert Settings(workers=4, slots=2, adaptive=True).adaptive is True
    assert Settings(workers=4, adaptive=False).adaptive is False
    settings = Settings(workers=4)
    assert Settings.from_wire(settings.to_wire()) == settings
    with pytest.raises(ConfigError, match="adaptive must be true or false, not 'yes'"):
        Settings(adaptive="yes")
