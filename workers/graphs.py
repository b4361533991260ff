"""CUDA graphs of a model's calls: what a call tells the GPU is recorded once, and then told at once.

::

    first call of a kind      made as it is: libraries take what they need
    second                    recorded, with inputs and results at places of their own, and replayed
    from then on              inputs are copied to their places, the graph is replayed, results are read

Calls are of one kind if they differ in nothing but what is in their tensors: a graph has everything else built in,
numbers and texts too. What cannot be recorded is made as it is, and the log says why. What a graph computes with
lies in memory of its own, in no slot.

None of this has run on a card yet. `Recorder` is the seam: all that is asked of torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final, Protocol, cast

import torch

from .cuda_errors import lost_by
from .nested import PLAIN, changed

#: So many kinds of calls of a model are told apart in a worker; others are made as they are.
MOST_KINDS: Final = 16


class Recorder(Protocol):
    """Records what is told to the GPU."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Do something without the GPU doing any of it; return what has the GPU do it, in order with all else.

        What is allocated meanwhile lies in memory that stays as it is for as long as something refers to it, or
        to what is returned.

        Raises:
            RuntimeError: it waits for the GPU, or does something else that cannot be recorded.
        """
        ...


class TorchRecorder:
    """Records with torch; all graphs of one recorder share their memory, as they never run at the same time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder.record`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        return graph.replay


class _Unlike(Exception):
    """A value is of no kind: what is in it decides what is done."""


class _Graph:
    """A call that was recorded.

    Args:
        recorder: records it.
        function: what is called.
        args, kwargs: of a call of its kind.

    Raises:
        RuntimeError: it cannot be recorded. What else the call raises, it raises as it is.
    """

    def __init__(
        self,
        recorder: Recorder,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        self._inputs: list[torch.Tensor] = []
        self._result: Any = None

        def place(tensor: torch.Tensor) -> torch.Tensor:
            self._inputs.append(torch.empty_like(tensor))
            return self._inputs[-1]

        failed: list[BaseException] = []

        def work() -> None:
            placed_args, placed_kwargs = changed((tuple(args), dict(kwargs)), place)
            try:
                self._result = function(*placed_args, **placed_kwargs)
            except BaseException as error:
                failed.append(error)
                raise

        try:
            self._replay = recorder.record(work)
        except RuntimeError:
            if failed and not isinstance(failed[0], RuntimeError):
                raise failed[0] from None  # that the recording was given up, too, is a consequence
            raise

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Compute with these; the result is good until the next call."""
        for place, given in zip(self._inputs, _tensors_in((tuple(args), dict(kwargs))), strict=True):
            place.copy_(given)
        self._replay()
        return self._result


class Graphs:
    """The graphs of one model in one worker.

    Args:
        name: the model's.
        recorder: records calls.
    """

    def __init__(self, name: str, recorder: Recorder) -> None:
        self._name = name
        self._recorder = recorder
        #: By kind: None before the second call; False: calls of it are made as they are.
        self._kinds: dict[Hashable, _Graph | bool | None] = {}

    def around(self, method: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same; its results have to be read before it is called again."""

        def call(*args: Any, **kwargs: Any) -> Any:
            kind = _kind_of_call(method, args, kwargs)
            if kind is None or (kind not in self._kinds and len(self._kinds) >= MOST_KINDS):
                return function(*args, **kwargs)
            if kind not in self._kinds:
                return self._first(kind, function, args, kwargs)
            graph = self._kinds[kind]
            if graph is None:
                graph = self._kinds[kind] = self._recorded(method, function, args, kwargs) or False
            return graph(args, kwargs) if isinstance(graph, _Graph) else function(*args, **kwargs)

        return call

    def _first(self, kind: Hashable, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        self._kinds[kind] = None
        try:
            _kind_of(result)
        except _Unlike:  # such as an iterator, which would be the same, and at its end, the next time
            self._kinds[kind] = False
        return result

    def _recorded(self, method: str, function: Callable[..., Any], args: Any, kwargs: Any) -> _Graph | None:
        try:
            return _Graph(self._recorder, function, args, kwargs)
        except RuntimeError as error:
            if lost_by(error):
                raise
            text = f"{self._name}: calls of {method} with such inputs are made without a CUDA graph: {error}"
            print(text, file=sys.stderr)  # noqa: T201 - what is printed goes to the log
            return None


def _kind_of_call(method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable:
    """Return what calls that one graph can make have in common; None: this one has to be made as it is."""
    try:
        kind = _kind_of((tuple(args), dict(kwargs)))
    except (_Unlike, RecursionError):
        return None
    return method, kind


def _kind_of(value: Any) -> Hashable:
    """Return all of a value but what is in its tensors.

    Raises:
        _Unlike: it has parts of other types, an array of NumPy for one, which stays on the host.
    """
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        return torch.Tensor, value.dtype, tuple(value.shape), value.stride(), value.device
    if type(value) in PLAIN:
        return type(value), repr(value) if isinstance(value, float | complex) else value  # 0.0 is not -0.0
    if isinstance(value, list | tuple):
        items = cast("Sequence[Any]", value)
        return type(value), tuple(map(_kind_of, items))
    if isinstance(value, dict):
        table = cast("dict[Any, Any]", value)
        return type(value), tuple((_kind_of(key), _kind_of(one)) for key, one in table.items())
    raise _Unlike


def _tensors_in(value: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def find(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    changed(value, find)
    return found
