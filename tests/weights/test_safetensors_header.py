"""Headers of safetensors files: what is right is read, and what lies is refused by name."""

import copy
import json
import os

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onecopy.protocol.errors import LoadFailed
from onecopy.workers.safetensors_file import MAX_HEADER_BYTES, read_header
from onecopy.workers.weight_files import open_weights
from safetensors.torch import save
from weight_models import write_safetensors

GOOD = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "I64", "shape": [], "data_offsets": [16, 24]},
    "none": {"dtype": "F32", "shape": [0, 3], "data_offsets": [24, 24]},
}
DATA = bytes(range(24))


def changed(**entries):
    header = copy.deepcopy(GOOD)
    for name, changes in entries.items():
        header[name] = {**header.get(name, {}), **changes} if isinstance(changes, dict) else changes
    return header


def test_a_good_file_is_read(tmp_path):
    path = write_safetensors(tmp_path / "good.safetensors", GOOD, DATA)
    with open(path, "rb") as file:
        header = read_header(file.fileno(), path)
        assert file.tell() == 0
    start = os.path.getsize(path) - len(DATA)
    assert header.metadata == {"format": "pt"}
    assert header.file_bytes == os.path.getsize(path)
    assert header.tensors == {
        "a": ("F32", (2, 2), start, 16),
        "b": ("I64", (), start + 16, 8),
        "none": ("F32", (0, 3), start + 24, 0),
    }


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (changed(a={"data_offsets": [0, 12]}), r"'a'.*12 bytes.*F32.*takes 16"),
        (changed(a={"data_offsets": [16, 0]}), r"'a'.*\[16, 0\].*in order"),
        (changed(b={"data_offsets": [16, 999]}), r"'b'.*do not lie.*truncated"),
        (changed(b={"data_offsets": [8, 16]}), r"'b'.*overlaps tensor 'a'"),
        (changed(a={"shape": [1, 2], "data_offsets": [0, 8]}), r"'b'.*leaves a hole behind tensor 'a'"),
        (changed(a={"shape": [1, 2], "data_offsets": [8, 16]}), r"'a'.*leaves a hole behind the header"),
        ({"a": GOOD["a"]}, r"8 bytes behind tensor 'a' belong to no tensor"),
        (changed(none={"data_offsets": [8, 8]}), r"'none'.*overlaps|overlaps.*'none'"),
        (changed(a={"data_offsets": [0, True]}), r"data_offsets must be two whole numbers"),
        (changed(a={"data_offsets": [0.0, 16]}), r"data_offsets must be two whole numbers"),
        (changed(a={"data_offsets": [0]}), r"data_offsets must be two whole numbers"),
        (changed(a={"data_offsets": [-16, 0]}), r"do not lie"),
        (changed(a={"shape": [-2, -2]}), r"\[-2, -2\].*non-negative"),
        (changed(a={"shape": [2.0, 2]}), r"non-negative integer"),
        (changed(a={"shape": "22"}), r"shape a list"),
        (changed(a={"shape": [1] * 65}), r"65 dimensions"),
        (changed(none={"shape": [0, 1 << 62, 1 << 62]}), r"larger than any tensor"),
        (changed(a={"dtype": "F31"}), r"'a'.*unknown dtype 'F31'"),
        (changed(a={"dtype": 7}), r"dtype must be a text"),
        (changed(a={"more": 1}), r"dtype, shape and data_offsets alone"),
        (changed(a=[1]), r"dtype, shape and data_offsets alone"),
        (changed(__metadata__={"format": 1}), r"__metadata__\['format'\] must be a text"),
        (changed(__metadata__=3), r"__metadata__ must be a map"),
        (b'{"a": ', r"no valid JSON"),
        (b"[]", r"must begin with '\{'"),
        (b'{"a": NaN}', r"no valid JSON.*NaN"),
        (b'{"\xff": 1}', r"no valid JSON.*utf-8"),
        (b'{"\\ud800": {}}', r"no valid JSON.*surrogates"),
        (b'{"x":' * 100_000, r"no valid JSON"),
        (b'{"x": ' + b"1" * 5000 + b"}", r"no valid JSON"),
        (json.dumps(GOOD).encode().replace(b'"b"', b'"a"'), r"the key 'a' stands there twice"),
    ],
)
def test_a_lying_header_is_refused(tmp_path, header, said):
    path = write_safetensors(tmp_path / "lying.safetensors", header, DATA)
    with pytest.raises(LoadFailed, match=said) as caught:
        open_weights(path)
    assert path in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("header_bytes", [1 << 20, MAX_HEADER_BYTES + 1, (1 << 64) - 1])
