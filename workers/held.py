"""A weight set in a worker: mapped when it comes, thawed when it is first run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from ..protocol.errors import LoadFailed, ModelNotFound, PoolError
from ..protocol.manifest import Manifest
from ..protocol.mapping import Mapping, map_region
from ..protocol.messages import BuildModel, Thaw, Thawed
from . import heap
from .failure import record_of
from .opaque import opaque_parts
from .paths import extend_path


class HeldModel:
    """A model as a worker has it.

    Args:
        order: what came from the supervisor.
        fds: its regions; closed once they are mapped.
        thawed: called with what is to be told when the model is there.
    """

    def __init__(self, order: Thaw, fds: list[int], thawed: Callable[[Thawed], None]) -> None:
        self.name = order.model
        self.grad = bool(order.options.get("grad"))
        self._order: Thaw | None = order
        self._thawed = thawed
        self._manifest = Manifest.from_wire(order.manifest)
        self._model: Any = None
        self._error: PoolError | None = None
        self.mappings: list[Mapping] = []
        for fd, size_bytes in zip(fds, self._manifest.region_sizes_bytes, strict=True):
            self.mappings.append(map_region(fd, size_bytes))
            os.close(fd)

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
        seconds = time.perf_counter() - started_at
        self._thawed(Thawed(order.weight_set, seconds, private_bytes, opaque_parts(model)))
        return model

    def _made(self, order: Thaw) -> Any:
        from ..protocol.frozen import thaw

        thawed = thaw(order.skeleton, self._manifest, self.mappings)
        if not order.recipe:
            return thawed
        from .rebuilding import point_at
        from .sources import build

        source, manifest, pickled = order.recipe
        model = build(BuildModel(order.model, source, order.options, manifest, pickled, order.paths)).model
        point_at(model, thawed)
        heap.trim()  # what it was built with
        return model
