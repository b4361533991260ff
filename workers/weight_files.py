"""Weights files as tensors that lie in private mappings of them: nothing is read before it is used.

::

    model.safetensors            ──┐
    model.safetensors.index.json ──┤
    a folder of either           ──┼──► open_weights ──► Weights: name -> tensor, one storage each
    a .pt state dict             ──┘

Whoever copies such a storage can ask the kernel to take it from the file (`sendfile`), never through this
process's memory. What cannot be mapped is copied here, and a note says so.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from ..protocol.errors import LoadFailed
from ..protocol.mapping import Mapping, buffer_in, map_region, storage_in
from ..protocol.tensors import ITEMSIZE_BYTES, TORCH_NAMES
from .checkpoints import ENDINGS, load_state
from .safetensors_file import Header, read_header
from .state_dicts import listed

if TYPE_CHECKING:
    import torch

SAFETENSORS: Final = ".safetensors"
INDEX: Final = ".index.json"
_EXPECTED: Final = (
    f"a {SAFETENSORS} file, an index of several (*{SAFETENSORS}{INDEX}), a state dict ({', '.join(ENDINGS)}) or a "
    "folder with one of these"
)


@dataclass(frozen=True)
class Weights:
    """The tensors of one or more files.

    Attributes:
        state: by name; of a ``.pt`` file the mapping as it was saved, with what torch notes in it.
        notes: what a user should know of how they were read.
        paths: the files they come from.
    """

    state: dict[str, Any] = field(default_factory=dict[str, Any])
    notes: list[str] = field(default_factory=list[str])
    paths: list[str] = field(default_factory=list[str])


def open_weights(path: str) -> Weights:
    """Return the tensors of a weights file, an index, or a folder with either.

    Raises:
        LoadFailed: there is nothing of the kind, or it is broken; the message names file and tensor.
    """
    if os.path.isdir(path):
        return _open_folder(path)
    if not os.path.isfile(path):
        raise LoadFailed(f"{path}: no such file or folder; weights are {_EXPECTED}")
    if path.endswith(INDEX):
        return _open_index(path)
    if path.endswith(SAFETENSORS):
        return _open_safetensors(path)
    if path.endswith(ENDINGS):
        state, notes = load_state(path)
        return Weights(state, notes, [path])
    raise LoadFailed(f"{path}: its name does not say what it holds; weights are {_EXPECTED}")


def _open_folder(folder: str) -> Weights:
    """Open what a folder holds: an index before files, safetensors before what `torch.save` wrote."""
    names = sorted(name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name)))
    for ending in (SAFETENSORS + INDEX, SAFETENSORS, ".bin" + INDEX, ENDINGS):
        found = [name for name in names if name.endswith(ending)]
        if not found:
            continue
        usual = [name for name in found if name.startswith(("model.", "pytorch_model."))]
        chosen = usual if len(usual) == 1 else found
        if len(chosen) > 1 and ending != SAFETENSORS:
            raise LoadFailed(f"{folder}: which of {listed(found)} is meant? Give the path of one")
        weights = _merged([open_weights(os.path.join(folder, name)) for name in chosen])
        if left := [name for name in found if name not in chosen]:
            weights.notes.append(f"{folder}: {chosen[0]} was loaded, {listed(left)} not")
        return weights
    raise LoadFailed(
        f"{folder}: no weights in this folder; it has {listed(names) or 'no files'}. Weights are {_EXPECTED}"
    )


def _open_index(path: str) -> Weights:
    folder = os.path.dirname(path)
    by_file: dict[str, list[str]] = {}
    for name, file in _weight_map(path).items():
        by_file.setdefault(file, []).append(name)
    parts: list[Weights] = []
    for file, names in by_file.items():
        shard = os.path.join(folder, file)
        if not os.path.isfile(shard):
            raise LoadFailed(f"{path}: names the file {file!r}, which does not lie beside it")
        weights = open_weights(shard)
        if lacking := [name for name in names if name not in weights.state]:
            raise LoadFailed(f"{path}: says that {file!r} holds {listed(lacking)}, but it does not")
        if extra := [name for name in weights.state if name not in set(names)]:
            weights.notes.append(f"{shard}: {listed(extra)} not loaded, because the index does not name them")
        parts.append(Weights({name: weights.state[name] for name in names}, weights.notes, weights.paths))
    return _merged(parts)


def _weight_map(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except OSError as error:
        raise LoadFailed(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise LoadFailed(f"{path}: no valid JSON: {error}") from None
    found = cast("dict[str, Any]", document).get("weight_map") if isinstance(document, dict) else None
    if not isinstance(found, dict):
        raise LoadFailed(f"{path}: has no weight_map, which says in which file each tensor lies")
    for name, file in cast("dict[str, Any]", found).items():
        if not isinstance(file, str) or os.path.isabs(file) or ".." in file.split("/") or file.endswith(INDEX):
            raise LoadFailed(f"{path}: weight_map[{name!r}] must name a file beside the index, not {file!r}")
    return cast("dict[str, str]", found)


def _merged(parts: list[Weights]) -> Weights:
    """Return the tensors of several files as one; a single part as it is, with what torch notes in its state."""
    if len(parts) == 1:
        return parts[0]
    merged = Weights()
    for part in parts:
        if twice := [name for name in part.state if name in merged.state]:
            raise LoadFailed(f"{part.paths[0]}: {listed(twice)} also in another file of the folder; give one path")
        merged.state.update(part.state)
        merged.notes.extend(part.notes)
        merged.paths.extend(part.paths)
    return merged


def _open_safetensors(path: str) -> Weights:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            header = read_header(fd, path)
            mapping = map_region(fd, header.file_bytes)
        finally:
            os.close(fd)
    except OSError as error:
        raise LoadFailed(f"{path}: {error.strerror}") from None
    except ValueError as error:  # it has shrunk since its header was read
        raise LoadFailed(f"{path}: {error}") from None
    return _tensors_in(mapping, header, path)


def _tensors_in(mapping: Mapping, header: Header, path: str) -> Weights:
    import torch

    weights, copied_bytes, copies = Weights(paths=[path]), 0, 0
    for name, entry in header.tensors.items():
        if entry.offset_bytes % ITEMSIZE_BYTES[entry.dtype]:
            storage = _copied(buffer_in(mapping, entry.offset_bytes, entry.size_bytes))
            copied_bytes, copies = copied_bytes + entry.size_bytes, copies + bool(entry.size_bytes)
        else:
            storage = storage_in(mapping, entry.offset_bytes, entry.size_bytes)
        dtype = getattr(torch, TORCH_NAMES[entry.dtype])
        # Without strides it is contiguous; torch's stubs do not know that they may be left out.
        tensor = torch.empty(0, dtype=dtype, device="cpu")
        weights.state[name] = tensor.set_(storage, 0, entry.shape)  # pyright: ignore[reportCallIssue]
    if copies:
        weights.notes.append(
            f"{path}: {copies} tensors of {copied_bytes:,} bytes were read into memory, because they do not lie "
            "at multiples of their element's size; saved again with safetensors they can be mapped"
        )
    return weights


def _copied(raw: memoryview) -> torch.UntypedStorage:
    import torch

    if not raw.nbytes:
        return torch.UntypedStorage(0)
    return torch.frombuffer(raw, dtype=torch.uint8).clone().untyped_storage()