def test_a_length_that_cannot_be_is_refused(tmp_path, header_bytes):
    path = write_safetensors(tmp_path / "long.safetensors", GOOD, DATA, header_bytes)
    with pytest.raises(LoadFailed, match=rf"promise a header of {header_bytes:,} bytes"):
        open_weights(path)


def test_every_truncated_file_is_refused(tmp_path):
    whole = save({"a": torch.arange(4.0), "b": torch.tensor(3)})
    path = tmp_path / "cut.safetensors"
    for size_bytes in range(len(whole)):
        path.write_bytes(whole[:size_bytes])
        with pytest.raises(LoadFailed, match=r"cut\.safetensors"):
            open_weights(str(path))


@pytest.mark.parametrize(("is_zip", "said"), [(True, "zip archive"), (False, "pickle")])
def test_what_torch_saved_is_told_apart(tmp_path, is_zip, said):
    path = tmp_path / "model.safetensors"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(LoadFailed, match=rf"{said}, as torch.save .* call it \.pt"):
        open_weights(str(path))


# --- whatever it is, it is read rightly or refused -----------------------------------------------------------

NAMES = st.text(max_size=5)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
SHAPES = st.lists(st.integers(0, 3), max_size=3)
STATES = st.dictionaries(
    NAMES.filter(lambda name: name != "__metadata__"),
    st.builds(lambda dtype, shape: torch.ones(shape, dtype=dtype), DTYPES, SHAPES),
    max_size=4,
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | NAMES
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))


@st.composite
def broken_files(draw):
    """A good file, and then some bytes of it changed, or a part of its header, or its length."""
    whole = bytearray(save(draw(STATES)))
    header_bytes = int.from_bytes(whole[:8], "little")
    kind = draw(st.sampled_from(["bytes", "cut", "json", "length"]))
    if kind == "bytes":
        for _ in range(draw(st.integers(1, 3))):
            whole[draw(st.integers(0, min(len(whole), 8 + header_bytes) - 1))] = draw(st.integers(0, 255))
    elif kind == "cut":
        del whole[draw(st.integers(0, len(whole))) :]
    elif kind == "length":
        whole[:8] = draw(st.integers(0, (1 << 64) - 1)).to_bytes(8, "little")
    else:
        header = json.loads(whole[8 : 8 + header_bytes])
        entries = [name for name in header if name != "__metadata__"] or ["x"]
        name, key = draw(st.sampled_from(entries)), draw(st.sampled_from(["dtype", "shape", "data_offsets", ""]))
        number = st.lists(st.integers(-1, 40), min_size=2, max_size=2)
        value = draw(JSON | number | st.sampled_from(["F64", "F4", "U16"]))
        header[name] = {**header.get(name, {}), key: value} if key else value
        raw = json.dumps(header).encode()
        whole[: 8 + header_bytes] = len(raw).to_bytes(8, "little") + raw
    return bytes(whole)


@given(STATES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_good_file_is_read_rightly(tmp_path, state):
    path = tmp_path / "good.safetensors"
    path.write_bytes(save(state))
    weights = open_weights(str(path))
    assert weights.state.keys() == state.keys()
    for name, tensor in state.items():
        assert weights.state[name].dtype == tensor.dtype
        assert weights.state[name].shape == tensor.shape
        assert torch.equal(weights.state[name], tensor)


@given(broken_files())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_holds_it_is_refused_or_read_as_safetensors_does(tmp_path, raw):
    assume(b"-0" not in raw)  # to them no whole number
    path = tmp_path / "any.safetensors"
    path.write_bytes(raw)
    try:
        weights = open_weights(str(path))
    except LoadFailed:
        return
    theirs = dict(safetensors.deserialize(raw))
    assert weights.state.keys() == theirs.keys()
    for name, tensor in weights.state.items():
        assert list(tensor.shape) == theirs[name]["shape"]
        assert bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist()) == bytes(theirs[name]["data"])
