"""Packages of torch's ahead-of-time compiler (``.pt2``): the library in it, and the constants apart from it.

Torch has several places for the constants of a package::

    in the library's data, or behind its end        (what torch does unless told otherwise)
    in a blob beside it                              "binary_blob"
    each in a file of its own                        "pickle_weights"
    nowhere: whoever loads the package has them      weights=

From wherever they come, what is built computes with tensors that can be shared, and its library has holes where
they were.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from ..protocol.errors import LoadFailed
from ..protocol.mapping import Mapping as Region
from ..protocol.mapping import map_region, storage_in
from .aoti import PAGE_BYTES, CompiledModel, Library, Segment, open_library

if TYPE_CHECKING:
    import torch

_FOLDER: Final = re.compile(r"[^/]+/data/aotinductor/([^/]+)/(.+)")
_CUSTOM_OBJECTS: Final = "custom_objs_config.json"
#: Smaller constants stay in the library as well.
_CUT_BYTES: Final = 64 * 1024
#: A constant is looked for by its beginning, at so many places that begin alike.
_KEY_BYTES: Final = 256
_MAX_PLACES: Final = 64
#: What the source of a library says of each of its constants.
_SAID: Final = re.compile(
    r"constants_info_\[(\d+)\]\.(dtype|shape|stride|data_size|from_folded|original_fqn) = (.*);"
)
_DTYPE: Final = "cached_torch_dtype_"
#: Instructions that torch's compiler may use, and the processor's flags for them.
_INSTRUCTIONS: Final = {
    "AVX2": "avx2", "AVX512": "avx512f", "AVX512_VNNI": "avx512_vnni", "AVX512_BF16": "avx512_bf16",
    "AMX_TILE": "amx_tile",
}  # fmt: skip


class _Constant(NamedTuple):
    """What a library needs of one constant."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


class Loaded(NamedTuple):
    """A compiled model, and what is to be said about loading it."""

    model: CompiledModel
    notes: list[str]


def is_compiled(path: str) -> bool:
    """Whether a ``.pt2`` file holds a compiled library, and not an exported program alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(_FOLDER.fullmatch(name) for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def load_compiled(path: str, weights: Mapping[str, Any] | None = None) -> Loaded:
    """Load a package.

    Its library is code: load only what you trust.

    Args:
        path: the ``.pt2`` file.
        weights: tensors to use in place of those in the package, by the names they have in the model.

    Raises:
        LoadFailed: it cannot be loaded here, or some of its constants are nowhere; the message says what to do.
    """
    with zipfile.ZipFile(path) as archive:
        files = _files_of_model(path, archive)
        library_name = _only(path, files, ".so")
        _check_machine(path, archive, files)
        source = archive.read(files[library_name.removesuffix(".so") + ".cpp"]).decode()
        needed, folded_bytes = _needed(source)
        operators_name = files.get(library_name.removesuffix(".so") + ".json")
        operators = archive.read(operators_name) if operators_name else b""
        fd = os.memfd_create("package", os.MFD_CLOEXEC)
        try:
            size_bytes = _unpack(archive, files[library_name], fd)
            region = map_region(fd, size_bytes)
            runner = open_library(fd, operators)
            inside = _constants_beside(archive, files, runner) or runner.extract_constants_map(False)
            constants, holes = _take_out(fd, region, inside)
            del inside, runner  # which are the same memory
        finally:
            os.close(fd)
    notes = _replace(path, constants, needed, weights or {})
    library = Library(size_bytes, _segments(region, holes), operators, _modules_of(operators))
    if folded_bytes:
        notes.append(
            f"{path}: each worker computes {folded_bytes:,} bytes of constants for itself when it first runs, "
            "because the package was compiled with use_runtime_constant_folding"
        )
    return Loaded(CompiledModel(library, constants), notes)


# --- what is in a package ------------------------------------------------------------------------------------


def _files_of_model(path: str, archive: zipfile.ZipFile) -> dict[str, str]:
    """Return the names in the archive of a model's files, by their own names."""
    models: dict[str, dict[str, str]] = {}
    for name in archive.namelist():
        if match := _FOLDER.fullmatch(name):
            models.setdefault(match[1], {})[match[2]] = name
    if len(models) > 1:
        raise LoadFailed(
            f"{path}: holds {len(models)} compiled models ({', '.join(sorted(models))}); make a package of each"
        )
    (files,) = models.values()
    if _CUSTOM_OBJECTS in files:
        raise LoadFailed(
            f"{path}: holds objects of C++ classes, which cannot be shared; load it with "
            "torch._inductor.aoti_load_package in a factory, and each worker has it for itself"
        )
    return files


