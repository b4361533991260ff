"""Freeze and thaw: an object becomes a skeleton and memory that can be shared, and an object again.

::

    freeze(object) ──► Frozen ── .skeleton, .modules ──────────────► thaw(skeleton, manifest, mappings)
                         │  └─── .manifest: what regions it needs                      │
                         ├────── .write(fds): fills them                               ▼
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
import mmap
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .culprit import path_to
from .manifest import Manifest
from .mapping import storage_in
from .pieces import Pieces, WrongDeviceError
from .skeleton import SkeletonPickler, SkeletonUnpickler, view_like

if TYPE_CHECKING:
    import torch

MAX_WRITE_BYTES = 1 << 30
"""The kernel writes at most 2 GiB less a page at once; rounder pieces keep pages whole."""


class FreezeError(Exception):
    """An object cannot be frozen; the message says which part of it, why, and what would be right.

    Its `__cause__` is what the part itself raised.
    """


class Frozen:
    """A frozen object: its skeleton, the layout of its memory, and that memory until it is handed over.

    As long as this exists it keeps the original's memory alive, except after `repoint`.

    Attributes:
        skeleton: the pickle without its memory; `thaw` reads it.
        manifest: which regions the memory needs, and where in them each storage goes.
        modules: names of the modules that a thaw imports, in that order.
    """

    __slots__ = ("_pieces", "_tensors", "manifest", "modules", "skeleton")

    def __init__(
        self,
        skeleton: bytes,
        manifest: Manifest,
        modules: tuple[str, ...],
        pieces: Pieces,
        tensors: Sequence[tuple[torch.Tensor, int]],
    ) -> None:
        self.skeleton = skeleton
        self.manifest = manifest
        self.modules = modules
        self._pieces: Pieces | None = pieces
        self._tensors = tensors

    def __repr__(self) -> str:
        return (
            f"<Frozen, skeleton of {len(self.skeleton):,} bytes, {len(self.manifest.storages)} storages of "
            f"{self.manifest.storage_bytes:,} bytes{', handed over' if self._pieces is None else ''}>"
        )

    def write(self, fds: Sequence[int]) -> None:
        """Write the memory into its regions.

        The kernel copies, from where the memory lies; nothing is mapped, because a region with a writable
        shared mapping cannot be sealed.

        Args:
            fds: one region per size in `manifest.region_sizes_bytes`, in that order, at least that large.

        Raises:
            ValueError: `fds` are too few or too many, or the object was re-pointed already.
            OSError: the kernel refused; a region that is sealed gives `PermissionError`.
        """
        _check_count("region", fds, self.manifest)
        for entry, piece in zip(self.manifest.storages, self._held(), strict=True):
            _write_all(fds[entry.region], entry.offset_bytes, piece.view())

    def repoint(self, mappings: Sequence[mmap.mmap]) -> int:
        """Point the original's tensors at the regions, so that the memory they had is released.

        Tensors stay the objects that they were, with their gradients' settings, ties and strides. A later
        write into one changes the pages of this process alone. Call it after `write`, while nothing else
        uses the object; afterwards this holds none of its memory any more.

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


def freeze(obj: object) -> Frozen:
    """Take an object apart into a skeleton and its memory, copying none of the latter.

    The object is not changed. It must not be, by another thread, until `Frozen.write` has returned.

    Args:
        obj: anything that cloudpickle pickles, with tensors of the CPU anywhere inside.

    Raises:
        FreezeError: a part of it cannot be pickled, or lies on another device.
    """
    stream = io.BytesIO()
    pickler = SkeletonPickler(stream)
    try:
        pickler.dump(obj)
    except MemoryError:
        raise
    except Exception as error:
        raise FreezeError(_explain(error, pickler.last, obj)) from error
    manifest = Manifest.packed((piece.size_bytes, piece.role) for piece in pickler.pieces)
    return Frozen(stream.getvalue(), manifest, tuple(pickler.modules), pickler.pieces, pickler.tensors)


def thaw(skeleton: bytes, manifest: Manifest, mappings: Sequence[mmap.mmap]) -> Any:
    """Make a frozen object again, its memory being that of the mappings, without a copy.

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


def _write_all(fd: int, offset_bytes: int, memory: memoryview) -> None:
    while memory:
        written_bytes = os.pwrite(fd, memory[:MAX_WRITE_BYTES], offset_bytes)
        offset_bytes += written_bytes
        memory = memory[written_bytes:]


def _check_count(what: str, given: Sequence[object], manifest: Manifest) -> None:
    needed = len(manifest.region_sizes_bytes)
    if len(given) != needed:
        raise ValueError(f"{len(given)} {what}s were given; the manifest has {needed}")


def _check_mappings(mappings: Sequence[mmap.mmap], manifest: Manifest) -> None:
    _check_count("mapping", mappings, manifest)
    for index, (mapping, size_bytes) in enumerate(zip(mappings, manifest.region_sizes_bytes, strict=True)):
        if len(mapping) < size_bytes:
            raise ValueError(f"mapping {index} has {len(mapping)} bytes; its region has {size_bytes}")


def _explain(error: Exception, part: object, root: object) -> str:
    kind = f"{type(part).__module__}.{type(part).__qualname__}".removeprefix("builtins.")
    path = path_to(part, root, "model")
    where = f"{path} (a {kind})" if path else f"a {kind} somewhere inside of it"
    if path == "model":
        where = f"the model itself (a {kind})"
    if isinstance(error, WrongDeviceError):
        return f"the model cannot be frozen because of {where}: {error}"
    return (
        f"the model cannot be frozen because of {where}: {error}. Let the object that holds it leave it out "
        f"in __getstate__ and make it anew in __setstate__, or hand over a factory that builds the model"
    )
