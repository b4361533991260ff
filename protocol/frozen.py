"""Freeze and thaw: an object becomes a skeleton and memory that can be shared, and an object again.

::

    freeze(object) ──► Frozen ── .skeleton, .modules ──────────────► thaw(skeleton, manifest, mappings)
                         │  └─── .manifest: what regions it needs                      │
                         ├────── .fillings(): what belongs into them                   ▼
                         └────── .repoint(mappings): the original joins the copy    object

The object may be anything that cloudpickle pickles, with tensors anywhere inside: a module with its hooks
and its tokenizer, a dict of modules, a closure. What is thawed computes what the original computed, bit for
bit, and its tensors lie inside the mappings.

A skeleton is a pickle and therefore code. Thaw only what our own loader process wrote, or what the
application that owns the pool or is the same user handed over on a unix socket with peer credentials;
never anything that arrived over ZeroMQ.

Importing this module imports no torch: only freezing and thawing do.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping as MappingOf
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .casting import Casts
from .contents import OpenFiles
from .culprit import path_to
from .filling import Filling
from .gpu import DeviceMemory, Gpu
from .manifest import InFile, Manifest, Role
from .mapping import Mapping, storage_in
from .origins import file_ranges
from .pieces import Pieces, WrongDeviceError
from .skeleton import SkeletonPickler, SkeletonUnpickler, view_like
from .uploads import Uploads

if TYPE_CHECKING:
    import torch


class FreezeError(Exception):
    """An object cannot be frozen; the message says which part of it, why, and what would be right.

    Its `__cause__` is what the part itself raised.

    Attributes:
        reason: the message without what would be right.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(f"{reason}. {advice}" if advice else reason)
        self.reason = reason


class Frozen:
    """A frozen object: its skeleton, the layout of its memory, and that memory until it is handed over.

    As long as this exists it keeps the original's memory alive, except after `repoint`.

    Attributes:
        skeleton: the pickle without its memory; `thaw` reads it.
        manifest: which regions the memory needs, and where in them each storage goes.
        modules: names of the modules that a thaw imports, in that order.
    """

    __slots__ = ("_in_files", "_pieces", "_tensors", "manifest", "modules", "skeleton")

    def __init__(
        self,
        skeleton: bytes,
        manifest: Manifest,
        modules: tuple[str, ...],
        pieces: Pieces,
        tensors: Sequence[tuple[torch.Tensor, int]],
        in_files: MappingOf[int, InFile],
    ) -> None:
        self.skeleton = skeleton
        self.manifest = manifest
        self.modules = modules
        self._pieces: Pieces | None = pieces
        self._tensors = tensors
        self._in_files = in_files

    def __repr__(self) -> str:
        return (
            f"<Frozen, skeleton of {len(self.skeleton):,} bytes, {len(self.manifest.storages)} storages of "
            f"{self.manifest.storage_bytes:,} bytes{', handed over' if self._pieces is None else ''}>"
        )

    @property
    def in_files_bytes(self) -> int:
        """How much of it stays in files."""
        return sum(self.manifest.storages[index].size_bytes for index in self._in_files)

    def fillings(
        self, files: OpenFiles, gpu: Gpu | None = None, casts: Casts | None = None
    ) -> list[Filling | str]:
        """Return what each region of the manifest is to hold; the path for one that is a file itself.

        Args:
            files: opens the files that contents lie in; they are read from as long as it is.
            gpu: that which it was frozen for.
            casts: what is to be cast on the way there.

        Raises:
            ValueError: the object was re-pointed already.
            OSError: a file cannot be read.
        """
        contents = (casts or Casts()).contents_of(list(self._held()), files)
        uploads = Uploads(gpu) if gpu is not None else None
        regions: list[Filling | str] = [
            Filling(size_bytes, [], uploads if index in self.manifest.on_device else None)
            for index, size_bytes in enumerate(self.manifest.region_sizes_bytes)
        ]
        for index, (entry, content) in enumerate(zip(self.manifest.storages, contents, strict=True)):
            region = regions[entry.region]
            if index in self._in_files:
                regions[entry.region] = self._in_files[index].path
            elif isinstance(region, Filling):
                region.contents.append((entry.offset_bytes, content))
        return regions

    def regions_by_address(self) -> dict[int, int]:
        """Return, by the address of each storage in this process, the region that it belongs into.

        Raises:
            ValueError: the object was re-pointed already.
        """
        entries = self.manifest.storages
        return {piece.address: at.region for piece, at in zip(self._held(), entries, strict=True)}

    def repoint(self, mappings: Sequence[Mapping]) -> int:
        """Point the original's tensors at the regions, so that the memory they had is released.

        Tensors stay the objects that they were, with their gradients' settings, ties and strides. A later
        write into one changes the pages of this process alone. Call it once they are filled, while
        nothing else uses the object; afterwards this holds none of its memory any more.

        Args:
            mappings: of the manifest's regions, filled, in their order.

        Returns:
            Bytes of storages that are still held: by arrays, by tensors that are not plain (quantized,
            sparse, subclasses with their own dispatch), or by tensors outside of the object.

        Raises:
            ValueError: the mappings do not fit the manifest, or the object was re-pointed already.
        """
        from torch.multiprocessing.reductions import StorageWeakRef

        _check_mappings(mappings, self.manifest)
        pieces = self._held()
        entries = self.manifest.storages
        copies = [storage_in(mappings[at.region], at.offset_bytes, at.size_bytes) for at in entries]
        for tensor, index in self._tensors:
            _point_at(tensor, copies[index])
        # What is still held is asked of torch, not derived: others may have tensors on the same storages.
        watched = [
            (piece.size_bytes, [StorageWeakRef(storage) for storage in piece.storages.values()])
            for piece in pieces
            if not piece.buffers
        ]
        held_bytes = sum(piece.size_bytes for piece in pieces if piece.buffers)
        self._pieces, self._tensors = None, ()
        del pieces
        for size_bytes, owners in watched:
            held_bytes += 0 if all(owner.expired() for owner in owners) else size_bytes
        return held_bytes

    def _held(self) -> Pieces:
        if self._pieces is None:
            raise ValueError("the object was re-pointed: its memory is no longer held here")
        return self._pieces


