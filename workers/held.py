"""A weight set in a process: mapped when it comes, thawed when it is first run or before workers are forked."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ..protocol.channel import Channel
from ..protocol.errors import LoadFailed, ModelNotFound, PoolError
from ..protocol.gpu import DeviceMemory, Gpu
from ..protocol.manifest import Manifest
from ..protocol.mapping import MAP_NORESERVE
from ..protocol.messages import BuildModel, Thaw, Thawed, ThawFailed
from ..protocol.regions import closing, copied_bytes, map_regions, settle_on
from . import heap
from .failure import record_of
from .opaque import opaque_parts
from .paths import extend_path

if TYPE_CHECKING:
    from .batches import Batching
    from .graphs import Graphs

#: From ``<bits/mman.h>``; `mmap` lacks its name.
_MAP_FIXED: Final = 0x10
_FAILED: Final = ctypes.c_void_p(-1).value


class HeldModel:
    """A model as a process has it.

    Args:
        order: what came from the supervisor.
        fds: its regions; closed once they are mapped.
        thawed: called with what is to be told when the model is there.
        gpu: the one that it is on, if it is.
    """

    def __init__(
        self, order: Thaw, fds: list[int], thawed: Callable[[Thawed], None], gpu: Gpu | None = None
    ) -> None:
        self.name = order.model
        self.grad = bool(order.options.get("grad"))
        self.is_strict = order.options.get("on_overflow") == "error"
        self._options = order.options
        self._order: Thaw | None = order
        self._thawed = thawed
        self._gpu = gpu
        self._manifest = Manifest.from_wire(order.manifest)
        self._model: Any = None
        self._error: PoolError | None = None
        with closing(fds):
            self.mappings = map_regions(fds, self._manifest, gpu)

    def model(self) -> Any:
        """Return the model.

        Raises:
            LoadFailed: it cannot be thawed; the same each time it is asked for.
        """
        if self._error is not None:
            raise self._error
        if self._order is not None:
            self._model = self._thaw(self._order)
            self._order = None
        return self._model

    def method(self, name: str) -> Callable[..., Any]:
        """Return what a request calls.

        Raises:
            ModelNotFound: the model has no such method.
        """
        model = self.model()
        if name == "__call__" and callable(model):
            return model
        if name.startswith("_") and name != "__call__":
            raise ModelNotFound(f"{self.name}: {name!r} is private; only public methods can be called")
        found = getattr(model, name, None)
        if not callable(found):
            kind = type(model).__name__
            raise ModelNotFound(f"{self.name} ({kind}) has no method {name!r}")
        return found

    @functools.cached_property
    def batching(self) -> Batching:
        """How its calls are batched."""
        from .batches import Batching  # it imports torch, which a zygote must not do at once

        return Batching(self.name, self._options, self.method)

    @functools.cached_property
    def graphs(self) -> Graphs | None:
        """What makes its calls of CUDA graphs; None where they are made as they are."""
        if self._gpu is None or not self._options.get("cuda_graph") or self._gpu.device.type != "cuda":
            return None
        from .graphs import Graphs, TorchRecorder, refusal

        if why := refusal():
            print(f"{self.name}: calls are made without CUDA graphs: {why}", file=sys.stderr)  # noqa: T201 - to the log
            return None
        return Graphs(self.name, TorchRecorder(self._gpu.device))

    def let_go(self) -> None:
        """Give the regions back, although the model goes on referring to them: who touches it from now on dies.

        For a forked process that never will. Its addresses are not used again.

        Raises:
            OSError: the kernel refused.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [
            ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
        ]  # fmt: skip
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE | _MAP_FIXED
        for mapping in self.mappings:
            assert not isinstance(mapping, DeviceMemory), "a process that forks has mapped memory of a GPU"
            if libc.mmap(ctypes.addressof(mapping), len(mapping), 0, flags, -1, 0) == _FAILED:
                code = ctypes.get_errno()
                raise OSError(code, f"cannot let go of {len(mapping)} bytes: {os.strerror(code)}")

    def _thaw(self, order: Thaw) -> Any:
        heap.trim()  # or what the model takes would come out of memory that is counted already
        started_at, before_bytes = time.perf_counter(), heap.anonymous_bytes()
        extend_path(order.paths)
        try:
            model = self._made(order)
        except BaseException as error:
            self._error = LoadFailed("")
            record = record_of(error, LoadFailed, f"{self.name} cannot be thawed")
            self._error.message, self._error.details = record["message"], record["details"]
            raise self._error from error
        private_bytes = max(0, heap.anonymous_bytes() - before_bytes)
        if self._gpu is not None:
            private_bytes = copied_bytes(self._manifest)
        seconds = time.perf_counter() - started_at
        self._thawed(Thawed(order.weight_set, seconds, private_bytes, opaque_parts(model)))
        return model

    def _made(self, order: Thaw) -> Any:
        from ..protocol.frozen import thaw

        thawed = thaw(order.skeleton, self._manifest, self.mappings)
        if self._gpu is not None:
            settle_on(self._gpu, thawed)
        if not order.recipe:
            return thawed
        from .rebuilding import point_at
        from .sources import build

        source, manifest, pickled = order.recipe
        model = build(BuildModel(order.model, source, order.options, manifest, pickled, order.paths)).model
        point_at(model, thawed)
        heap.trim()  # what it was built with
        return model


def thaw_to_fork(order: Thaw, fds: list[int]) -> tuple[HeldModel, Thawed]:
    """Thaw a model in a process that must stay fit to fork, and return it with what is to be told.

    Raises:
        LoadFailed: it cannot be thawed, or that leaves a thread, so that this process must never fork again.
    """
    import torch

    before = threads()
    told: list[Thawed] = []
    parallel = torch.get_num_threads()
    torch.set_num_threads(1)  # or what computes while it thaws would start some
    try:
        held = HeldModel(order, fds, told.append)
        held.model()
    except (OSError, ValueError) as error:
        raise LoadFailed(f"{order.model} cannot be mapped: {error}") from error
    finally:
        torch.set_num_threads(parallel)
    if threads() > before:
        raise LoadFailed("to thaw it starts a thread, and a process with threads must not fork")
    return held, told[0]


def rehearse(channel: Channel) -> None:
    """Be a throwaway fork: thaw the model of the first message as the zygote would, tell how that went, end."""
    delivery = channel.receive()
    if delivery is None or not isinstance(delivery.message, Thaw):
        return
    answer: Thawed | ThawFailed
    try:
        _, answer = thaw_to_fork(delivery.message, delivery.fds)
    except PoolError as error:
        answer = ThawFailed(delivery.message.weight_set, error.to_record())
    channel.send(answer)


def threads() -> int:
    """Return how many threads this process has."""
    return len(os.listdir("/proc/self/task"))
