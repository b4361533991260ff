"""Files, indexes and folders of weights: what is mapped, what is copied, and what is refused."""

import json
import shutil
import warnings
import zipfile

import pytest
import torch
from onecopy.protocol.errors import LoadFailed
from onecopy.protocol.tensors import TORCH_NAMES
from onecopy.workers.weight_files import open_weights
from safetensors.torch import save_file
from weight_models import file_of, write_safetensors

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("dtype", TORCH_NAMES)
def test_every_dtype_is_mapped_with_its_bits(tmp_path, dtype):
    kind = getattr(torch, TORCH_NAMES[dtype])
    raw = torch.randint(0, 2, (64,), dtype=torch.uint8)
    length = 64 // kind.itemsize
    entries = {
        "vector": {"dtype": dtype, "shape": [length], "data_offsets": [0, 64]},
        "empty": {"dtype": dtype, "shape": [3, 0, 2], "data_offsets": [64, 64]},
        "scalar": {"dtype": dtype, "shape": [], "data_offsets": [64, 64 + kind.itemsize]},
    }
    header = json.dumps(entries).encode()
    header += b" " * (-(len(header) + 8) % 64)
    data = bytes(raw.tolist())
    path = write_safetensors(tmp_path / "all.safetensors", header, data + data[: kind.itemsize])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ComplexHalf support is experimental")
        weights = open_weights(path)
    assert weights.notes == []
    assert weights.paths == [path]
    vector, empty, scalar = (weights.state[name] for name in entries)
    assert {vector.dtype, empty.dtype, scalar.dtype} == {kind}
    assert (vector.shape, empty.shape, scalar.shape) == ((length,), (3, 0, 2), ())
    assert torch.equal(bits(vector), raw)
    assert torch.equal(bits(scalar), raw[: kind.itemsize])
    assert file_of(vector) == file_of(scalar) == path
    assert vector.untyped_storage().nbytes() == 64


def test_tensors_off_the_size_of_their_elements_are_copied_and_noted(tmp_path):
    header = json.dumps(
        {
            "byte": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},
            "single": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
            "none": {"dtype": "F32", "shape": [0], "data_offsets": [16, 16]},
        }
    ).encode()
    header += b" " * ((1 - len(header)) % 8)
    data = bytes(bits(torch.tensor([1.5, -2.0])).tolist())
    path = write_safetensors(tmp_path / "odd.safetensors", header, bytes(8) + data)
    weights = open_weights(path)
    assert weights.state["single"].tolist() == [1.5, -2.0]
    assert weights.state["none"].shape == (0,)
    assert file_of(weights.state["byte"]) == path
    assert file_of(weights.state["single"]) == ""
    assert weights.state["single"].data_ptr() % 4 == 0
    (note,) = weights.notes
    assert "1 tensors of 8 bytes were read into memory" in note


def test_writing_into_a_tensor_leaves_the_file_alone(tmp_path):
    save_file(STATE, tmp_path / "a.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()
    weights = open_weights(str(tmp_path / "a.safetensors"))
    weights.state["a"].zero_()
    assert (tmp_path / "a.safetensors").read_bytes() == before


# --- folders and indexes -------------------------------------------------------------------------------------


def write_shards(folder, weight_map=None):
    save_file({"a": STATE["a"]}, folder / "model-1.safetensors")
    save_file({"b": STATE["b"]}, folder / "model-2.safetensors")
    weight_map = weight_map or {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 40}, "weight_map": weight_map}))
    return str(index)


def test_an_index_a_folder_with_one_and_a_folder_of_files_are_the_same(tmp_path):
    index = write_shards(tmp_path)
    by_index, by_folder = open_weights(index), open_weights(str(tmp_path))
    (tmp_path / "model.safetensors.index.json").unlink()
    by_files = open_weights(str(tmp_path))
    for weights in (by_index, by_folder, by_files):
        assert same(weights.state, STATE)
        assert [path.rsplit("/", 1)[1] for path in weights.paths] == ["model-1.safetensors", "model-2.safetensors"]
        assert weights.notes == []


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"a": "gone.safetensors"}, r"names the file 'gone.safetensors', which does not lie beside it"),
        ({"a": "model-2.safetensors"}, r"says that 'model-2.safetensors' holds a, but it does not"),
        ({"a": "../model-1.safetensors"}, r"weight_map\['a'\] must name a file beside the index"),
        ({"a": "/etc/passwd"}, r"must name a file beside the index"),
        ({"a": 1}, r"must name a file beside the index"),
        ({"a": "model.safetensors.index.json"}, r"must name a file beside the index"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, weight_map, said):
    with pytest.raises(LoadFailed, match=said):
        open_weights(write_shards(tmp_path, weight_map))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', "[" * 100_000])