def freeze(obj: object, *, stay_in_files: bool = False, gpu: Gpu | None = None) -> Frozen:
    """Take an object apart into a skeleton and its memory, copying none of the latter.

    The object is not changed. It must not be, by another thread, until its regions are filled.

    Args:
        obj: anything that cloudpickle pickles, with tensors of the CPU, or of that GPU, anywhere inside.
        stay_in_files: leave what is mapped from a file where it is: the file is a region then. What is thawed
            computes what a process does that maps the file; where tensors lie off alignment in it, that can
            differ in the last bits from what is computed from a copy. Not with a GPU.
        gpu: where the tensors of modules shall be once it is thawed; what is there already stays there.

    Raises:
        FreezeError: a part of it cannot be pickled, or lies on another device.
    """
    stream = io.BytesIO()
    pickler = SkeletonPickler(stream, gpu and gpu.device)
    try:
        pickler.dump(obj)
    except MemoryError:
        raise
    except Exception as error:
        raise FreezeError(*_explain(error, pickler.last, obj)) from error
    sizes_and_roles: list[tuple[int, Role]] = [(piece.size_bytes, piece.role) for piece in pickler.pieces]
    in_files: dict[int, InFile] = {}
    if gpu is not None:
        manifest = Manifest.laid_out(sizes_and_roles, None, pickler.go_to_gpu(), gpu.grain_bytes)
    else:
        in_files = _places(pickler.pieces) if stay_in_files else {}
        manifest = Manifest.laid_out(sizes_and_roles, in_files)
    return Frozen(stream.getvalue(), manifest, tuple(pickler.modules), pickler.pieces, pickler.tensors, in_files)


def _places(pieces: Pieces) -> dict[int, InFile]:
    """Return which pieces lie in files."""
    places: dict[int, InFile] = {}
    for index, origin in enumerate(file_ranges((piece.address, piece.size_bytes) for piece in pieces)):
        if origin is not None:
            places[index] = InFile(origin.path, origin.offset_bytes, os.stat(origin.path).st_size)
    return places


def thaw(skeleton: bytes, manifest: Manifest, mappings: Sequence[Mapping | DeviceMemory]) -> Any:
    """Make a frozen object again, its memory being that of the mappings, without a copy.

    On a GPU storages that are not a parameter's are copied: they would be read-only, and models write there.

    This runs code that the skeleton names: see the top of this file for whose skeletons may come here.

    Args:
        skeleton: as `freeze` gave it.
        manifest: as `freeze` gave it.
        mappings: of the manifest's regions, in their order.

    Returns:
        The object. It keeps the mappings alive.

    Raises:
        ValueError: the mappings do not fit the manifest.
        ImportError: a module that the object needs is not installed here. Whatever else its classes raise
            comes through as well.
    """
    from torch._utils import _validate_loaded_sparse_tensors

    _check_mappings(mappings, manifest)
    thawed = SkeletonUnpickler(skeleton, manifest, mappings).load()
    # Torch keeps every sparse tensor that it rebuilds in a list until they are validated, as torch.load does
    # at its end; without this they, and the mappings with them, would live for ever.
    _validate_loaded_sparse_tensors()
    return thawed


def _point_at(tensor: torch.Tensor, copy: torch.UntypedStorage) -> None:
    import torch

    # A tensor born in inference mode can be changed only there, any other only outside.
    with torch.inference_mode(tensor.is_inference()), torch._C.DisableTorchFunctionSubclass():
        try:
            tensor.data = view_like(tensor, copy)
        except (RuntimeError, TypeError):
            # Torch guards this tensor. It stays where it is, and is counted because its storage lives on.
            return


def _check_count(what: str, given: Sequence[object], manifest: Manifest) -> None:
    needed = len(manifest.region_sizes_bytes)
    if len(given) != needed:
        raise ValueError(f"{len(given)} {what}s were given; the manifest has {needed}")


def _check_mappings(mappings: Sequence[Mapping | DeviceMemory], manifest: Manifest) -> None:
    _check_count("mapping", mappings, manifest)
    for index, (mapping, size_bytes) in enumerate(zip(mappings, manifest.region_sizes_bytes, strict=True)):
        if len(mapping) < size_bytes:
            raise ValueError(f"mapping {index} has {len(mapping)} bytes; its region has {size_bytes}")


def _explain(error: Exception, part: object, root: object) -> tuple[str, ...]:
    """Return the reason, and what would be right where that is not part of it."""
    kind = f"{type(part).__module__}.{type(part).__qualname__}".removeprefix("builtins.")
    path = path_to(part, root, "model")
    where = f"{path} (a {kind})" if path else f"a {kind} somewhere inside of it"
    if path == "model":
        where = f"the model itself (a {kind})"
    if isinstance(error, WrongDeviceError):
        return (f"the model cannot be frozen because of {where}: {error}",)
    advice = "leave it out in __getstate__ and make it anew in __setstate__, or hand over a factory that builds"
    return (
        f"the model cannot be frozen because of {where}: {error}",
        f"Let the object that holds it {advice} the model",
    )
