"""The pickle of an object with its memory taken out, and the object made again around other memory.

Pickling visits every tensor of an object, wherever it hides: in a module, a closure, a cache of a tokenizer.
Each is written as a *view*: dtype, shape, strides and the index of the storage it looks into. Storages are
what is shared, never tensors; so tied weights stay tied and a view into a weight stays a view into it. Large
contiguous arrays of numpy hand out their memory through the buffer protocol and take the same way.

::

    Parameter ─┐                      Parameter ─┐
    Tensor ────┼─► storage 0  ═══►    Tensor ────┼─► index 0 ─► wherever the manifest says it lies now
    ndarray ───┘                      ndarray ───┘

A skeleton is a pickle, and unpickling runs code. Skeletons come from our own loader process, or from the
application that owns the pool or runs as the same user, over a unix socket whose peer the kernel named.
Nothing that arrived over ZeroMQ may ever be passed to `SkeletonUnpickler`.
"""

from __future__ import annotations

import io
import pickle
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import cloudpickle

from .gpu import DeviceMemory
from .manifest import Manifest
from .mapping import Mapping, buffer_in, storage_in
from .pieces import Pieces, check_device
from .reducers import Homes, at_home, reduce_module

if TYPE_CHECKING:
    import torch

ARRAY_BYTES = 64 * 1024
"""Smaller arrays stay inside the skeleton: an entry in the manifest would cost more than it shares."""


class SkeletonPickler(cloudpickle.Pickler):
    """Writes a skeleton and notes the memory, the tensors and the imports that it met.

    Args:
        file: where the skeleton goes.
        gpu: where tensors may be, besides the CPU.

    Attributes:
        pieces: the memory.
        tensors: every tensor that can be pointed at other memory, with the number of its piece.
        modules: names of modules that reading the skeleton imports, in the order in which it does.
        last: the object that was being reduced last: where pickling failed, most likely why.
    """

    def __init__(self, file: io.BytesIO, gpu: torch.device | None = None) -> None:
        import torch

        super().__init__(file, protocol=5)
        self._gpu = gpu
        self._registered: set[int] = set()
        self.pieces = Pieces(gpu)
        self.tensors: list[tuple[torch.Tensor, int]] = []
        self.modules: dict[str, None] = {}
        self.last: object = None
        self._homes = Homes()
        self._torch = torch
        self._out_of_band = {torch.UntypedStorage, torch.TypedStorage, pickle.PickleBuffer}

    def persistent_id(self, obj: Any, /) -> tuple[object, ...] | None:
        """Take memory out of the stream. Called for every object, so it decides most of them at once."""
        if type(obj) not in self._out_of_band:
            return None
        self.last = obj
        if isinstance(obj, pickle.PickleBuffer):
            raw = obj.raw()
            if raw.nbytes < ARRAY_BYTES:
                return None
            return "buffer", self.pieces.add_buffer(raw), raw.readonly
        if isinstance(obj, self._torch.TypedStorage):
            # Torch wraps storages like this where it reduces tensors that are not plain, quantized ones say.
            return "typed", self.pieces.add_storage(obj._untyped_storage), obj.dtype
        return "untyped", self.pieces.add_storage(obj), None

    def reducer_override(self, obj: Any) -> Any:
        """Reduce tensors and parametrized modules our own way, everything else as cloudpickle does."""
        self.last = obj
        if issubclass(type(obj), self._torch.Tensor):
            return self._reduce_tensor(obj)
        if issubclass(type(obj), self._torch.nn.Module):
            if self._gpu is not None:
                self._note_registered(obj)
            reduced = reduce_module(obj)
            if reduced is not None:
                return reduced
        reduced = super().reducer_override(obj)
        if isinstance(obj, types.ModuleType) or reduced is NotImplemented:
            self._note_import(obj)
        elif isinstance(obj, types.FunctionType) and self._homes.has(obj.__globals__):
            self.modules.setdefault(obj.__globals__["__name__"])
            reduced = at_home(obj, reduced)
        return reduced

    def _reduce_tensor(self, tensor: torch.Tensor) -> Any:
        from torch import _utils

        torch = self._torch
        with torch._C.DisableTorchFunctionSubclass():
            if not tensor.is_meta:  # which has no memory: its shape is all there is
                check_device(tensor.device, self._gpu)
            if not is_plain(tensor):
                # Torch takes it apart: into storages, or into inner tensors that come back here.
                return NotImplemented
            storage = tensor.untyped_storage()
            index = self.pieces.add_storage(storage)
            if index is not None:
                if isinstance(tensor, torch.nn.Parameter):
                    self.pieces[index].role = "parameter"
                self.tensors.append((tensor, index))
                if tensor._base is not None:  # a view keeps the tensor alive that it was taken from
                    self.tensors.append((tensor._base, index))
            arguments = (
                type(tensor),
                storage,
                tensor.dtype,
                int(tensor.storage_offset()),
                tuple(tensor.size()),
                tensor.stride(),
                tensor.requires_grad,
                _utils.get_tensor_metadata(tensor) or None,
            )
            state = _utils._get_obj_state(tensor)
        if not state:
            return _rebuild_tensor, arguments
        return _rebuild_tensor, arguments, state, None, None, _set_tensor_state

    def go_to_gpu(self) -> set[int]:
        """Return the numbers of the pieces that belong on the GPU: those that are there, and those of modules.

        What an array looks into stays where the processor can use it.
        """
        return {
            number
            for number, piece in enumerate(self.pieces)
            if piece.is_on_gpu or (piece.address in self._registered and not piece.buffers)
        }

    def _note_registered(self, module: torch.nn.Module) -> None:
        """Note what would go along if the module were moved to another device."""
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and is_plain(tensor):
                self._registered.add(tensor.untyped_storage().data_ptr())

    def _note_import(self, obj: Any) -> None:
        """Note the module of what is written by name: a class or function that is not written by value."""
        if isinstance(obj, types.ModuleType):
            name = obj.__name__
        elif isinstance(obj, type | types.FunctionType | types.BuiltinFunctionType):
            name = pickle.whichmodule(obj, obj.__qualname__)  # type: ignore[attr-defined]
        else:
            return
        if name not in ("__main__", "builtins"):
            self.modules.setdefault(name)