def _only(path: str, files: Mapping[str, str], ending: str) -> str:
    found = [name for name in files if name.endswith(ending)]
    if len(found) != 1:
        raise LoadFailed(
            f"{path}: holds {len(found)} compiled libraries and must hold one; compile it without package_cpp_only"
        )
    return found[0]


def _check_machine(path: str, archive: zipfile.ZipFile, files: Mapping[str, str]) -> None:
    """Raise if the library was compiled for what this machine is not: it would end the process.

    Raises:
        LoadFailed: it was; the message says for what.
    """
    said: dict[str, str] = {}
    for name in files:
        if name.endswith("_metadata.json"):
            said.update(json.loads(archive.read(files[name])))
    advice = "compile it again on a machine like this"
    if (device := said.get("AOTI_DEVICE_KEY", "cpu")) != "cpu":
        raise LoadFailed(f"{path}: compiled for the device {device!r}, and workers run on the CPU; {advice}")
    machine = os.uname().machine
    if (other := said.get("AOTI_MACHINE", machine)) != machine:
        raise LoadFailed(f"{path}: compiled for {other}, and this machine is {machine}; {advice}")
    wanted = [name for name in said.get("AOTI_CPU_ISA", "").split() if name in _INSTRUCTIONS]
    flags = _processor_flags()
    missing = [name for name in wanted if _INSTRUCTIONS[name] not in flags]
    if missing:
        raise LoadFailed(f"{path}: compiled for {', '.join(missing)}, which this processor lacks; {advice}")


def _processor_flags() -> set[str]:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return set(next((line for line in file if line.startswith("flags")), "").split())


def _needed(source: str) -> tuple[dict[str, _Constant], int]:
    """Return the constants that a library needs, by name, and how many bytes of others it computes from them."""
    import torch

    said: dict[str, dict[str, str]] = {}
    for index, key, value in _SAID.findall(source):
        said.setdefault(index, {})[key] = value
    needed: dict[str, _Constant] = {}
    folded_bytes = 0
    for one in said.values():
        if one["from_folded"] == "true":
            folded_bytes += int(one["data_size"])
            continue
        dtype = getattr(torch, one["dtype"].removeprefix(_DTYPE))
        needed[one["original_fqn"].strip('"')] = _Constant(dtype, _numbers(one["shape"]), _numbers(one["stride"]))
    return needed, folded_bytes


def _numbers(listed: str) -> tuple[int, ...]:
    return tuple(int(number.rstrip("L")) for number in re.findall(r"\d+L*", listed))


def _modules_of(operators: bytes) -> list[str]:
    """Return the names of the modules that define the operators of Python's that a library calls."""
    from torch._library.custom_ops import OPDEFS

    if not operators:
        return []
    targets = {one["node"]["target"].partition(".")[0] for one in json.loads(operators)["nodes"]}
    defined = (OPDEFS.get(target) for target in targets)
    return sorted({one._init_fn.__module__ for one in defined if one is not None} - {"__main__"})