def test_an_index_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(LoadFailed, match=r"index\.json: (no valid JSON|has no weight_map)"):
        open_weights(str(tmp_path))


def test_what_the_index_does_not_name_is_left_out_and_noted(tmp_path):
    index = write_shards(tmp_path, {"a": "model-1.safetensors"})
    save_file({**STATE}, tmp_path / "model-1.safetensors")
    weights = open_weights(index)
    assert list(weights.state) == ["a"]
    assert "b not loaded, because the index does not name them" in weights.notes[0]


def test_a_name_in_two_files_of_a_folder_is_refused(tmp_path):
    save_file(STATE, tmp_path / "one.safetensors")
    save_file(STATE, tmp_path / "two.safetensors")
    with pytest.raises(LoadFailed, match=r"two\.safetensors: [ab], [ab] also in another file"):
        open_weights(str(tmp_path))


def test_the_usual_file_of_a_folder_is_preferred_and_the_others_are_named(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "adapter.safetensors")
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    weights = open_weights(str(tmp_path))
    assert weights.paths == [str(tmp_path / "model.safetensors")]
    assert weights.notes == [f"{tmp_path}: model.safetensors was loaded, adapter.safetensors not"]


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(LoadFailed, match="no weights in this folder; it has no files"):
        open_weights(str(tmp_path))
    with pytest.raises(LoadFailed, match=r"no such file or folder; weights are a \.safetensors file"):
        open_weights(str(tmp_path / "gone.safetensors"))
    for name in ("one.pt", "two.pt"):
        torch.save(STATE, tmp_path / name)
    with pytest.raises(LoadFailed, match=r"which of one\.pt, two\.pt is meant\?"):
        open_weights(str(tmp_path))
    (tmp_path / "model.gguf").touch()
    with pytest.raises(LoadFailed, match="does not say what it holds"):
        open_weights(str(tmp_path / "model.gguf"))


# --- what torch saved ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin"])
def test_a_state_dict_is_mapped(tmp_path, ending):
    path = tmp_path / f"state{ending}"
    torch.save(torch.nn.Linear(3, 2).state_dict(), path)
    for source in (path, tmp_path):
        weights = open_weights(str(source))
        assert weights.notes == []
        assert list(weights.state) == ["weight", "bias"]
        assert file_of(weights.state["weight"]) == str(path)


def test_an_index_of_state_dicts_is_read(tmp_path):
    torch.save({"a": STATE["a"]}, tmp_path / "pytorch_model-1.bin")
    torch.save({"b": STATE["b"]}, tmp_path / "pytorch_model-2.bin")
    index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert same(open_weights(str(tmp_path)).state, STATE)


def test_an_old_state_dict_is_copied_and_noted(tmp_path):
    path = tmp_path / "old.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    weights = open_weights(str(path))
    assert same(weights.state, STATE)
    assert file_of(weights.state["a"]) == ""
    assert "old format" in weights.notes[0]


def test_a_compressed_state_dict_is_read_rightly_and_noted(tmp_path):
    torch.save(STATE, tmp_path / "plain.pt")
    small = zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, small:
        for entry in plain.infolist():
            small.writestr(entry.filename, plain.read(entry))
    weights = open_weights(str(tmp_path / "small.pt"))
    assert same(weights.state, STATE)
    assert "compressed" in weights.notes[0]


class RunsWhenLoaded:
    def __reduce__(self):
        return print, ("must never be printed",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            torch.nn.Linear(2, 2),
            r"whole module.*Model\(path, trusted=True\).*torch.save\(model.state_dict\(\), path\)",
        ),
        (RunsWhenLoaded(), r"holds more than tensors"),
        ([torch.ones(1)], r"holds a list and not a state dict"),
        ({"state_dict": STATE, "epoch": 3}, r"'state_dict' is a dict.*save that alone"),
        ({1: torch.ones(1)}, r"1 is a Tensor"),
    ],
    ids=["module", "code", "list", "nested", "numbers"],
)
def test_what_is_no_state_dict_is_refused_without_running_it(tmp_path, capfd, content, said):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(LoadFailed, match=said):
        open_weights(str(tmp_path / "model.pt"))
    assert "must never be printed" not in capfd.readouterr().out


@pytest.mark.parametrize("kept_bytes", [0, 2, 100, -30])
def test_a_broken_state_dict_is_refused(tmp_path, kept_bytes):
    path = tmp_path / "cut.pt"
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(LoadFailed, match=r"cut\.pt"):
        open_weights(str(path))
