"""CUDA graphs of a model's calls: what a call tells the GPU is recorded once, and then told at once.

::

    first call of a kind      made as it is: libraries take what they need
    second                    recorded, with inputs and results at places of their own, and replayed
    from then on              inputs are copied to their places, the graph is replayed, results are read

Calls are of one kind if they differ in nothing but what is in their tensors: a graph has everything else built in,
numbers and texts too. What cannot be recorded is made as it is, and so is what was recorded with a tensor that is
gone; the log says why. What a graph computes with lies in memory of its own, in no slot.

None of this has run on a card yet. `Recorder` is the seam: all that is asked of torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import sys
from collections import UserDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final, Protocol, cast

import torch

from .cuda_errors import lost_by
from .nested import PLAIN, changed

#: So many kinds of calls of a model are told apart in a worker; others are made as they are.
MOST_KINDS: Final = 16


class Recorder(Protocol):
    """Records what is told to the GPU.

    Attributes:
        device: which.
    """

    device: torch.device

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Do something without the GPU doing any of it; return what has the GPU do it, in order with all else.

        What is allocated meanwhile lies in memory that stays as it is for as long as something refers to it, or
        to what is returned. That raises a RuntimeError where it needs a tensor that was there before, and is gone.

        Raises:
            RuntimeError: it waits for the GPU, or does something else that cannot be recorded.
        """
        ...


def refusal() -> str:
    """Return why nothing can be recorded with this torch; empty if it can.

    Before 2.13, torch does not look whether tensors of a recording are gone, and takes the memory of recordings
    that are made in a slot out of the slot, where others would write into it.
    """
    if "check_input_liveness" in inspect.signature(torch.cuda.graph).parameters:
        return ""
    return f"recording takes torch 2.13, and this is {torch.__version__}"


class TorchRecorder:
    """Records with torch; all graphs of one recorder share their memory, as they never run at the same time.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder.record`."""
        graph = torch.cuda.CUDAGraph()
        capture = torch.cuda.graph(
            graph, pool=self._pool, capture_error_mode="thread_local", check_input_liveness=True
        )
        try:
            # `torch.cuda.graph` does not go back to the stream it came from if the end of a recording fails.
            with (
                torch.cuda.device(self.device),
                torch.cuda.stream(torch.cuda.current_stream(self.device)),
                capture,
            ):
                work()
        except BaseException:
            self._leave_pool()
            raise
        return graph.replay

    def _leave_pool(self) -> None:
        """Take another pool: torch may think that it still records into this one."""
        with contextlib.suppress(RuntimeError):  # it does not
            torch._C._cuda_endAllocateToPool(self.device.index, self._pool)
        self._pool = torch.cuda.graph_pool_handle()


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
            kind = self._kind_of(method, args, kwargs)
            if kind is None or not self._has_room(kind):
                return function(*args, **kwargs)
            if kind not in self._kinds:
                result = function(*args, **kwargs)
                self._kinds[kind] = None if _is_read_whole(result, self._recorder.device) else False
                return result
            graph = self._kinds[kind]
            try:
                if graph is None:
                    graph = self._kinds[kind] = _Graph(self._recorder, function, args, kwargs)
                if isinstance(graph, _Graph):
                    return graph(args, kwargs)
            except RuntimeError as error:
                return self._without(kind, error, lambda: function(*args, **kwargs))
            return function(*args, **kwargs)

        return call

    def _without(self, kind: Hashable, error: RuntimeError, call: Callable[[], Any]) -> Any:
        """Make a call as it is, and all others of its kind, unless that does not work either."""
        if lost_by(error):
            raise error
        self._kinds[kind] = None
        result = call()
        self._kinds[kind] = False
        why = str(error).strip().partition("\n")[0]
        text = f"{self._name}: calls with such inputs are made without a CUDA graph from now on: {why}"
        print(text, file=sys.stderr)  # noqa: T201 - what is printed goes to the log
        return result

    def _has_room(self, kind: Hashable) -> bool:
        """Return whether a kind is known, or can be: those that came once only make room."""
        if kind in self._kinds or len(self._kinds) < MOST_KINDS:
            return True
        once = next((one for one, graph in self._kinds.items() if graph is None), None)
        if once is not None:
            del self._kinds[once]
        return once is not None

    def _kind_of(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable:
        """Return what calls that one graph can make have in common; None: this one has to be made as it is."""
        try:
            return method, _kind_of((tuple(args), dict(kwargs)), self._recorder.device)
        except (_Unlike, RecursionError):
            return None


def _kind_of(value: Any, device: torch.device) -> Hashable:
    """Return all of a value but what is in its tensors.

    Raises:
        _Unlike: it has parts of other types, an array of NumPy for one, or that are elsewhere.
    """
    kind = type(value)
    if kind is torch.Tensor and value.layout == torch.strided and value.device == device:
        return kind, value.dtype, tuple(value.shape), value.stride()
    if kind in PLAIN:
        return kind, repr(value) if isinstance(value, float | complex) else value  # 0.0 is not -0.0
    if kind is list or kind is tuple:
        return kind, tuple(_kind_of(one, device) for one in value)
    if kind is dict:
        return kind, tuple((_kind_of(key, device), _kind_of(one, device)) for key, one in value.items())
    raise _Unlike


def _is_read_whole(result: Any, device: torch.device) -> bool:
    """Return whether nothing of a result is left where the next call of a graph would write over it.

    What is fetched is what `changed` finds. An iterator would be the same, and at its end, the next time.
    """
    kind = type(result)
    if kind in PLAIN:
        return True
    if isinstance(result, torch.Tensor):
        return result.layout == torch.strided and result.device == device
    if kind not in (list, tuple) and changed(result, _same) is result:  # it is not looked into
        return False
    if isinstance(result, Mapping | UserDict):
        parts: Any = cast("Mapping[Any, Any]", result).values()
    elif dataclasses.is_dataclass(result):
        parts = [getattr(result, field.name) for field in dataclasses.fields(result)]
    else:
        parts = result
    return all(_is_read_whole(part, device) for part in parts)


def _same(tensor: Any) -> Any:
    return tensor


def _tensors_in(value: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def find(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    changed(value, find)
    return found