class SkeletonUnpickler(pickle.Unpickler):
    """Makes the object of a skeleton again, its memory being that of mappings.

    Args:
        skeleton: what `SkeletonPickler` wrote. Reading it runs code: see the top of this file.
        manifest: where each of its storages lies.
        mappings: of the manifest's regions, in their order.
    """

    def __init__(self, skeleton: bytes, manifest: Manifest, mappings: Sequence[Mapping | DeviceMemory]) -> None:
        super().__init__(io.BytesIO(skeleton))
        self._entries = manifest.storages
        self._mappings = mappings
        self._storages: dict[int, torch.UntypedStorage] = {}

    def load(self) -> Any:
        """Read the skeleton, and return the object.

        In inference mode too its tensors are ordinary ones: what was born there requires no gradient, and
        kernels choose the order of their sums by that.
        """
        import torch

        with torch.inference_mode(False):
            return super().load()

    def persistent_load(self, pid: Any, /) -> Any:
        """Put memory back in the place of a persistent id."""
        import torch

        kind, index, detail = cast("tuple[str, int | None, Any]", pid)
        if kind == "buffer":
            assert index is not None, "only buffers of some size leave the stream"
            entry = self._entries[index]
            mapping = self._mappings[entry.region]
            assert not isinstance(mapping, DeviceMemory), "the memory of arrays is the processor's"
            buffer = buffer_in(mapping, entry.offset_bytes, entry.size_bytes)
            return buffer.toreadonly() if detail else buffer
        storage = self._storage(index)
        if kind == "typed":
            return torch.TypedStorage(wrap_storage=storage, dtype=detail, _internal=True)
        return storage

    def _storage(self, index: int | None) -> torch.UntypedStorage:
        if index is None:
            import torch

            return torch.UntypedStorage(0)
        # Made once each: what shared a storage before shares one again.
        if index not in self._storages:
            entry = self._entries[index]
            mapping = self._mappings[entry.region]
            storage = storage_in(mapping, entry.offset_bytes, entry.size_bytes)
            if isinstance(mapping, DeviceMemory) and entry.role == "mutable":
                storage = storage.clone()  # what a model may write into: there no page becomes one's own by that
            self._storages[index] = storage
        return self._storages[index]


def view_like(tensor: torch.Tensor, storage: torch.UntypedStorage) -> torch.Tensor:
    """Return what a plain tensor would be if it looked into another storage."""
    from torch import _utils

    bits = _utils.get_tensor_metadata(tensor)
    return _view(storage, tensor.dtype, int(tensor.storage_offset()), tensor.size(), tensor.stride(), bits)


def _view(
    storage: torch.UntypedStorage,
    dtype: torch.dtype,
    offset: int,
    size: Sequence[int],
    stride: Sequence[int],
    bits: dict[str, bool] | None,
) -> torch.Tensor:
    import torch
    from torch import _utils

    # The device is named because a default device may be set where an object is thawed.
    tensor = torch.empty(0, dtype=dtype, device=storage.device).set_(storage, offset, tuple(size), tuple(stride))
    if bits:  # lazy conjugation and negation
        _utils.set_tensor_metadata(tensor, bits)
    return tensor


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a strided view of one storage and lets torch pickle it."""
    import torch

    cls: Any = type(tensor)
    base: Any = torch.Tensor
    return (
        not tensor.is_meta
        and tensor.layout is torch.strided
        and not tensor.is_quantized
        and not tensor.is_nested
        and cls.__torch_dispatch__ is base.__torch_dispatch__
        and cls.__reduce_ex__ in (base.__reduce_ex__, torch.nn.Parameter.__reduce_ex__)
    )


# The functions below are named by skeletons: they are called when one is read.


def _rebuild_tensor(
    cls: type[torch.Tensor],
    storage: torch.UntypedStorage,
    dtype: torch.dtype,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
    bits: dict[str, bool] | None,
) -> torch.Tensor:
    import torch

    tensor = _view(storage, dtype, offset, size, stride, bits)
    if issubclass(cls, torch.nn.Parameter):
        # What Parameter itself does, without running the `__new__` of a class derived from it.
        return torch.Tensor._make_subclass(cls, tensor, requires_grad)
    if cls is not torch.Tensor:
        tensor = tensor.as_subclass(cls)
    return tensor.requires_grad_() if requires_grad else tensor


def _set_tensor_state(tensor: torch.Tensor, state: Any) -> None:
    """Give a tensor its Python attributes back.

    Torch's own `__setstate__` reads only an ancient format; that of a class derived from it reads what its
    own `__getstate__` wrote.
    """
    import torch
    from torch import _utils

    if type(tensor).__setstate__ is torch.Tensor.__setstate__:
        _utils._set_obj_state(tensor, state)
    else:
        tensor.__setstate__(state)