def _unpack(archive: zipfile.ZipFile, name: str, fd: int) -> int:
    with archive.open(name) as packed, os.fdopen(os.dup(fd), "wb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)
    return archive.getinfo(name).file_size


# --- its constants -------------------------------------------------------------------------------------------


def _constants_beside(archive: zipfile.ZipFile, files: Mapping[str, str], runner: Any) -> dict[str, torch.Tensor]:
    """Return constants that are in the package and not in the library."""
    if places := files.get("weights_config.json"):
        return _pickled(archive, places, json.loads(archive.read(places)))
    blob = next((name for name in files if name.endswith(".blob")), None)
    if blob is None:
        return {}
    fd = os.memfd_create("blob", os.MFD_CLOEXEC)
    try:
        _unpack(archive, files[blob], fd)
        runner.update_constant_buffer_from_blob(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return runner.extract_constants_map(False)


def _pickled(archive: zipfile.ZipFile, places: str, described: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    import torch

    root = places.split("/", 1)[0]
    names = {name for name, *_ in described.values()}
    stored = {name: torch.load(io.BytesIO(archive.read(f"{root}/data/weights/{name}"))) for name in names}
    return {
        name: stored[stored_as].as_strided(shape, stride, offset)
        for name, (stored_as, shape, stride, offset) in described.items()
    }


def _take_out(
    fd: int, region: Region, inside: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[int, int]]:
    """Return constants as tensors that outlive a runner, and the parts of its library that are these.

    Large ones are found in the library by their bytes, and stay there.

    Returns:
        Tensors by name, and sizes by offset, both in bytes.
    """
    import torch

    places: dict[int, int] = {}
    taken: dict[str, torch.Tensor] = {}
    with mmap.mmap(fd, len(region), access=mmap.ACCESS_READ) as library:
        for name, tensor in inside.items():
            storage = tensor.untyped_storage()
            place = _find(library, _bytes_of(storage), places)
            if place is None:
                storage = storage.clone()
            else:
                places[place] = storage.nbytes()
                storage = storage_in(region, place, storage.nbytes())
            view = (tensor.storage_offset(), tensor.size(), tensor.stride())
            taken[name] = torch.empty(0, dtype=tensor.dtype).set_(storage, *view)
    return taken, places


def _bytes_of(storage: torch.UntypedStorage) -> memoryview:
    import torch

    return memoryview(cast("Any", torch.empty(0, dtype=torch.uint8).set_(storage).numpy()))


def _find(library: mmap.mmap, content: memoryview, places: Mapping[int, int]) -> int | None:
    """Return where in a library a constant lies that is worth cutting out; None if nowhere."""
    if len(content) < _CUT_BYTES:
        return None
    place = -1
    with memoryview(library) as searched:
        for _ in range(_MAX_PLACES):
            place = library.find(content[:_KEY_BYTES], place + 1)
            if place < 0:
                return None
            if place not in places and searched[place : place + len(content)] == content:
                return place
    return None


def _segments(region: Region, places: Mapping[int, int]) -> list[Segment]:
    """Return what is left of a library without the whole pages that lie in such places."""
    import torch

    holes = [
        (-(-start // PAGE_BYTES) * PAGE_BYTES, (start + size_bytes) // PAGE_BYTES * PAGE_BYTES)
        for start, size_bytes in sorted(places.items())
    ]
    segments: list[Segment] = []
    start = 0
    for hole, end in [*holes, (len(region), len(region))]:
        if start < hole:
            storage = storage_in(region, start, hole - start)
            segments.append(Segment(start, torch.empty(0, dtype=torch.uint8).set_(storage)))
        start = end
    return segments


def _replace(
    path: str, constants: dict[str, torch.Tensor], needed: Mapping[str, _Constant], weights: Mapping[str, Any]
) -> list[str]:
    """Put weights in the place of a package's own, and see to it that nothing is missing; return notes.

    Torch looks at neither the shapes nor the strides of what it is given: what it reads would lie anywhere.

    Raises:
        LoadFailed: they do not fit, or something is missing.
    """
    import torch

    for name in needed.keys() & weights.keys():
        tensor, as_compiled = weights[name].detach(), needed[name]
        if (tensor.dtype, tuple(tensor.shape)) != (as_compiled.dtype, as_compiled.shape):
            found = _Constant(tensor.dtype, tuple(tensor.shape), ())
            raise LoadFailed(f"{path}: the weights do not fit: {name} is {found}, compiled was {as_compiled}")
        if tensor.stride() != as_compiled.stride:
            tensor = torch.empty_strided(as_compiled.shape, as_compiled.stride, dtype=tensor.dtype).copy_(tensor)
        constants[name] = tensor
    if missing := sorted(needed.keys() - constants.keys()):
        raise LoadFailed(
            f"{path}: compiled without its constants, and {missing[0]!r} is in no weights that were given "
            f"({len(missing)} of {len(needed)} are missing); give them as weights=, or compile the package with "
            'inductor_configs={"aot_inductor.package_constants_on_disk_format": "pickle_weights"}'
        )
    own = sorted(needed.keys() - weights.keys())
    return [f"{path}: {len(own)} constants are those of the package, such as {own[0]}"] if own and weights else []
